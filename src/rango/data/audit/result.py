"""What an audit finds, as plain data: for the terminal, the HTML report and --json alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rango.data.samples import Origin

Severity = Literal["error", "warning", "note"]
"""error: training fails or learns something wrong; warning: look at it; note: good to know."""


@dataclass(frozen=True)
class Instance:
    """One place where a finding shows."""

    origin: Origin
    excerpt: str
    """What stands there, in at most 120 characters; personal data masked."""
    other: Origin | None = None
    """For pairs (duplicates, contradictions, overlap): where the first one stands."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault in a data set."""

    check: str
    """A short fixed name, e.g. "exact duplicates": what --ignore takes."""
    severity: Severity
    count: int
    """Samples concerned."""
    message: str
    """What was found, in one sentence with its numbers."""
    advice: str
    """What to do about it."""
    instances: tuple[Instance, ...] = ()
    """The first few, in the order of the data."""


@dataclass(frozen=True)
class Lengths:
    """The distribution of the samples' lengths."""

    unit: Literal["tokens", "characters"]
    count: int
    total: int
    longest: int
    mean: float
    percentiles: dict[int, int]
    """1, 5, 25, 50, 75, 95, 99 -> length."""
    histogram: tuple[tuple[int, int, int], ...]
    """(from, to, samples) in at most 40 bins that grow by a constant factor."""
    limit: int | None = None
    """max_length, where one was given."""
    over_limit: int = 0
    """Samples longer than it."""
    cut: int = 0
    """Tokens (characters) that truncation at it would cut off."""


@dataclass(frozen=True)
class Share:
    """A part of the data set: a language, a label, a format, a role."""

    name: str
    count: int
    share: float
    """Of all samples, 0 to 1."""


@dataclass(frozen=True)
class Diversity:
    """How varied the texts are."""

    distinct_bigrams: float
    """Distinct word pairs over all word pairs, of a uniform sample of the data; 0 to 1."""
    distinct_fourgrams: float
    clusters: int
    """Groups of near duplicates."""
    largest_cluster: int


@dataclass(frozen=True)
class Dropped:
    """A sample that --fix leaves out."""

    origin: Origin
    check: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """The result of one pass over a data set."""

    source: str
    samples: int
    formats: tuple[Share, ...]
    lengths: Lengths
    languages: tuple[Share, ...]
    labels: tuple[Share, ...]
    """Of text+label data; empty otherwise."""
    diversity: Diversity
    findings: tuple[Finding, ...]
    """Errors first, then warnings, then notes."""
    dropped: tuple[Dropped, ...] = ()
    """What --fix would leave out: one entry a sample, in the data's order."""

    @property
    def errors(self) -> int:
        """Findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Findings that are warnings."""
        return sum(finding.severity == "warning" for finding in self.findings)
