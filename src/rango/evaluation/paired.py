"""Two models on the same samples: how sure is the difference of their losses?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rango.data.samples import Sample
from rango.data.tokens.pack import Packed
from rango.errors import DataError
from rango.evaluation.evaluate import batches
from rango.evaluation.loss import token_losses
from rango.generation.inference import inference
from rango.progress import Progress, silent

_AT_ONCE = 4_000_000
"""Weights held at once."""


@dataclass(frozen=True)
class SampleLosses:
    """A model's loss, sample by sample."""

    sums: NDArray[np.float64]
    """(N,), nats: of each sample's supervised tokens."""
    tokens: NDArray[np.int64]
    """(N,), how many those are."""

    @property
    def loss(self) -> float:
        """Nats a token, over all samples."""
        return float(self.sums.sum() / self.tokens.sum())

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"sums": self.sums.tolist(), "tokens": self.tokens.tolist()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> SampleLosses:
        """What `as_dict` gave."""
        return SampleLosses(
            np.asarray(values["sums"], np.float64), np.asarray(values["tokens"], np.int64)
        )


def sample_losses(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    micro_tokens: int = 2048,
    packed: Packed | None = None,
    pad_id: int = 0,
    progress: Progress = silent,
) -> SampleLosses:
    """The losses of a causal model as it is; the arguments are those of `evaluate`."""
    sums = np.zeros(len(samples))
    tokens = np.zeros(len(samples), np.int64)
    for batch in batches(
        model,
        samples,
        micro_tokens=micro_tokens,
        packed=packed,
        pad_id=pad_id,
        task="evaluate",
        progress=progress,
    ):
        with inference(model):
            found = token_losses(model, batch)
        places = np.asarray(batch.indices)[found.samples.cpu().numpy()]  # (K,)
        np.add.at(sums, places, found.losses.double().cpu().numpy())
        np.add.at(tokens, places, 1)
    return SampleLosses(sums, tokens)


def paired_interval(
    one: SampleLosses, other: SampleLosses, *, seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """The 95% interval of loss(one) - loss(other), nats a token, by a paired bootstrap (Efron
    1979): the samples are drawn again with replacement, for both models the same ones, and the
    middle 95% of the differences are kept.

    It tells how far the choice of samples could move the difference, and nothing of other seeds.
    Raises DataError unless both are of the same samples.
    """
    if not np.array_equal(one.tokens, other.tokens):
        raise DataError("losses of different samples cannot be paired")
    count = len(one.tokens)
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // count)
    differences: list[NDArray[np.float64]] = []
    for first in range(0, draws, at_once):
        some = min(at_once, draws - first)
        times = generator.multinomial(count, np.full(count, 1 / count), size=some)  # (some, N)
        tokens = np.maximum(times @ one.tokens, 1)
        differences.append((times @ (one.sums - other.sums)) / tokens)
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])
    return float(low), float(high)
