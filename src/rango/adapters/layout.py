"""The layout of a row: where in one contiguous vector each tensor of an adapter lies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

Key = tuple[str, str]
"""A site (``model.layers.0.mlp.up_proj``) and a tensor of it (``lora_A``)."""


@dataclass(frozen=True)
class Slot:
    """One tensor's place in a row."""

    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class RowLayout:
    """Slots in the order given, one after the other.

    All rows of a bank share the layout, so a slot has the largest rank of any row; rows of smaller
    rank are padded with zeros, which stay zero under training.
    """

    def __init__(self, shapes: Iterable[tuple[Key, tuple[int, ...]]]) -> None:
        self.slots: dict[Key, Slot] = {}
        self.size = 0
        """Length P of a row."""
        for key, shape in shapes:
            slot = Slot(self.size, shape)
            self.slots[key] = slot
            self.size += slot.size

    def view(self, table: Tensor, key: Key) -> Tensor:
        """The slot's elements in every row of a table: (rows, P) -> (rows, *shape), no copy."""
        slot = self.slots[key]
        return table[:, slot.offset : slot.offset + slot.size].unflatten(1, slot.shape)
