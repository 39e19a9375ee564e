"""Peak memory of a stretch of work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import rango.training.memory as memory
from rango.training.memory import PeakMemory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_of_the_time_since_it_was_made() -> None:
    before = PeakMemory(CPU).bytes()
    large = torch.ones(32 * 2**20)  # 128 MB
    del large
    peak = PeakMemory(CPU)
    assert peak.bytes() < before + 64 * 2**20
    large = torch.ones(32 * 2**20)
    del large
    assert peak.bytes() > before + 96 * 2**20


def test_without_proc_it_is_the_peak_of_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "nowhere")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "nowhere" / "either")
    assert PeakMemory(CPU).bytes() > 10 * 2**20
