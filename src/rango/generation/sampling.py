"""The choice of the next token from its logits."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rango.errors import ConfigError, RangoError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. Otherwise a token is drawn from softmax(logits / temperature),
    first cut to the `top_k` likeliest (0 for all), then to the smallest set whose probabilities
    sum to `top_p` (Holtzman et al. 2019, arXiv 1904.09751).

    Raises ConfigError for values out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature {self.temperature}: expected 0 (greedy) or more")
        if self.top_k < 0:
            raise ConfigError(f"top_k {self.top_k}: expected 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p}: expected more than 0 and at most 1")


class Sampler:
    """Chooses for the sequences of a batch; each has its own random numbers.

    So what is drawn for a prompt is the same alone and in any batch.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self.sampling = sampling
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, V) -> (B,) int64. Raises RangoError for logits that are NaN."""
        if bool(logits.amax(dim=-1).isnan().any()):  # the largest of any with NaN is NaN
            raise RangoError(
                "the model's logits are NaN, so no token can be chosen; look for NaN or overflow "
                "in the base or the adapter (rango inspect), or load with dtype fp32"
            )
        if self.sampling.temperature == 0:
            return logits.argmax(dim=-1)
        uniform = torch.stack(
            [torch.rand((), generator=g, dtype=torch.float64) for g in self._generators]
        )
        return draw(logits, self.sampling, uniform.to(logits.device))


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """The token at which the distribution function passes `uniform`: (B, V), (B,) -> (B,)."""
    if 0 < sampling.top_k < logits.shape[-1]:
        ordered, tokens = logits.topk(sampling.top_k, dim=-1)
    else:
        ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = torch.softmax(ordered.double() / sampling.temperature, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    cumulative = kept.cumsum(dim=-1)
    place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1
    return tokens.gather(1, place.clamp(max=last))[:, 0]


def prompt_seeds(seed: int, prompts: Sequence[Sequence[int]]) -> list[int]:
    """A seed for each prompt: a hash of `seed`, of its tokens, and of which of its equals it is."""
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in prompts:
        key = tuple(prompt)
        hashed = hashlib.sha256(f"{seed} {seen[key]} {key}".encode()).digest()
        seeds.append(int.from_bytes(hashed[:8]) >> 1)
        seen[key] += 1
    return seeds
