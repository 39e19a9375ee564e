"""Masks of transformers as boundaries between sequences: what is said in few numbers, not a square.

transformers composes each mask of functions of its own, and a two-dimensional padding mask. Here
they are read back; whatever is not known by name, or leaves holes, is left to the ordinary mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import masking_utils

from rango.numerics.attention import reach


@dataclass(frozen=True, eq=False)
class Table:
    """What one pass's attention functions need to know; of tokens (B, S) row after row."""

    bounds: Tensor
    key_bounds: Tensor
    causal: bool
    window: int | None

    @property
    def plain(self) -> bool:
        """Whether it says no more than causal: whole rows of equal length, no cache, no window."""
        lengths = self.bounds.diff()
        equal = bool((lengths == lengths[0]).all()) and torch.equal(self.bounds, self.key_bounds)
        return self.causal and self.window is None and equal

    @staticmethod
    def read(tensor: Tensor) -> Table:
        """From what `written` made, or a copy of it."""
        known = getattr(tensor, "table", None)  # most often; one pass reads it in every layer
        if isinstance(known, Table):
            return known
        bounds, key_bounds, line = tensor[0, 0]
        causal, window = line[:2].tolist()
        return Table(bounds, key_bounds, bool(causal), window or None)

    def written(self) -> Tensor:
        """As a tensor that goes wherever a mask goes: int64 (1, 1, 3, sequences + 1), of bounds,
        key_bounds, and a line that begins with causal (0 or 1) and window (0: none)."""
        tensor = torch.zeros((1, 1, 3, len(self.bounds)), dtype=torch.int64)
        tensor[0, 0, 0], tensor[0, 0, 1] = self.bounds, self.key_bounds
        tensor[0, 0, 2, 0], tensor[0, 0, 2, 1] = int(self.causal), self.window or 0
        tensor.table = self  # type: ignore[attr-defined]
        return tensor


@dataclass(frozen=True, eq=False)
class Pattern:
    """What a mask function of transformers' own says."""

    causal: bool
    window: int | None
    packed: Tensor | None
    """(B, S): equal numbers for the tokens of one sequence; None where each row is one."""

    @staticmethod
    def of(function: Callable[..., Any]) -> Pattern | None:
        """None if any part of it is not known, whatever else it may do."""
        known: dict[str, Any] = {}
        if not _collect(function, known) or ("causal" in known) == ("bidirectional" in known):
            return None
        causal = "causal" in known
        if ("both_sides" if causal else "one_side") in known:
            return None
        return Pattern(
            causal, known.get("one_side" if causal else "both_sides"), known.get("packed")
        )


_PARTS = {
    "causal_mask_function": ("causal", None),
    "bidirectional_mask_function": ("bidirectional", None),
    "sliding_window_overlay.<locals>.inner_mask": ("one_side", "sliding_window"),
    "sliding_window_bidirectional_overlay.<locals>.inner_mask": ("both_sides", "sliding_window"),
    "packed_sequence_mask_function.<locals>.inner_mask": ("packed", "packed_sequence_mask"),
}
"""Mask functions by name: what each says, and which of its variables with what value."""


def _collect(function: Callable[..., Any], known: dict[str, Any]) -> bool:
    """Note what each part of a composed mask function says; False if one says something else."""
    if getattr(function, "__module__", None) != masking_utils.__name__:
        return False
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    name, held = function.__qualname__, dict(zip(function.__code__.co_freevars, cells, strict=True))
    if name == "and_masks.<locals>.and_mask":
        return all(_collect(part, known) for part in held["mask_functions"])
    if name == "remap_positions_for_packed_sequence.<locals>.inner_mask":
        # places within the sequence instead of within the row: distances are the same
        return _collect(held["mask_function"], known)
    if name not in _PARTS or _PARTS[name][0] in known:
        return False
    fact, variable = _PARTS[name]
    known[fact] = held[variable] if variable else True
    return True


def boundaries(
    pattern: Pattern, batch: int, queries: int, keys: int, ahead: int, mask: Tensor | None
) -> Table | None:
    """The table; None where it cannot say it.

    ahead: place of the first query among the keys. mask: (B, ≤ keys), false where padding is.
    """
    causal, window = pattern.causal, pattern.window
    if pattern.packed is not None:
        if mask is not None or ahead or queries != keys:
            return None
        owners = pattern.packed.expand(batch, -1).numpy()
        changes = np.ones((batch, queries), dtype=bool)
        changes[:, 1:] = owners[:, 1:] != owners[:, :-1]
        bounds = torch.from_numpy(np.append(np.flatnonzero(changes), batch * queries))
        return Table(bounds, bounds, causal, window)
    if ahead < 0:
        return None
    first, last = np.zeros(batch, dtype=np.int64), np.full(batch, keys, dtype=np.int64)
    if mask is not None and not (mask.shape[1] == keys and bool(mask.all())):
        real = mask.numpy().astype(bool)
        counts = real.sum(axis=1)
        first = np.where(counts, real.argmax(axis=1), 0)
        last = np.where(counts, real.shape[1] - real[:, ::-1].argmax(axis=1), 0)
        if (last - first != counts).any():  # holes
            return None
    if causal:
        # what follows the last query is seen by none, and padding needs no answer
        last = np.minimum(last, ahead + queries)
        first = np.minimum(first, last)
        begin, end = np.maximum(first - ahead, 0), np.maximum(last - ahead, 0)
    else:
        begin, end = np.zeros_like(first), np.full_like(first, queries)
        if window is not None and (ahead or queries != keys or first.any() or (last < keys).any()):
            return None
    if not first.any() and (last == keys).all() and not begin.any() and (end == queries).all():
        rows = torch.arange(batch + 1)
        return Table(rows * queries, rows * keys, causal, window)
    # five sequences a row: in the middle the real one; before and after it queries without keys,
    # and keys without queries
    offset, key_offset = np.arange(batch) * queries, np.arange(batch) * keys
    starts = [0 * begin, begin, begin, end, np.full_like(end, queries)]
    key_starts = [0 * first, 0 * first, first, last, last]
    return Table(
        torch.from_numpy(np.append((offset + np.stack(starts)).T, batch * queries)),
        torch.from_numpy(np.append((key_offset + np.stack(key_starts)).T, batch * keys)),
        causal,
        window,
    )


def square_mask(table: Table, query: Tensor, key: Tensor) -> Tensor:
    """The table as sdpa's mask, bool (B, 1, queries, keys)."""
    before, after = reach(table.causal, table.window)
    bounds, key_bounds = table.bounds, table.key_bounds
    ahead = key_bounds.diff() - bounds.diff()

    def places(x: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.arange(x.shape[0] * x.shape[2])
        owner = torch.searchsorted(starts.contiguous(), tokens, right=True) - 1
        shape = (x.shape[0], x.shape[2])
        return owner.view(shape), (tokens - starts[owner]).view(shape)

    owner, place = places(query, bounds)
    place = place + ahead[owner]
    key_owner, key_place = places(key, key_bounds)
    distance = place[:, :, None] - key_place[:, None, :]
    visible = (owner[:, :, None] == key_owner[:, None, :]) & (distance <= before)
    return (visible & (-distance <= after)).unsqueeze(1).to(query.device)


def is_table(mask: Tensor) -> bool:
    """Is it one that Table.written made? sdpa's masks are bool or floating."""
    return mask.dtype == torch.int64 and mask.ndim == 4 and mask.shape[:3] == (1, 1, 3)
