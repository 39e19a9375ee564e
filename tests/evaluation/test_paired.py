"""Losses sample by sample, and how sure their difference is."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from models import build

from rango.data.samples import Origin, Sample
from rango.errors import DataError
from rango.evaluation import paired
from rango.evaluation.evaluate import evaluate
from rango.evaluation.paired import SampleLosses, paired_interval, sample_losses


@pytest.fixture
def samples() -> list[Sample]:
    generator = np.random.default_rng(0)
    made = []
    for number in range(9):
        length = int(generator.integers(4, 15))
        ids = tuple(int(i) for i in generator.integers(5, 100, length))
        learnt = tuple(place >= length // 2 for place in range(length))
        made.append(Sample(ids, learnt, learnt, Origin("made.jsonl", number + 1)))
    return made


@pytest.mark.parametrize("packed", [False, True])
def test_they_add_up_to_the_evaluation(samples: list[Sample], packed: bool) -> None:
    model = build("llama")
    found = sample_losses(model, samples, micro_tokens=32, packed=packed)
    whole = evaluate(model, samples, packed=packed)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    for place, sample in enumerate(samples):
        alone = evaluate(model, [sample], packed=packed)
        assert found.tokens[place] == alone.tokens
        assert found.sums[place] / alone.tokens == pytest.approx(alone.loss, rel=1e-5)
    again = SampleLosses.from_dict(json.loads(json.dumps(found.as_dict())))
    assert np.array_equal(again.sums, found.sums)
    assert np.array_equal(again.tokens, found.tokens)


def losses(each: np.ndarray, tokens: np.ndarray) -> SampleLosses:
    return SampleLosses(each * tokens, tokens)


@pytest.fixture
def drawn() -> Callable[[float], tuple[SampleLosses, SampleLosses]]:
    """Two models whose losses go up and down together, one worse by `more`."""

    def make(more: float) -> tuple[SampleLosses, SampleLosses]:
        generator = np.random.default_rng(1)
        tokens = generator.integers(5, 60, 200)
        common = generator.normal(2.0, 1.0, 200)
        noise = generator.normal(0.0, 0.05, 200)
        return losses(common + noise + more, tokens), losses(common, tokens)

    return make


def test_a_small_difference_is_seen_in_pairs(
    drawn: Callable[[float], tuple[SampleLosses, SampleLosses]],
) -> None:
    worse, best = drawn(0.05)
    low, high = paired_interval(worse, best)
    assert 0 < low < worse.loss - best.loss < high < 0.1
    low, high = paired_interval(*drawn(0.0))
    assert low < 0 < high
    # unpaired, a standard error would be twenty times that
    assert high - low < 0.03


def test_it_is_as_wide_as_the_standard_error_says(
    drawn: Callable[[float], tuple[SampleLosses, SampleLosses]],
) -> None:
    one, other = drawn(0.0)
    difference = (one.sums - other.sums) / one.tokens.mean()
    expected = 2 * 1.96 * difference.std() / np.sqrt(200)
    low, high = paired_interval(one, other)
    assert high - low == pytest.approx(expected, rel=0.15)


def test_the_same_seed_gives_the_same(
    drawn: Callable[[float], tuple[SampleLosses, SampleLosses]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = drawn(0.01)
    first = paired_interval(*pair, seed=3)
    assert paired_interval(*pair, seed=3) == first
    assert paired_interval(*pair, seed=4) != first
    monkeypatch.setattr(paired, "_AT_ONCE", 200 * 7)
    assert paired_interval(*pair, seed=3) == pytest.approx(first, rel=1e-12)


def test_other_samples_are_refused() -> None:
    one, other = (losses(np.ones(count), np.full(count, 3)) for count in (4, 5))
    with pytest.raises(DataError, match="different samples"):
        paired_interval(one, other)
