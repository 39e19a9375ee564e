"""Rungs, and who goes on."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rango.training.sweep.halving import going_on, rung_share, rung_steps


def test_rungs() -> None:
    assert rung_steps(90, 3, 2) == [10, 30]
    assert rung_steps(15, 3, 2) == [2, 5]
    assert rung_steps(100, 2, 3) == [13, 25, 50]
    assert rung_steps(100, 2, 0) == []
    assert [rung_share(rung, 2, 2) for rung in range(3)] == [0.25, 0.5, 1.0]


@given(eta=st.integers(2, 5), halvings=st.integers(0, 4), over=st.integers(0, 5000))
def test_rungs_rise_and_come_before_the_end(eta: int, halvings: int, over: int) -> None:
    total = eta**halvings + over
    steps = [0, *rung_steps(total, eta, halvings), total]
    assert all(before < after for before, after in pairwise(steps))


@given(
    losses=st.dictionaries(st.integers(0, 99), st.floats(0, 9), min_size=1),
    eta=st.integers(2, 5),
)
def test_the_best_go_on(losses: dict[int, float], eta: int) -> None:
    kept = going_on(losses, eta)
    assert len(kept) == math.ceil(len(losses) / eta)
    worst = max(losses[number] for number in kept)
    assert all(losses[number] >= worst for number in losses.keys() - kept)


def test_of_equals_the_first_goes_on() -> None:
    assert going_on({5: 1.0, 2: 1.0, 7: 1.0}, 3) == {2}
