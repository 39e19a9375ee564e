"""Ticks lie on round values, within the axis, and are written apart."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rango.report.ticks import linear_scale, log_scale


def labels(values: list[float], **options: bool) -> list[str]:
    return [label for _, label in linear_scale(values, 5, **options).ticks]


def test_round_values() -> None:
    assert labels([0.0, 1.0]) == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert labels([0.0, 2e-4]) == ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]
    assert labels([3.0, 397.0], tight=True) == ["100", "200", "300"]


def test_one_value_still_has_an_axis() -> None:
    scale = linear_scale([2.0, 2.0], 5)
    assert scale.low < 2.0 < scale.high


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.booleans(),
)
def test_ticks_are_inside_and_differ(low: float, span: float, tight: bool) -> None:
    scale = linear_scale([low, low + span], 5, tight=tight)
    margin = (scale.high - scale.low) * 1e-6
    assert 2 <= len(scale.ticks) <= 8
    assert all(scale.low - margin <= value <= scale.high + margin for value, _ in scale.ticks)
    assert scale.low <= low + margin
    assert scale.high >= low + span - margin


def test_logarithmic_axis_places_a_decade_at_equal_distance() -> None:
    scale = log_scale([0.02, 30.0], 5)
    place = scale.onto(0.0, 100.0)
    assert place(10.0) - place(1.0) == pytest.approx(place(1.0) - place(0.1))
    assert math.isclose(scale.low, 0.01)
    assert [label for _, label in log_scale([1.0, 3.0], 5).ticks] == ["1", "2", "5", "10"]
