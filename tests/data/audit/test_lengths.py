"""Lengths, what truncation cuts, and giants."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rango.data.audit.lengths import characters, histogram


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200))
def test_histogram_counts_every_length_once(values):
    bins = histogram(np.array(values, np.int64))
    assert len(bins) <= 40
    assert sum(count for _, _, count in bins) == len(values)
    assert all(begin < end for begin, end, _ in bins)
    assert all(one[1] == other[0] for one, other in pairwise(bins))
    for begin, end, count in bins:
        assert count == sum(begin <= value < end for value in values)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_the_distribution(text, run, values):
    data = [text("x" * value, line) for line, value in enumerate(values, 1)]
    lengths = run(data, measure=characters).lengths
    ordered = sorted(values)
    assert (lengths.count, lengths.total) == (len(values), sum(values))
    assert lengths.longest == ordered[-1]
    assert lengths.mean == pytest.approx(sum(values) / len(values))
    assert list(lengths.percentiles) == [1, 5, 25, 50, 75, 95, 99]
    assert set(lengths.percentiles.values()) <= set(values)
    assert lengths.percentiles[50] == ordered[(len(ordered) - 1) // 2]


def test_what_truncation_cuts_and_where(english, run, faults):
    result = run(english, max_length=200)
    lengths = characters(english)
    over = [length for length in lengths if length > 200]
    assert over
    assert result.lengths.limit == 200
    assert result.lengths.over_limit == len(over)
    assert result.lengths.cut == sum(over) - 200 * len(over)
    found = faults(result)
    assert set(found) == {"over max_length"}
    assert f"{sum(over) - 200 * len(over):,} characters" in found["over max_length"].message
    assert "message 2 of 2 (assistant)" in found["over max_length"].instances[0].excerpt
    assert "whole answer" not in found["over max_length"].message


def test_an_answer_past_the_limit_is_lost(ask, english, run, faults):
    data = [*english, ask("Please think about this at length, " * 20, "Done.", 51)]
    found = faults(run(data, max_length=400))
    assert "1 sample would lose the whole answer" in found["over max_length"].message
    assert "message 1 of 2 (user)" in found["over max_length"].instances[0].excerpt


def test_a_limit_that_nothing_reaches(english, run, faults):
    result = run(english, max_length=10_000)
    assert faults(result) == {}
    assert (result.lengths.limit, result.lengths.over_limit, result.lengths.cut) == (10_000, 0, 0)


def test_a_wide_spread_has_no_giants(text, run, faults):
    generator = np.random.default_rng(0)
    sizes = generator.lognormal(6, 1, 3000).astype(int) + 1

    def measured(examples):
        return [int(sizes[example.origin.line - 1]) for example in examples]

    data = [text(f"sample {n * 7919} of {n * 104729}", n + 1) for n in range(3000)]
    assert "giant samples" not in faults(run(data, measure=measured, unit="tokens"))
    sizes[1234] = 500_000
    found = faults(run(data, measure=measured, unit="tokens"))["giant samples"]
    assert found.count == 1
    assert found.instances[0].origin.line == 1235
    assert "500,000 tokens" in found.message
