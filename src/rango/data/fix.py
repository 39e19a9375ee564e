"""A cleaned copy of data, and a log of each entry that it leaves out.

The original is only read. JSON Lines keep their lines byte for byte, in their order; of any other
format the entries are written as JSON Lines, as they were, with every column. Together the copy
and the log account for every entry of the original.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rango.data.audit.result import Audit, Dropped
from rango.data.check import ENTRIES, FILES, numbered, place_of, with_faults
from rango.data.faults import Faults, FileFault
from rango.data.reading.columns import Columns
from rango.data.reading.contents import contents, is_json_lines
from rango.data.reading.sources import described, resolve
from rango.data.reading.stream import ByteStream, opened
from rango.data.samples import Origin
from rango.errors import ConfigError, DataError
from rango.files.atomic import atomic_directory, atomic_file, refuse_existing
from rango.progress import Progress, silent

_PLAIN = (".jsonl", ".json", ".ndjson")
"""Names that a copy in JSON Lines may have; another would be taken for something else."""

Named = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Fixed:
    """What was written."""

    out: str
    """The cleaned copy: a file for a file, else a folder with a file for each."""
    log: str
    """JSON Lines: file, line (entry, where several begin on one line), check and reason of each
    entry left out."""
    kept: int
    dropped: int


def refuse_fix(source: Named, out: str | Path) -> None:
    """Raise what write_fixed would, before any work: ConfigError where the source can't be read
    twice or the copy has no good name; OutputExistsError."""
    _plan(source, Path(out))


def write_fixed(
    source: Named,
    audit: Audit,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Fixed:
    """Write the source without what `audit` found it should do without (`audit.dropped`), and
    OUT.dropped.jsonl, a line for each entry that is left out.

    One file gives one file; anything else a folder with the same names (.jsonl added where the
    format changes), in which a file of which nothing is kept is missing. Both appear whole or not
    at all. Raises OutputExistsError; StorageError; ConfigError as refuse_fix does; DataError where
    the source is no longer what was checked, or nothing is left of it.
    """
    plan = _plan(source, Path(out))
    leave = {str(path): list[Dropped]() for path in plan.files}
    for one in audit.dropped:
        file, _, _ = place_of(one.origin, leave)
        if file in leave:  # else it is in the held-out data
            leave[file].append(one)
    names = _EveryColumn(columns)
    kept = 0
    # the log is in place before the copy is
    with _committed(plan) as working, atomic_file(plan.log) as log_path:
        with open(log_path, "wb") as log:
            for path, name in plan.files.items():
                target = working / name if plan.folder else working
                copied = _Copy(path, leave[str(path)])
                copied.write(target, names)
                kept += copied.count
                log.writelines(_logged(one, str(path)) for one in leave[str(path)])
                progress("fix", kept, max(kept, audit.samples), "samples")
        _account(described(source), audit, kept, leave)
    return Fixed(str(plan.out), str(plan.log), kept, sum(map(len, leave.values())))


@dataclass(frozen=True)
class _Plan:
    """Which file becomes which."""

    files: dict[Path, str]
    """File of the source -> name of its copy, within the folder."""
    folder: bool
    out: Path
    log: Path


def _plan(source: Named, out: Path) -> _Plan:
    files: list[Path] = []
    for one in resolve(source):
        if not isinstance(one, Path):
            raise ConfigError(
                f"--fix reads the data a second time, and {one} is no file: write it to one first"
            )
        files.append(one)
    log = out.with_name(f"{out.name}.dropped.jsonl")
    for path in (out, log):
        refuse_existing(path, "choose another path for the cleaned copy")
    if isinstance(source, (str, Path)) and Path(source).is_file():
        if out.suffix.lower() not in _PLAIN or out.is_dir():
            raise ConfigError(
                f"--fix {out}: the cleaned copy of a file is a file of JSON Lines; give it a name "
                f"that ends in {', '.join(_PLAIN)}"
            )
        return _Plan({files[0]: out.name}, False, out, log)
    whole = isinstance(source, (str, Path)) and Path(source).is_dir()
    parents = [path.absolute().parent for path in files]
    root = Path(str(source)).absolute() if whole else Path(os.path.commonpath(parents))
    if whole and out.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"--fix {out}: lies in the folder that is checked, and would become part of the data; "
            "choose another place"
        )
    names = [_name(path, root) for path in files]
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"--fix {out}: two files would be written as {name!r}; rename one")
    return _Plan(dict(zip(files, names, strict=True)), True, out, log)


def _name(path: Path, root: Path) -> str:
    """The name of a file's copy; .jsonl is added where the format changes."""
    name = path.absolute().relative_to(root).as_posix().removesuffix(".gz")
    return name if Path(name).suffix.lower() in _PLAIN else f"{name}.jsonl"


def _committed(plan: _Plan) -> AbstractContextManager[Path]:
    return atomic_directory(plan.out) if plan.folder else atomic_file(plan.out)


class _EveryColumn(Columns):
    """The names that were given, with the values of all columns read."""

    def needs(self, name: str) -> bool:
        """Every column's values are written."""
        return True


class _Copy:
    """One file without what is to be left out."""

    def __init__(self, path: Path, leave: Sequence[Dropped]) -> None:
        self.count = 0
        """Entries kept."""
        self._path = path
        self._name = str(path)
        self._leave = {self._place(one.origin) for one in leave if one.check != FILES}
        self._unmet = set(self._leave)
        self._broken = any(one.check == FILES for one in leave)

    def write(self, target: Path, columns: Columns) -> None:
        """Write it; nothing where nothing is kept. Raises DataError where the file is not what was
        checked."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            try:
                with opened(self._path) as beginning:
                    by_line = is_json_lines(beginning)
                with opened(self._path) as stream:
                    entries = self._lines(stream) if by_line else self._entries(stream, columns)
                    file.writelines(self._kept(entries))
            except FileFault:
                if not self._broken:
                    raise
        if self._unmet:
            raise _changed(f"{self._path}:{min(self._unmet)[0]}")
        if not self.count:
            target.unlink()

    def _kept(self, entries: Iterator[tuple[Origin, bytes | str]]) -> Iterator[bytes]:
        """The lines of the copy; a string among the entries stands for one that can't be read."""
        for origin, entry in entries:
            place = self._place(origin)
            if isinstance(entry, bytes) and _blank(entry):
                yield entry
            elif place in self._leave:
                self._unmet.discard(place)
            elif isinstance(entry, bytes):
                self.count += 1
                yield entry
            else:
                raise _changed(str(origin))

    def _lines(self, stream: ByteStream) -> Iterator[tuple[Origin, bytes | str]]:
        for number, line in stream.lines(Faults(self._name, skip=_pass)):
            yield Origin(self._name, number), "too long to be held" if line is None else line

    def _entries(
        self, stream: ByteStream, columns: Columns
    ) -> Iterator[tuple[Origin, bytes | str]]:
        """Every entry as a line, with the origins that check gave them."""
        faults: list[DataError] = []
        found = contents(stream, columns, Faults(self._name, skip=faults.append))
        lines = ((Origin(self._name, line), _json_line(entry)) for line, entry in found.entries)
        return numbered(with_faults(lines, faults))

    def _place(self, origin: Origin) -> tuple[int, int]:
        """(Line, number on the line)."""
        _, line, number = place_of(origin, (self._name,))
        return line, number


def _account(source: str, audit: Audit, kept: int, leave: Mapping[str, Sequence[Dropped]]) -> None:
    """Raise DataError unless what was kept and what was left out are all there was."""
    every = [one for of_file in leave.values() for one in of_file]
    readable = sum(one.check not in (FILES, ENTRIES) for one in every)
    if kept + readable != audit.samples:
        raise _changed(source)
    if not kept:
        raise DataError(f"{source}: no sample would be left, so no cleaned copy was written")


def _changed(where: str) -> DataError:
    return DataError(f"{where}: changed since it was checked; check it again")


def _blank(line: bytes) -> bool:
    if line[:1] == b"{":
        return False
    text = line.decode(errors="replace").removeprefix("\ufeff")
    return not text or text.isspace()


def _logged(one: Dropped, file: str) -> bytes:
    _, line, number = place_of(one.origin, (file,))
    place = {"file": file, "line": line} | ({"entry": number} if number else {})
    return _json_line(place | {"check": one.check, "reason": one.reason})


def _json_line(value: Any) -> bytes:
    """A value as a line; what JSON has no word for as text, a number that isn't finite as null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # halves of characters as \udXXX


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pass(error: DataError) -> None:
    """The fault was told when the data was checked."""
