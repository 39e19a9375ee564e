"""How the samples of several jobs share micro-batches."""

from __future__ import annotations

import pytest

from rango.data.samples import Origin, Sample
from rango.data.tokens.pack import Packed
from rango.training.many.gradients import _plan

LENGTHS = [5, 3, 9, 1, 4, 4, 20, 2, 6]


def samples() -> list[Sample]:
    learnt = [(False, *[True] * (length - 1)) for length in LENGTHS]
    return [Sample((3,) * len(each), each, each, Origin("made", 1)) for each in learnt]


@pytest.mark.parametrize("packed", [True, False, "masked"])
def test_every_sample_is_in_one_batch_and_a_jobs_own_lie_side_by_side(packed: Packed) -> None:
    plan = _plan(samples(), 12, packed)
    assert sorted(place for batch in plan for place in batch) == list(range(len(LENGTHS)))
    assert all(batch == sorted(batch) for batch in plan)  # jobs' samples come one job after another
    for batch in plan:
        lengths = [LENGTHS[place] for place in batch]
        size = sum(lengths) if packed else len(lengths) * max(lengths)
        assert size <= 12 or len(batch) == 1


def test_packed_a_batch_is_filled_before_the_next_begins() -> None:
    assert _plan(samples(), 12, True) == [[0, 1], [2, 3], [4, 5], [6], [7, 8]]
