"""What the examples of a source are known by: the bytes of its files, and how they are read."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rango.data import samples, split
from rango.data.faults import FileFault
from rango.data.reading.contents import is_read_by_arrow
from rango.data.reading.sources import Named, resolve
from rango.data.reading.stream import opened
from rango.errors import DataError
from rango.files.digests import file_digest, json_digest

Stamps = list[tuple[str, int, int, int, int]]
"""Of each file in order: name, device, inode, size in bytes, time of its last change in ns."""


class Identity:
    """A digest of all that decides which examples come, and in what order."""

    def __init__(self, source: Named, stamps: Stamps, reading: Mapping[str, Any]) -> None:
        """Reads the files once. Raises OSError, FileFault."""
        self._source = source
        self._stamps = stamps
        paths = [Path(stamp[0]) for stamp in stamps]
        files = [[str(path), file_digest(path)] for path in paths]
        deciding = {"files": files, "reading": reading, "code": _code(), **_libraries(paths)}
        self.digest = json_digest(deciding)

    def unchanged(self) -> bool:
        """Whether the files are still those that were digested, as far as the system tells."""
        try:
            return _stamps(self._source) == self._stamps
        except DataError:  # they are gone
            return False


def identify(source: Named, reading: Mapping[str, Any]) -> Identity | None:
    """The identity of what is read from a source in this way (`reading`: JSON values).

    None for what is read only once or changes unseen: standard input, a pipe, the Hub; and for a
    file that cannot be read, of which reading tells more. Raises DataError as `resolve` does.
    """
    stamps = _stamps(source)
    if stamps is None:
        return None
    try:
        return Identity(source, stamps, reading)
    except (OSError, FileFault):
        return None


def _stamps(source: Named) -> Stamps | None:
    """None unless all of it are files that can be read again."""
    found: Stamps = []
    for one in resolve(source):
        if not isinstance(one, Path):
            return None
        try:
            facts = one.stat()
        except OSError:
            return None
        if not stat.S_ISREG(facts.st_mode):
            return None
        found.append((str(one), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))
    return found


def _code() -> Sequence[str]:
    """Digests of the modules that make examples of bytes, and hold some of them out."""
    beside = sorted(Path(__file__).parent.glob("*.py"))
    return [file_digest(path) for path in (*beside, Path(samples.__file__), Path(split.__file__))]


def _libraries(paths: Iterable[Path]) -> dict[str, str]:
    """The version of pyarrow, where one of the files needs it and it is there."""
    for path in paths:
        with opened(path) as stream:
            needed = is_read_by_arrow(stream)
        if needed:
            with suppress(PackageNotFoundError):
                return {"pyarrow": version("pyarrow")}
    return {}
