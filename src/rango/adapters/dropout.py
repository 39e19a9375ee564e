"""Dropout by counters: what is dropped depends on (job, step, module, token), not on neighbours."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class DropoutKey:
    """What the masks of one step derive from.

    jobs: for each row of the bank, a number that stands for its job (its seed).
    steps: for each row, the step of its job.
    token_ids: int64, one a token of the batch in order (any shape), the same for a token wherever
        it is batched; None numbers the tokens in the order of the batch.
    """

    jobs: tuple[int, ...]
    steps: tuple[int, ...]
    token_ids: Tensor | None = None

    def seen_by(self, count: int) -> DropoutKey:
        """The key for a module that sees `count` vectors: all tokens (B, S), or, after pooling, one
        a sequence, which goes by its first token."""
        ids = self.token_ids
        pooled = ids is not None and ids.ndim == 2 and ids.numel() != count == len(ids)
        return replace(self, token_ids=ids[:, 0]) if ids is not None and pooled else self


def keep_mask(
    key: DropoutKey,
    row: int,
    module: str,
    tokens: Tensor | None,
    shape: tuple[int, int],
    p: float,
    device: torch.device | None = None,
) -> Tensor:
    """Bool (n, features): True where an element is kept, each with probability 1 - p.

    Element (t, f) is kept when a hash (splitmix64) of (job, step, module, token id, f), read as a
    fraction of one, is at least p.
    """
    count, features = shape
    if key.token_ids is not None:
        ids = key.token_ids.flatten().to(device)
        ids = ids if tokens is None else ids[tokens]
    else:
        ids = torch.arange(count, device=device) if tokens is None else tokens
    seed = stable_seed(key.jobs[row], key.steps[row], module)
    columns = torch.arange(features, device=ids.device)
    mixed = _splitmix64(_splitmix64(ids + seed)[:, None] + columns)
    # 53 high bits as a fraction in [0, 1)
    return (mixed >> 11).bitwise_and((1 << 53) - 1).double().mul_(2.0**-53).ge(p)


def stable_seed(*parts: int | str) -> int:
    """A signed 64-bit number from any parts, the same on every machine."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _splitmix64(z: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014) on int64, wrapping."""
    z = z + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (z >> bits).bitwise_and((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
