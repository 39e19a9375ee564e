"""Check data before a model learns it: read, measure, verify the supervision, audit; one pass.

Where several entries begin on one line (a JSON list written without line ends), an origin's file
is ``file:line`` and its line the entry's number there, so that it reads ``file:line:number``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rango.data.audit.audit import CHECKS, audit
from rango.data.audit.personal import Personal
from rango.data.audit.result import Audit, Dropped, Finding, Instance, Severity
from rango.data.faults import FileFault
from rango.data.preview import Preview, Supervision
from rango.data.reading.read import stream_examples
from rango.data.reading.sources import StandardInput, described, resolve
from rango.data.samples import Example, Origin
from rango.data.tokens.chunk import LossOn
from rango.errors import ConfigError, DataError, nearest
from rango.progress import Progress, silent

FILES = "unreadable files"
ENTRIES = "unreadable entries"
SUPERVISION = "supervision"
PAST_LIMIT = "answers past the limit"

OWN_CHECKS: dict[str, Severity] = {
    FILES: "error",
    ENTRIES: "error",
    SUPERVISION: "error",
    PAST_LIMIT: "warning",
}
"""Checks made here, beside those of the audit."""

_SAID = {
    FILES: (
        "files that cannot be read, or not to their end: {}",
        "fetch or write them again; training stops at them",
    ),
    ENTRIES: (
        "entries that cannot be read as samples: {}",
        "repair them, or leave them out: --fix writes a copy without them, training leaves them "
        "out with skip_bad",
    ),
    SUPERVISION: (
        "samples whose supervised tokens are not the assistant's answers, each with its end of "
        "turn: {}",
        "the reason stands beside each; training stops at them, --fix leaves them out",
    ),
    PAST_LIMIT: (
        "samples of which nothing that is to be learnt lies within the limit: {}",
        "raise the limit, or shorten what stands before the answer: truncated, they teach nothing",
    ),
}
"""Check -> message, what to do."""

_INSTANCES = 5
_EXCERPT = 120
_REASON = 400
"""Characters."""
_WHERE = re.compile(r"(.+?):(\d+): ", re.DOTALL)
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}

Named = str | Path | Sequence[str | Path]
T = TypeVar("T")


def check(
    source: Named,
    *,
    valid: Named | None = None,
    tokenizer: Any | None = None,
    loss_on: LossOn = "completion",
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
    rank: int | None = None,
    words: Sequence[str] = (),
    ignore: Sequence[str] = (),
    skip_bad: bool = False,
    show: Callable[[Preview], None] | None = None,
    shown: int = 3,
    progress: Progress = silent,
) -> Audit:
    """Everything that is found in `source`; its texts are never held.

    With a tokenizer lengths are in tokens (else in characters), the supervision of every sample is
    verified, and `show` is called with `shown` samples: the shortest, the longest that fits, and
    evenly between. `max_length` is the training's limit, in the same unit. `valid` is the held-out
    data, in which overlap is looked for. `ignore` names checks whose findings are left out.

    What cannot be read ends nothing: an entry becomes an instance of the error "unreadable
    entries" (with `skip_bad`, where training would leave it out, of a warning), a file, or what
    remains of one, of "unreadable files". Raises DataError where there is no such data, or nothing
    in it can be read; ConfigError for an argument that makes no sense; TokenizerError where the
    tokenizer lacks what the data needs (a chat template).
    """
    _refuse(max_length, rank, shown, ignore)
    found, apart = _Found(skip_bad), _Found(skip_bad)
    seen = None
    if tokenizer is not None:
        seen = Supervision(tokenizer, max_length=max_length, loss_on=loss_on)
    held_out = None
    if valid is not None:
        held_out = stream_examples(valid, columns=columns, skip=apart.skip, progress=progress)
    result = audit(
        found.examples(source, columns, progress),
        source=described(source),
        held_out=held_out,
        measure=seen.measure if seen else None,
        unit="tokens" if seen else "characters",
        max_length=max_length,
        rank=rank,
        words=words,
        progress=progress,
    )
    if seen:
        found.take_over(seen)
        if show:
            for preview in seen.previews(shown):
                show(preview)
    return _complete(result, found, apart, ignore)


def numbered(read: Iterable[tuple[Origin, T]]) -> Iterator[tuple[Origin, T]]:
    """The same, with the origins of what shares a line told apart."""
    first: tuple[Origin, T] | None = None
    count = 0
    fault = None
    try:
        for origin, thing in read:
            if first is not None and origin == first[0]:
                if count == 1:
                    yield _numbered(origin, 1), first[1]
                count += 1
                yield _numbered(origin, count), thing
                continue
            if first is not None and count == 1:
                yield first
            first, count = (origin, thing), 1
    except DataError as error:
        fault = error
    if first is not None and count == 1:
        yield first
    if fault:
        raise fault


def with_faults(
    read: Iterable[tuple[Origin, T]], faults: list[DataError]
) -> Iterator[tuple[Origin, T | str]]:
    """What is read, and in its place each fault that was meanwhile added to `faults`, as its
    origin and the reason."""
    fault = None
    try:
        for origin, thing in read:
            yield from map(fault_place, faults)
            faults.clear()
            yield origin, thing
    except DataError as error:
        fault = error
    yield from map(fault_place, faults)
    if fault:
        raise fault


def place_of(origin: Origin, files: Container[str]) -> tuple[str, int, int]:
    """(File, line, number of the entry on that line; 0 where it is alone), for an origin in one of
    `files`."""
    if origin.file not in files:
        file, _, line = origin.file.rpartition(":")
        if file in files and line.isdecimal():
            return file, int(line), origin.line
    return origin.file, origin.line, 0


def fault_place(error: DataError, file: str = "") -> tuple[Origin, str]:
    """Where a fault is, and what it is without that; in `file` where it does not say."""
    message = str(error)
    if found := _WHERE.match(message):
        return Origin(found[1], int(found[2])), message[found.end() :]
    return Origin(file, 1), message.removeprefix(f"{file}: ")


class _Found:
    """What is found beside the audit, and the order in which files are read."""

    def __init__(self, skip_bad: bool) -> None:
        self.files: dict[str, int] = {}
        """File -> its place among the files."""
        self.dropped: list[Dropped] = []
        self._skip_bad = skip_bad
        self._personal = Personal()
        self._counts: dict[str, int] = {}
        self._instances: dict[str, list[Instance]] = {}

    def examples(
        self, source: Named, columns: Mapping[str, str] | None, progress: Progress
    ) -> Iterator[Example]:
        """All that can be read. Raises the first fault where nothing can."""
        first: FileFault | None = None
        read = 0
        for one in resolve(source):
            self.files.setdefault(str(one), len(self.files))
            name = "-" if isinstance(one, StandardInput) else one
            faults: list[DataError] = []
            examples = stream_examples(
                name if isinstance(name, Path) else str(name),
                columns=columns,
                skip=faults.append,
                progress=progress,
            )
            placed = ((example.origin, example) for example in examples)
            noted = len(self.dropped)
            try:
                for origin, thing in numbered(with_faults(placed, faults)):
                    if isinstance(thing, str):
                        self._note(ENTRIES, origin, thing)
                        continue
                    read += 1
                    yield thing if thing.origin == origin else replace(thing, origin=origin)
            except FileFault as error:
                first = first or error
                self._note(FILES, *fault_place(error, str(one)))
            except DataError:
                if len(self.dropped) == noted:  # else every entry of it was noted
                    raise
        if first and not read and ENTRIES not in self._counts:
            raise first

    def skip(self, error: DataError) -> None:
        """Take note of an entry that cannot be read."""
        self._note(ENTRIES, *fault_place(error))

    def take_over(self, seen: Supervision) -> None:
        """Take over what was found while encoding."""
        for origin, reason in seen.faults:
            self._note(SUPERVISION, origin, reason)
        for origin, reason in seen.past_limit:
            self._note(PAST_LIMIT, origin, reason, drop=False)

    def findings(self) -> Iterator[Finding]:
        """One for each check that has found something."""
        for check, (message, advice) in _SAID.items():
            count = self._counts.get(check, 0)
            if not count:
                continue
            severity = OWN_CHECKS[check]
            if check == ENTRIES and self._skip_bad:
                severity = "warning"
                advice = "training leaves them out (skip_bad); repair what should be learnt"
            message = message.format(f"{count:,}")
            yield Finding(check, severity, count, message, advice, tuple(self._instances[check]))

    def _note(self, check: str, origin: Origin, reason: str, *, drop: bool = True) -> None:
        self._counts[check] = self._counts.get(check, 0) + 1
        instances = self._instances.setdefault(check, [])
        reason = self._personal.hide(reason)  # it may quote the entry
        if len(instances) < _INSTANCES:
            instances.append(Instance(origin, _cut(reason, _EXCERPT)))
        if drop:
            self.dropped.append(Dropped(origin, check, _cut(reason, _REASON)))


def _complete(result: Audit, found: _Found, apart: _Found, ignore: Sequence[str]) -> Audit:
    """The audit with what was found beside it; each sample dropped once, in the data's order."""
    held_out = (
        replace(finding, message=f"in the held-out data, {finding.message}")
        for finding in apart.findings()
    )
    findings = [
        finding
        for finding in (*found.findings(), *held_out, *result.findings)
        if finding.check not in ignore
    ]
    dropped = [one for one in result.dropped if one.check not in ignore]
    places = {one.origin for one in dropped}
    for one in found.dropped:
        # what cannot be read is left out, ignored or not
        wanted = one.check not in ignore and one.origin not in places
        if wanted or one.check in (FILES, ENTRIES):
            dropped.append(one)

    def where(one: Dropped) -> tuple[int, int, int]:
        file, line, number = place_of(one.origin, found.files)
        return found.files.get(file, len(found.files)), line, number

    return replace(
        result,
        findings=tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity])),
        dropped=tuple(sorted(dropped, key=where)),
    )


def _refuse(max_length: int | None, rank: int | None, shown: int, ignore: Sequence[str]) -> None:
    if max_length is not None and max_length < 2:
        raise ConfigError(f"max_length should be at least 2, not {max_length}")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank should be at least 1, not {rank}")
    if shown < 0:
        raise ConfigError(f"the number of samples to show should be at least 0, not {shown}")
    known = {**OWN_CHECKS, **CHECKS}
    for name in ignore:
        if name not in known:
            listed = ", ".join(sorted(known))
            raise ConfigError(f"no check {name!r}{nearest(name, known)}; checks are: {listed}")


def _numbered(origin: Origin, number: int) -> Origin:
    return Origin(str(origin), number)


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
