"""The audit: one pass over the samples, with every check looking at each.

Memory does not grow with the texts: about 60 bytes a sample are kept (digests, length, origin),
excerpts and MinHash signatures in temporary files, and texts of a uniform sample of 5,000. The
held-out set is read first, and takes about 1 kB a sample.

The result depends on the samples and their order alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

from rango.data.audit.advice import sample_count
from rango.data.audit.checks import CHECKS, finding
from rango.data.audit.damage import Damage
from rango.data.audit.degenerate import Degenerate
from rango.data.audit.diversity import diversity
from rango.data.audit.drops import Drops
from rango.data.audit.duplicates import Collected, Copies
from rango.data.audit.labels import Labels
from rango.data.audit.language import Languages, languages
from rango.data.audit.ledger import Ledger
from rango.data.audit.lengths import LengthRecord, characters
from rango.data.audit.minhash import MinHasher
from rango.data.audit.overlap import HeldOut
from rango.data.audit.personal import Personal
from rango.data.audit.reservoir import Drawn, Reservoir
from rango.data.audit.result import Audit, Diversity, Finding, Lengths, Severity, Share
from rango.data.audit.view import view_of
from rango.data.audit.words import Words
from rango.data.samples import Example
from rango.progress import Progress, silent

__all__ = ["CHECKS", "audit"]

_AT_ONCE = 512
"""Samples that are held in memory together."""
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

Measure = Callable[[Sequence[Example]], list[int]]
Unit = Literal["tokens", "characters"]


def audit(
    examples: Iterable[Example],
    *,
    source: str,
    held_out: Iterable[Example] | None = None,
    measure: Measure | None = None,
    unit: Unit = "characters",
    max_length: int | None = None,
    rank: int | None = None,
    words: Sequence[str] = (),
    progress: Progress = silent,
    total: int | None = None,
) -> Audit:
    """What may be wrong with a data set.

    `source` is its name in the report. `held_out`: the samples kept for evaluation, in which
    overlap is looked for. `measure` gives the lengths of some examples in `unit`; without it they
    are counted in characters. `max_length`: longer samples are reported with what truncation would
    cut. `rank`: for the advice on the number of samples. `words`: whole words to report, whatever
    their case and accents. `total`: how many examples there are, for `progress`.

    Raises ConfigError where a library of the extra "data" is missing or a listed word is none;
    what reading the examples or `measure` raises, passes through.
    """
    hasher = MinHasher()
    apart = None if held_out is None else HeldOut(held_out, hasher, progress)
    with Ledger() as ledger, Collected() as collected:
        seen = _Pass(ledger, collected, hasher, apart, unit, max_length, words)
        examples = iter(examples)
        while chunk := list(islice(examples, _AT_ONCE)):
            seen.add(chunk, (measure or characters)(chunk))
            progress("audit", len(ledger), max(len(ledger), total or 0), "samples")
        return seen.result(source, rank, progress)


class _Pass:
    """All checks, and what they share."""

    def __init__(
        self,
        ledger: Ledger,
        collected: Collected,
        hasher: MinHasher,
        held_out: HeldOut | None,
        unit: Unit,
        max_length: int | None,
        words: Sequence[str],
    ) -> None:
        self._ledger = ledger
        self._collected = collected
        self._hasher = hasher
        self._held_out = held_out
        self._unit: Unit = unit
        self._drops = Drops()
        self._formats: Counter[str] = Counter()
        self._lengths = LengthRecord(unit, max_length)
        self._damage = Damage()
        self._degenerate = Degenerate()
        self._personal = Personal()
        self._words = Words(words)
        self._labels = Labels()
        self._reservoir = Reservoir()

    def add(self, examples: Sequence[Example], lengths: Sequence[int]) -> None:
        """Look at the next samples."""
        begin = len(self._ledger)
        views = [view_of(begin + place, example) for place, example in enumerate(examples)]
        for view in views:
            self._personal.add(view)  # first: it masks what the others show
            self._ledger.add(view)
            self._formats[view.example.format or view.example.kind] += 1
            self._damage.add(view, self._drops)
            self._degenerate.add(view, self._drops)
            self._words.add(view)
            self._labels.add(view)
            self._reservoir.add(view)
        self._lengths.add(views, lengths)
        signatures = self._hasher.signatures([view.body for view in views])
        if self._held_out:
            self._held_out.add(views, signatures, self._drops)
        self._collected.add(views, signatures)

    def result(self, source: str, rank: int | None, progress: Progress) -> Audit:
        """The findings, once all samples were seen."""
        total = len(self._ledger)
        if not total:
            return _nothing(source, self._unit)
        drawn = self._reservoir.drawn()
        copies = self._collected.close(progress)
        spoken = languages(drawn, total)
        found = [*self._findings(total, copies, drawn, spoken, rank)]
        order = list(CHECKS)
        found.sort(key=lambda one: (_SEVERITIES.index(one.severity), order.index(one.check)))
        return Audit(
            source=source,
            samples=total,
            formats=_shares(self._formats, total),
            lengths=self._lengths.lengths(),
            languages=spoken.shares,
            labels=self._labels.shares(total),
            diversity=diversity(drawn, *copies.clusters),
            findings=tuple(found),
            dropped=self._drops.listed(self._ledger),
        )

    def _findings(
        self,
        total: int,
        copies: Copies,
        drawn: Sequence[Drawn],
        spoken: Languages,
        rank: int | None,
    ) -> Iterator[Finding]:
        yield from self._damage.findings(total)
        yield from self._degenerate.findings(total)
        yield from self._personal.findings(total)
        yield from self._words.findings(total)
        yield from self._labels.findings()
        yield from self._lengths.findings(self._ledger)
        yield from copies.findings(self._ledger, self._drops)
        yield from spoken.findings(complete=len(drawn) == total)
        if self._held_out:
            yield from self._held_out.findings(total)
        if rank is not None:
            yield from sample_count(copies.distinct, total, rank)


def _shares(counts: Counter[str], total: int) -> tuple[Share, ...]:
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return tuple(Share(name, count, count / total) for name, count in ordered)


def _nothing(source: str, unit: Unit) -> Audit:
    none = finding(
        "no samples", 0, "there are no samples", "look whether the right file was named", []
    )
    return Audit(
        source=source,
        samples=0,
        formats=(),
        lengths=Lengths(unit, 0, 0, 0, 0.0, {}, ()),
        languages=(),
        labels=(),
        diversity=Diversity(0.0, 0.0, 0, 0),
        findings=(none,),
    )
