"""How long the samples are, what truncation would cut, and which stand apart from the rest."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rango.data.audit.checks import INSTANCES, Tally, amount, finding, of_all
from rango.data.audit.ledger import Ledger
from rango.data.audit.result import Finding, Lengths
from rango.data.audit.view import View
from rango.data.samples import Example

_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_BINS = 40
_APART = 8
"""A giant sample is at least so many times as long as the median, and far beyond the quartiles."""
_HARMLESS = {"tokens": 512, "characters": 2000}
"""No sample up to this length is a giant, however short the others are."""


def characters(examples: Sequence[Example]) -> list[int]:
    """The examples' lengths in characters, all messages together."""
    return [sum([len(message.content) for message in example.messages]) for example in examples]


class LengthRecord:
    """The lengths of the samples; 8 bytes each."""

    def __init__(self, unit: Literal["tokens", "characters"], limit: int | None) -> None:
        self._unit = unit
        self._limit = limit
        self._lengths = array("q")
        self._over = Tally("over max_length")
        self._cut = 0
        self._lost = 0

    def add(self, views: Sequence[View], lengths: Sequence[int]) -> None:
        """Note the next samples' lengths."""
        self._lengths.extend(lengths)
        if self._limit is not None:
            for view, length in zip(views, lengths, strict=True):
                if length > self._limit:
                    self._note_cut(view, length, self._limit)

    def lengths(self) -> Lengths:
        """The distribution."""
        values = np.frombuffer(self._lengths, np.int64)
        shares = np.percentile(values, _PERCENTILES, method="inverted_cdf")
        return Lengths(
            unit=self._unit,
            count=len(values),
            total=int(values.sum()),
            longest=int(values.max()),
            mean=float(values.mean()),
            percentiles=dict(zip(_PERCENTILES, [int(share) for share in shares], strict=True)),
            histogram=histogram(values),
            limit=self._limit,
            over_limit=self._over.count,
            cut=self._cut,
        )

    def findings(self, ledger: Ledger) -> Iterator[Finding]:
        """Samples that are too long, and giants."""
        values = np.frombuffer(self._lengths, np.int64)
        total, unit = len(values), self._unit
        if self._limit is not None:
            share = 100 * self._cut / max(int(values.sum()), 1)
            about = "" if unit == "characters" else "about "
            lost = f"; {about}{amount(self._lost)} would lose the whole answer"
            yield from self._over.finding(
                f"{of_all(self._over.count, total)} are longer than {self._limit:,} {unit}: "
                f"truncation would cut {self._cut:,} {unit} ({share:.2g}%) from their ends"
                + (lost if self._lost else ""),
                "raise --max-length, split the long samples, or drop them: an answer that is cut "
                "teaches the model to stop in the middle",
            )
        limit = _giant(values, _HARMLESS[unit])
        places = np.flatnonzero(values > limit)
        if len(places):
            longest, median = int(values.max()), int(np.median(values))
            yield finding(
                "giant samples",
                len(places),
                f"the longest sample has {longest:,} {unit}, the median {median:,}: "
                f"{amount(len(places))} of more than {limit:,.0f} {unit} "
                f"{'stands' if len(places) == 1 else 'stand'} apart from the rest",
                "split or drop it, or set --max-length: whenever its turn comes, its batch needs "
                "that much more memory than all others",
                [
                    ledger.instance(i, say=f"{values[i]:,} {unit}: ")
                    for i in places[:INSTANCES].tolist()
                ],
            )

    def _note_cut(self, view: View, length: int, limit: int) -> None:
        # tokens are taken to be spread evenly over the characters
        place = len(view.text) * limit // length
        self._cut += length - limit
        self._lost += 0 < view.cut < len(view.text) and place <= view.cut
        messages = view.example.messages
        ends = accumulate(len(message.content) + 1 for message in messages)
        number = 1 + sum(end <= place for end in ends)
        role = messages[number - 1].role if messages else ""
        where = f" in message {number} of {len(messages)} ({role})" if len(messages) > 1 else ""
        say = f"{length:,} {self._unit}, {length - limit:,} cut{where}: "
        self._over.hit(view, place, say=say)


def histogram(values: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    """(from, to, samples): from ≤ length < to, in at most 40 bins growing by a constant factor."""
    low, high = int(values.min()), int(values.max())
    steps = np.rint(np.geomspace(max(low, 1), high + 1, _BINS)).astype(np.int64)
    edges = np.unique(np.concatenate([[low], steps, [high + 1]]))
    edges = edges[(edges >= low) & (edges <= high + 1)]
    counts, _ = np.histogram(values, edges)
    return tuple(
        (int(begin), int(end), int(count))
        for begin, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )


def _giant(values: NDArray[np.int64], harmless: int) -> float:
    """The length beyond which a sample stands apart: outside of any usual (lognormal) spread."""
    low, median, high = np.percentile(np.maximum(values, 1), (25, 50, 75))
    return float(max(_APART * median, high * (high / low) ** 4, harmless))
