"""Micro-batches of one optimizer step, their tensors, and the order of an epoch."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch

from rango.data.samples import IGNORED, Batch, Sample
from rango.errors import ConfigError


def plan_batches(
    samples: Sequence[Sample], indices: Sequence[int], *, micro_tokens: int, packed: bool
) -> list[list[int]]:
    """Share the samples of one step among micro-batches; each index is in exactly one.

    Packed: best-fit decreasing, each batch one row of at most `micro_tokens` tokens. Padded:
    samples of like length, rows × longest at most `micro_tokens`. A longer sample is alone.
    Deterministic, and independent of the order of `indices`. Raises ConfigError unless
    micro_tokens is at least 1.
    """
    if micro_tokens < 1:
        raise ConfigError(f"micro_tokens should be at least 1, not {micro_tokens}")
    longest_first = sorted(indices, key=lambda index: (-len(samples[index]), index))
    plan = _best_fit if packed else _by_length
    return plan(samples, longest_first, micro_tokens)


def collate(
    samples: Sequence[Sample], indices: Sequence[int], *, packed: bool, pad_id: int = 0
) -> Batch:
    """The tensors of one micro-batch, as samples.Batch says; `indices` are places in `samples`.

    The target at a position is the next token of the same sample, where that one is supervised.
    """
    chosen = [samples[index] for index in indices]
    lengths = [len(sample) for sample in chosen]
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
        span = slice(column, column + len(sample))
        predicting = slice(column, column + len(sample) - 1)
        tokens = np.array(sample.input_ids, dtype=np.int64)
        learnt = np.array(sample.supervised, dtype=bool)
        ids[row, span] = tokens
        positions[row, span] = np.arange(len(sample))
        owner[row, span] = place
        targets[row, predicting] = np.where(learnt, tokens, IGNORED)[1:]
        content[row, predicting] = (np.array(sample.content, dtype=bool) & learnt)[1:]
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        attention_mask=None if packed else torch.from_numpy((owner >= 0).astype(np.int64)),
        targets=torch.from_numpy(targets),
        content=torch.from_numpy(content),
        samples=torch.from_numpy(owner),
        indices=tuple(indices),
        tokens=sum(lengths),
        supervised=int((targets != IGNORED).sum()),
    )


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count), the same for the same seed and epoch."""
    hashed = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(hashed[:16])))
    return [int(index) for index in generator.permutation(count)]


def _best_fit(samples: Sequence[Sample], order: Sequence[int], capacity: int) -> list[list[int]]:
    """Each sample goes to the fullest row that has room, the earliest of equally full ones."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in order:
        length = len(samples[index])
        found = bisect_left(room, (length, -1))
        if found < len(room):
            free, row = room.pop(found)
            rows[row].append(index)
        else:
            free, row = capacity, len(rows)
            rows.append([index])
        if free > length:
            insort(room, (free - length, row))
    return rows


def _by_length(samples: Sequence[Sample], order: Sequence[int], capacity: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in order:
        if batches:
            longest = len(samples[batches[-1][0]])
            if (len(batches[-1]) + 1) * longest <= capacity:
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches
