"""Curves from events."""

from __future__ import annotations

import math
from typing import Any

from rango.report.curves import points, run_curves


def test_a_resumed_run_repeats_steps_and_the_later_ones_count() -> None:
    events = [
        {"event": "step", "step": 1, "loss": 3.0},
        {"event": "step", "step": 2, "loss": 2.5},
        {"event": "start", "step": 1},
        {"event": "step", "step": 2, "loss": 2.0},
        {"event": "evaluation", "step": 2, "loss": 9.0},
    ]
    assert points(events, "step", "loss") == [(1.0, 3.0), (2.0, 2.0)]


def test_null_was_not_finite() -> None:
    ((step, value),) = points([{"event": "step", "step": 4, "loss": None}], "step", "loss")
    assert step == 4
    assert math.isnan(value)


def test_only_curves_with_something_to_show() -> None:
    steps: list[dict[str, Any]] = [
        {"event": "step", "step": step, "loss": 1 / step, "learning_rate": 1e-4}
        for step in range(1, 5)
    ]
    titles = "".join(run_curves(steps))
    assert len(run_curves(steps)) == 2
    assert "Loss" in titles
    assert "Learning rate" in titles
    assert run_curves([]) == []
