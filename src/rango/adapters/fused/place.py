"""Where the tokens of a batch stand: their rotary angles, and whom each may attend to.

A model's layers all see one batch in turn, so what the first finds out the others share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rango.adapters.boundaries import Table, is_table


@dataclass(frozen=True)
class Place:
    """The T tokens of a batch, its rows one after the other.

    cos, sin: fp32 (T, rotated). table: the sequences among the T; None where a cache and a mask
    say more.
    """

    cos: Tensor
    sin: Tensor
    table: Table | None
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What is made of these once, and used by all layers."""


class Places:
    """The place of the batch that a model is working on."""

    def __init__(self) -> None:
        self._last: tuple[torch.Size, tuple[Any, ...], Place] | None = None

    def of(self, x: Tensor, embeddings: tuple[Tensor, Tensor], attention_mask: Any) -> Place:
        """For hidden states x (batch, length, hidden), with what the model gives its layers."""
        seen = (*embeddings, attention_mask)
        last = self._last  # read once: another thread may be at another batch
        if (
            last is None
            or last[0] != x.shape
            or not all(a is b for a, b in zip(seen, last[1], strict=True))
        ):
            last = self._last = (x.shape, seen, _place(x, embeddings, attention_mask))
        return last[2]

    def forget(self) -> None:
        """Let go of the last batch's tensors."""
        self._last = None

    def __reduce__(self) -> tuple[type[Places], tuple[()]]:
        return Places, ()  # a copy of a model is at no batch yet


def _place(x: Tensor, embeddings: tuple[Tensor, Tensor], attention_mask: Any) -> Place:
    batch, length, _ = x.shape
    cos, sin = (
        table.expand(batch, -1, -1).reshape(batch * length, -1).float() for table in embeddings
    )
    table = None
    if attention_mask is None:  # each row is one sequence, and attends causally
        rows = torch.arange(batch + 1) * length
        table = Table(rows, rows, causal=True, window=None)
    elif isinstance(attention_mask, Tensor) and is_table(attention_mask):
        table = Table.read(attention_mask)
    return Place(cos.contiguous(), sin.contiguous(), table)
