"""The benchmark of a training step: contestants compute the same, and the command works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's modules, which import each other by their bare names."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import contestants
    import shapes
    import train_step

    yield {"contestants": contestants, "shapes": shapes, "train_step": train_step}
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


# peft 0.21 reads a flag that transformers 5.23 renames
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_contestants_compute_the_same(modules: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    toy = modules["shapes"].SHAPES["toy"]
    modules["shapes"].write_checkpoint(toy, tmp_path)
    entries = modules["contestants"].ENTRIES
    made = {name: entry.make(tmp_path, toy, 4, entry.quantized) for name, entry in entries.items()}
    losses = {name: [one.step() for _ in range(4)] for name, one in made.items()}
    for kind in ("lora", "qlora"):
        ours, peer = f"rango-{kind}", f"peft-{kind}"
        assert made[ours].trainable == made[peer].trainable > 0
        torch.testing.assert_close(losses[ours], losses[peer], rtol=1e-4, atol=0)
        assert losses[ours][-1] < losses[ours][0] - 1e-3  # it trains
    assert losses["rango-lora"][0] == pytest.approx(losses["frozen"][0], rel=1e-5)
    assert losses["rango-qlora"][0] != losses["rango-lora"][0]


def _contestant(seconds: float, peak: int, loss: float = 2.0) -> dict[str, Any]:
    return {
        "title": "x",
        "trainable": 8,
        "imports_bytes": 100,
        "peak_bytes": peak,
        "first_loss": loss,
        "last_loss": loss,
        "step_seconds": {"median": seconds},
        "samples": [{"seconds": seconds, "peak_bytes": peak}],
    }


def test_rows_and_checks(modules: dict[str, Any]) -> None:
    train_step = modules["train_step"]
    measured = {
        "contestants": {
            "rango-lora": _contestant(1.2, 300),
            "peft-lora": _contestant(1.0, 300, loss=2.1),
        }
    }
    time, memory, above = train_step.rows_of("toy", measured, {"rank": 4})
    assert (time.ratio, time.met, time.goal) == (1.2, False, 1.1)
    assert (memory.ratio, memory.met) == (1.0, True)
    assert (above.ours, above.peer, above.unit) == (200, 200, "bytes")
    found = {check["what"]: check["ok"] for check in train_step.checks_of(measured)}
    assert found == {"trainable": True, "first_loss": False, "last_loss": False}


def test_quick_run(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARKS / "train_step.py"), "--output", str(output)]
    options = ["--shape", "toy", "--quick", "--threads", "1", "--only", "frozen", "rango-lora"]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Rango LoRA" in done.stdout
    result = json.loads(output.read_text())
    assert {row["name"].rsplit(", ")[-1] for row in result["rows"]} == {
        "step time",
        "peak memory",
        "peak memory above imports",
    }
    toy = result["shapes"]["toy"]
    assert toy["machine"]["gemm_fp32_gflops"] > 0
    for one in toy["contestants"].values():
        assert len(one["samples"]) == 2
        assert one["peak_bytes"] >= one["peak_anonymous_bytes"] > 0
    assert all(check["ok"] for check in toy["checks"])
    shown = subprocess.run(
        [sys.executable, str(BENCHMARKS / "train_step.py"), "--show", str(output)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Rango LoRA" in shown.stdout
