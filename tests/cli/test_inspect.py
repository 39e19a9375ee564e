"""`rango inspect`: what it says of the kernels. (What it says of folders: test_commands.py.)"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import rango.base.inspect
from rango.cli.main import main
from rango.kernels import dispatch


@pytest.fixture(autouse=True)
def _undecided() -> Iterator[None]:
    """As before the first kernel; what was in use is so again after the test."""
    with dispatch.using("reference"):
        dispatch._choice = None
        yield


@pytest.mark.parametrize("mode", dispatch.available())
def test_inspect_says_which_kernels_run(
    mode: str,
    demo_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, mode)
    assert main(["inspect", str(demo_base), "--json"]) == 0
    reason = "RANGO_KERNELS=reference" if mode == "reference" else ""
    threads = torch.get_num_threads()
    found = json.loads(capsys.readouterr().out)["kernels"]
    assert found == {"in_use": mode, "reason": reason, "threads": threads}
    assert main(["inspect", str(demo_base)]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.split()[:1] == ["kernels"])
    assert line.split()[1].rstrip(",") == mode
    assert reason in line
    assert f"{threads} thread" in line


def test_inspect_refuses_an_unknown_mode_before_any_work(
    demo_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "fastest")
    monkeypatch.setattr(rango.base.inspect, "open_checkpoint", lambda folder: pytest.fail("work"))
    assert main(["inspect", str(demo_base)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rango: error: RANGO_KERNELS: expected one of auto, avx2")
