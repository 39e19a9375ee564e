"""Ctrl-C during `rango train`: a message that says how to go on, its exit code, and going on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from rango.cli.main import main

STEPS = 20


def test_interrupted_and_resumed(tmp_path: Path, demo_base: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"a{number}", "completion": f"b{number}"}) + "\n"
            for number in range(40)
        )
    )
    run = tmp_path / "run"
    words = ["train", "--base.model", str(demo_base), "--data.train", str(data)]
    words += ["--output", str(run), "--training.max_steps", str(STEPS)]
    words += ["--training.epochs", "100", "--training.eval_every", str(STEPS)]
    words += ["--adapter.r", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rango.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    events = run / "events.jsonl"
    deadline = time.monotonic() + 120
    while '"step"' not in (events.read_text() if events.exists() else ""):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in said
    assert f"rango train --config {run / 'config.yaml'} --resume" in said
    assert not (run / "result.json").exists()

    assert main(["train", "--config", str(run / "config.yaml"), "--resume"]) == 0
    assert json.loads((run / "result.json").read_text())["steps"] == STEPS
