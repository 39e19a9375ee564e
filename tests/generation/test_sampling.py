"""The distribution that sampling draws from, and what it depends on."""

from __future__ import annotations

import math

import pytest
import torch

from rango.errors import ConfigError, RangoError
from rango.generation.sampling import Sampler, Sampling, draw, prompt_seeds

PROBABILITIES = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05])
LOGITS = PROBABILITIES.log()[None]


def shares(sampling: Sampling) -> list[float]:
    """Share of each token when the unit interval is swept evenly: its probability."""
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens = draw(LOGITS.expand(10_000, -1), sampling, uniform)
    return (tokens.bincount(minlength=5) / 10_000).tolist()


def test_temperature_one_is_the_models_distribution() -> None:
    assert shares(Sampling(1.0)) == pytest.approx(PROBABILITIES.tolist(), abs=2e-4)


def test_temperature_sharpens() -> None:
    expected = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert shares(Sampling(0.5)) == pytest.approx(expected.tolist(), abs=2e-4)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, top_k=2), [1, 3]),
        (Sampling(1.0, top_p=0.5), [1]),
        (Sampling(1.0, top_p=0.51), [1, 3]),
        (Sampling(1.0, top_p=0.85), [0, 1, 3]),
        (Sampling(1.0, top_k=3, top_p=0.6), [1, 3]),
        (Sampling(1.0, top_k=99, top_p=1.0), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_p=1e-9), [1]),
    ],
)
def test_the_rest_is_cut_off(sampling: Sampling, kept: list[int]) -> None:
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    assert shares(sampling) == pytest.approx(expected.tolist(), abs=2e-4)


def test_the_ends_of_the_interval_draw_kept_tokens() -> None:
    sampling = Sampling(1.0, top_p=0.6)
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(LOGITS.expand(2, -1), sampling, ends).tolist() == [1, 3]


def test_a_sequence_draws_the_same_in_any_batch() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    together, alone = Sampler(Sampling(1.0), [7, 8, 9]), Sampler(Sampling(1.0), [8])
    for _ in range(20):
        assert int(together(logits)[1]) == int(alone(logits[1:2])[0])


def test_seeds_depend_on_seed_tokens_and_occurrence() -> None:
    first, second, again = prompt_seeds(0, [[1, 2], [3], [1, 2]])
    assert len({first, second, again, prompt_seeds(1, [[1, 2]])[0]}) == 4
    assert prompt_seeds(0, [[3], [1, 2]]) == [second, first]


def test_greedy_and_nan() -> None:
    sampler = Sampler(Sampling(), [0])
    assert sampler(LOGITS).tolist() == [1]
    with pytest.raises(RangoError, match="NaN"):
        sampler(LOGITS * math.nan)


@pytest.mark.parametrize(
    "values",
    [{"temperature": -1.0}, {"temperature": math.inf}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 2}],
)
def test_values_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Sampling(**values)
