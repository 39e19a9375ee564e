"""The rows of many jobs, from what the contestants took."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest

Module = Callable[[str], Any]
OPTIONS = Namespace(steps=50, micro_tokens=512)


def took(seconds: float, peak: float, ready: float = 10.0) -> dict[str, Any]:
    return {
        "title": "X",
        "peak_bytes": peak,
        "ready_seconds": ready,
        "warm_up": [{"parameters": 1000.0, "seconds": 2.0}],
        "samples": [{"seconds": seconds}],
    }


@pytest.fixture
def found() -> dict[str, Any]:
    return {"many": took(8.0, 1.2e6), "rango-fp32": took(0.6, 9e5), "peft-fp32": took(1.0, 2e6)}


def test_sixteen_jobs_are_held_against_the_peers_and_one_job(
    module: Module, found: dict[str, Any]
) -> None:
    peaks = {1: took(0.6, 1e6)}
    rows = module("many")._rows("16 jobs", "fp32", 16, found, peaks, OPTIONS, True, False)
    speed, whole, _, _, memory, rest = rows
    assert (speed.unit, speed.goal, speed.stretch) == ("tokens/s", 1.3, 2.0)
    assert speed.ratio == pytest.approx(16 * 1.0 / 8.0)
    assert whole.ours == 10 + 2 + 50 * 8.0
    assert whole.peer == 16 * (10 + 50 * 1.0)
    assert memory.ratio == pytest.approx(0.6)
    assert rest.ours == 1.2e6 - 15 * 1000 * 16
    assert (rest.peer, rest.goal) == (1e6, 1.15)


def test_a_sweep_is_held_against_one_run_over_as_many_tokens(
    module: Module, found: dict[str, Any]
) -> None:
    del found["peft-fp32"]
    peaks = {1: took(0.6, 1e6)}
    rows = module("many")._rows("a sweep", "fp32", 8, found, peaks, OPTIONS, True, True)
    time, memory = rows
    assert (time.ours, time.peer, time.goal) == (8.0, 8 * 0.6, 1.1)
    assert memory.goal == 1.15


def test_without_goals(module: Module, found: dict[str, Any]) -> None:
    rows = module("many")._rows("16 jobs", "fp32", 16, found, {}, OPTIONS, False, False)
    assert len(rows) == 5
    assert all(row.goal is None for row in rows)
