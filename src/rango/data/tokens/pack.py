"""Micro-batches of one optimizer step, their tensors, and the order of an epoch."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rango.data.samples import IGNORED, Batch, Sample
from rango.data.tokens.store import SampleStore
from rango.errors import ConfigError

Packed = bool | Literal["masked"]
"""False: one sample a row, padded. True: several samples in one row, told apart by position_ids.
"masked": by an explicit mask too, for a causal model that looks for them nowhere else (Falcon)."""


@dataclass(frozen=True)
class Efficiency:
    """What part of a plan's computation is of use."""

    tokens: int
    """Tokens of the samples."""
    computed: int
    """Those and padding: a packed row is as long as what is in it, and has none."""
    capacity: int
    """Tokens that as many rows of the full budget hold (a longer sample counts as it is)."""
    rows: int

    @property
    def of_computed(self) -> float:
        """Share of use of what is computed."""
        return self.tokens / self.computed

    @property
    def of_capacity(self) -> float:
        """Share of use, if every row were computed at its full budget."""
        return self.tokens / self.capacity


def plan_batches(
    samples: Sequence[Sample],
    indices: Sequence[int],
    *,
    micro_tokens: int,
    packed: Packed,
    adapters: Sequence[int] | None = None,
) -> list[list[int]]:
    """Share the samples of one step among micro-batches; each index is in exactly one.

    Packed: best-fit decreasing, each batch one row of at most `micro_tokens` tokens. Padded:
    samples of like length, rows × longest at most `micro_tokens`. A longer sample is alone.
    adapters: the adapter of each of `indices`, where a micro-batch may have only one (where its
    routing cannot give a row a token).
    Deterministic, and independent of the order of `indices`. Raises ConfigError unless
    micro_tokens is at least 1.
    """
    if micro_tokens < 1:
        raise ConfigError(f"micro_tokens should be at least 1, not {micro_tokens}")
    chosen = np.asarray(indices, dtype=np.int64)
    lengths = lengths_of(samples, chosen)
    order = np.lexsort((chosen, -lengths))  # the longest first, of equal ones the lowest index
    parts = [order]
    if adapters is not None:
        owners = np.asarray(adapters)[order]
        parts = [order[owners == owner] for owner in np.unique(owners)]
    plan = best_fit if packed else _by_length
    return [
        chosen[part[row]].tolist()
        for part in parts
        for row in plan(lengths[part].tolist(), micro_tokens)
    ]


def best_fit(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    """Rows of places in `lengths`, each of at most `capacity` in all; a larger one is alone.

    In the order given, each goes to the fullest row that has room, the earliest of equally full
    ones; sorted from the longest on, that is best-fit decreasing.
    """
    rows: list[list[int]] = []
    waiting: dict[int, list[int]] = {}  # free tokens -> heap of the rows that have as many
    free_in_use: list[int] = []  # sorted; at most `capacity` of them, however many rows there are
    for place, length in enumerate(lengths):
        found = bisect_left(free_in_use, length)
        if found < len(free_in_use):
            free = free_in_use[found]
            row = heappop(waiting[free])
            if not waiting[free]:
                del free_in_use[found]
            rows[row].append(place)
        else:
            free, row = capacity, len(rows)
            rows.append([place])
        left = free - length
        if left > 0:
            heap = waiting.setdefault(left, [])
            if not heap:
                insort(free_in_use, left)
            heappush(heap, row)
    return rows


def efficiency(
    samples: Sequence[Sample], plan: Sequence[Sequence[int]], *, micro_tokens: int, packed: Packed
) -> Efficiency:
    """What part of a plan's computation is of use; the options are those of plan_batches."""
    tokens = computed = capacity = 0
    for indices in plan:
        lengths = lengths_of(samples, indices)
        used = int(lengths.sum())
        size = used if packed else len(lengths) * int(lengths.max())
        tokens, computed = tokens + used, computed + size
        capacity += max(micro_tokens, size)
    return Efficiency(tokens, computed, capacity, len(plan))


def collate(
    samples: Sequence[Sample], indices: Sequence[int], *, packed: Packed, pad_id: int = 0
) -> Batch:
    """The tensors of one micro-batch, as samples.Batch says; `indices` are places in `samples`.

    The target at a position is the next token of the same sample, where that one is supervised.
    Of a labelled sample the target is its label, at its last token; such samples are padded.
    "masked": attention_mask is bool (1, 1, S, S), true where the row's token sees the column's.
    """
    chosen = [_arrays(samples, index) for index in indices]
    lengths = [len(ids) for ids, _, _ in chosen]
    if packed:
        shape, rows = (1, sum(lengths)), [0] * len(chosen)
        columns = [sum(lengths[:place]) for place in range(len(chosen))]
    else:
        shape, rows = (len(chosen), max(lengths)), list(range(len(chosen)))
        columns = [0] * len(chosen)
    ids = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    content = np.zeros(shape, dtype=bool)
    owner = np.full(shape, -1, dtype=np.int64)
    for place, (sample, row, column) in enumerate(zip(chosen, rows, columns, strict=True)):
        tokens, learnt, answer = sample
        span = slice(column, column + len(tokens))
        predicting = slice(column, column + len(tokens) - 1)
        ids[row, span] = tokens
        positions[row, span] = np.arange(len(tokens))
        owner[row, span] = place
        targets[row, predicting] = np.where(learnt, tokens, IGNORED)[1:]
        content[row, predicting] = (answer & learnt)[1:]
        label = label_of(samples, indices[place])
        if label is not None:
            if packed:
                raise ConfigError("labelled samples have no place in packed rows; set packed=False")
            targets[row, len(tokens) - 1] = label
    mask = None
    if packed == "masked":
        mask = np.tril(owner[:, :, None] == owner[:, None, :])[:, None]
    elif not packed:
        mask = (owner >= 0).astype(np.int64)
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        attention_mask=None if mask is None else torch.from_numpy(mask),
        targets=torch.from_numpy(targets),
        content=torch.from_numpy(content),
        samples=torch.from_numpy(owner),
        indices=tuple(indices),
        tokens=sum(lengths),
        supervised=int((targets != IGNORED).sum()),
    )


def label_of(samples: Sequence[Sample], index: int) -> int | None:
    """The number of a sample's label, without reading its tokens; None without one."""
    return samples.label(index) if isinstance(samples, SampleStore) else samples[index].label


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count), the same for the same seed and epoch."""
    hashed = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(hashed[:16])))
    order: list[int] = generator.permutation(count).tolist()
    return order


def lengths_of(samples: Sequence[Sample], indices: Any) -> NDArray[np.int64]:
    """Tokens of the samples at these places, (N,)."""
    if isinstance(samples, SampleStore):
        return samples.lengths[np.asarray(indices, dtype=np.int64)]
    return np.array([len(samples[index]) for index in indices], dtype=np.int64)


def _arrays(
    samples: Sequence[Sample], index: int
) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
    """Token ids, supervised and content of a sample."""
    if isinstance(samples, SampleStore):
        return samples.arrays(index)
    sample = samples[index]
    return (
        np.array(sample.input_ids, dtype=np.int64),
        np.array(sample.supervised, dtype=bool),
        np.array(sample.content, dtype=bool),
    )


def _by_length(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The same, with padding; `lengths` fall."""
    batches: list[list[int]] = []
    for place in range(len(lengths)):
        if batches:
            longest = lengths[batches[-1][0]]
            if (len(batches[-1]) + 1) * longest <= capacity:
                batches[-1].append(place)
                continue
        batches.append([place])
    return batches
