"""Read data: from files, folders, globs, standard input or the Hub to examples, one by one.

JSON Lines, a JSON list, CSV, Parquet and Arrow (each through gzip too, where it needs no seeking)
are recognised by content; ``.txt``, ``.text`` and ``.md`` files are plain text, one sample per
paragraph (blank lines separate paragraphs; for longer documents write ``{"text": …}`` entries).
No file is held whole, and every fault is named by file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rango.data.faults import Faults, FileFault
from rango.data.reading.columns import Columns
from rango.data.reading.contents import EXPECTED, Contents, contents
from rango.data.reading.formats import PLAIN_TEXT, parse_entry, recognise
from rango.data.reading.hub import hub_entries
from rango.data.reading.sources import HubSet, Source, described, resolve
from rango.data.reading.stream import opened
from rango.data.samples import Example, Origin
from rango.errors import DataError
from rango.progress import Progress, silent

_REPORT_EVERY = 10_000
"""Examples between two reports of progress."""


def stream_examples(
    source: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    group_column: str | None = None,
    skip: Callable[[DataError], None] | None = None,
    progress: Progress = silent,
) -> Iterator[Example]:
    """The examples of a source, in its order, each with its file and line, as they are read.

    source: a file, a folder, a glob, "-" for standard input, a data set of the Hub (owner/name,
    owner/name/config, each with :split or not), or a list of these.
    columns: where the data has other names, ours to theirs: {"prompt": "question", …}.
    group_column: column whose value becomes the group of an example.
    skip: called with the fault of each entry that cannot be used, which is left out then.

    A byte-order mark and Windows line ends are accepted; blank lines are passed over. Raises
    DataError: a missing, unreadable, empty or malformed file; without `skip`, bad entries too, up
    to ten at once: when there are ten, or at the end. ConfigError: columns that make no sense.
    """
    mapping = Columns(columns, group_column)
    return _stream(resolve(source), Faults(described(source), skip), mapping, progress, skip)


def read_examples(
    source: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    group_column: str | None = None,
    skip: Callable[[DataError], None] | None = None,
    progress: Progress = silent,
) -> list[Example]:
    """All that stream_examples gives, as a list."""
    return list(
        stream_examples(
            source, columns=columns, group_column=group_column, skip=skip, progress=progress
        )
    )


def _stream(
    sources: Sequence[Source],
    faults: Faults,
    columns: Columns,
    progress: Progress,
    skip: Callable[[DataError], None] | None,
) -> Iterator[Example]:
    meter = _Meter(progress, sources)
    for source in sources:
        try:
            yield from _examples(source, columns, faults, meter)
        except FileFault as error:
            if skip is not None:
                raise
            faults.add(error)
    faults.raise_any()
    if not meter.examples:
        raise DataError(
            f"{faults.source}: no samples are left: each of {faults.noted:,} entries was skipped"
        )
    meter.end()


def _examples(source: Source, columns: Columns, faults: Faults, meter: _Meter) -> Iterator[Example]:
    """The examples of one file. Raises FileFault where it can't be read, or not any further."""
    before = meter.examples + faults.noted
    if isinstance(source, HubSet):
        yield from _parsed(str(source), Contents(hub_entries(source)), columns, faults, meter)
    else:
        with opened(source) as stream:
            found = contents(stream, columns, faults)
            for example in _parsed(stream.name, found, columns, faults, meter):
                yield example
                if meter.examples % _REPORT_EVERY == 0:
                    meter.report(stream.position)
            meter.passed(stream.size)
    if meter.examples + faults.noted == before:
        raise FileFault(f"{source}: no samples: the file is empty; {EXPECTED}")


def _parsed(
    file: str, found: Contents, columns: Columns, faults: Faults, meter: _Meter
) -> Iterator[Example]:
    if found.plain and columns.given:
        raise FileFault(f"{file}: plain text has no columns; leave out the names of columns")
    format = PLAIN_TEXT if found.plain else found.format
    columns.begin()
    for line, entry in found.entries:
        origin = Origin(file, line)
        try:
            entry, group = columns.apply(entry, origin)
            format = format or recognise(entry, origin, columns.formats)
            example = parse_entry(entry, format, origin, group, columns.formats)
        except DataError as error:
            faults.add(error)
            continue
        meter.examples += 1
        yield example
    try:
        columns.end()
    except DataError as error:
        raise FileFault(str(error)) from error


@dataclass
class _Meter:
    """How many examples were read, and how far into the files that is."""

    progress: Progress
    sources: Sequence[Source]
    examples: int = 0

    def __post_init__(self) -> None:
        self._total = sum(_size(source) for source in self.sources)
        self._passed = 0
        self._reported = False

    def report(self, position: int) -> None:
        """That many bytes of the present file were read. Nothing where no size is known."""
        if self._total:
            self._reported = True
            done = min(self._passed + position, self._total)
            self.progress("read", done, self._total, "B")

    def passed(self, size: int) -> None:
        """A file of that size ended."""
        self._passed += size

    def end(self) -> None:
        """All was read."""
        if self._reported:
            self.progress("read", self._total, self._total, "B")


def _size(source: Source) -> int:
    try:
        return source.stat().st_size if isinstance(source, Path) else 0
    except OSError:
        return 0  # it went away; reading it will say so
