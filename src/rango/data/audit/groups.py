"""Which of many texts are near duplicates of each other, and of which of a second set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rango.data.audit.minhash import BANDS, Signatures, alike, bands
from rango.data.audit.shingles import Places
from rango.progress import Progress, silent

_ROUNDS = 50
"""Texts of one bucket that the others in it are compared with: all of them, but for data made to
fill one bucket with texts that are not alike."""
_CANDIDATES = 8
"""Texts of a bucket that a text of another set is compared with."""


def groups(signatures: Signatures, rows: Places, progress: Progress = silent) -> Places:
    """For each of `rows` (ascending), the position in `rows` of its group's first member.

    Groups are joined over pairs that are alike, so that two members of a long chain may differ.
    Memory: about 50 bytes a row.
    """
    group = np.arange(len(rows))
    keys = bands(signatures)
    for band in range(BANDS):
        group = _joined_by(keys[rows, band], signatures, rows, group)
        progress("near duplicates", band + 1, BANDS, "bands")
    return group


def _joined_by(
    column: NDArray[np.uint64], signatures: Signatures, rows: Places, group: Places
) -> Places:
    """The groups after comparing the texts that have the same key in this column."""
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    same = ordered[1:] == ordered[:-1]
    inside = np.zeros(len(column), np.bool_)
    inside[1:] |= same
    inside[:-1] |= same
    bucket = np.zeros(len(column), np.intp)
    np.cumsum(~same, out=bucket[1:])
    member, bucket = order[inside], bucket[inside]
    for _ in range(_ROUNDS):
        member, bucket = _unfinished(member, bucket, group)
        if not len(member):
            break
        heads = _starts(bucket)
        head, other = member[heads][np.cumsum(heads) - 1][~heads], member[~heads]
        apart = group[head] != group[other]
        left, right = head[apart], other[apart]
        hit = alike(signatures, rows[left], signatures, rows[right])
        group = _joined(group, left[hit], right[hit])
        member, bucket = other, bucket[~heads]
    return group


def _unfinished(member: Places, bucket: Places, group: Places) -> tuple[Places, Places]:
    """The members of the buckets that aren't one group yet."""
    if not len(member):
        return member, bucket
    heads = _starts(bucket)
    of_member = group[member]
    begins = np.flatnonzero(heads)
    mixed = np.minimum.reduceat(of_member, begins) != np.maximum.reduceat(of_member, begins)
    left = mixed[np.cumsum(heads) - 1]
    return member[left], bucket[left]


def _starts(bucket: Places) -> NDArray[np.bool_]:
    heads = np.ones(len(bucket), np.bool_)
    heads[1:] = bucket[1:] != bucket[:-1]
    return heads


def _joined(group: Places, left: Places, right: Places) -> Places:
    """The groups after joining those of left[i] and right[i]; each is named by its first."""
    if not len(left):
        return group
    group = group.copy()
    while True:
        a, b = group[left], group[right]
        low, high = np.minimum(a, b), np.maximum(a, b)
        apart = low != high
        if not apart.any():
            return group
        np.minimum.at(group, high[apart], low[apart])
        while not np.array_equal(group, group[group]):
            group = group[group]


class Index:
    """A set of texts in which others look for a near duplicate. About 400 bytes a text."""

    def __init__(self, signatures: Signatures) -> None:
        self._signatures = signatures
        keys = bands(signatures)
        self._orders = [np.argsort(keys[:, band], kind="stable") for band in range(BANDS)]
        self._keys = [keys[order, band] for band, order in enumerate(self._orders)]

    def find(self, queries: Signatures) -> Places:
        """For each query, a text of the set that is alike; -1 where none was found."""
        best = np.full(len(queries), -1, np.intp)
        asked = bands(queries)
        for band, (order, keys) in enumerate(zip(self._orders, self._keys, strict=True)):
            column = asked[:, band]
            begin = np.searchsorted(keys, column, "left")
            end = np.searchsorted(keys, column, "right")
            for step in range(_CANDIDATES):
                open_ = np.flatnonzero((best < 0) & (begin + step < end))
                if not len(open_):
                    break
                candidate = order[begin[open_] + step]
                hit = alike(queries, open_, self._signatures, candidate)
                best[open_[hit]] = candidate[hit]
        return best
