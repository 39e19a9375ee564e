"""The bytes of a data file, once from first to last, with a look ahead; never held whole."""

from __future__ import annotations

import gzip
import io
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from rango.data.faults import Faults, FileFault
from rango.data.reading.sources import StandardInput
from rango.errors import DataError

CHUNK = 1 << 20
"""Bytes read at once."""
LONGEST = 64 << 20
"""Bytes that a line, an entry or a paragraph may have; a longer one is refused, not held."""
HEAD = 1 << 16
"""Bytes from which a file is recognised."""
ESCAPED = re.compile("[\udc80-\udcff]")
"""Bytes that are no UTF-8, as the error handler surrogateescape passes them on."""
_GZIP = b"\x1f\x8b"


@contextmanager
def opened(source: Path | StandardInput) -> Iterator[ByteStream]:
    """The stream of a file, through gzip if need be. Raises FileFault where it can't be read."""
    if isinstance(source, StandardInput):
        if sys.stdin is None:
            raise FileFault(f"{source}: this process has no standard input; give a file")
        yield ByteStream(str(source), sys.stdin.buffer)
        return
    try:
        file = source.open("rb", buffering=0)
    except OSError as error:
        raise FileFault(f"{source}: cannot be read: {error}") from error
    with file:
        yield ByteStream(str(source), file, source, os.fstat(file.fileno()).st_size)


class ByteStream:
    """Bytes in order, of which the next ones can be seen before they are read."""

    def __init__(self, name: str, file: Any, path: Path | None = None, size: int = 0) -> None:
        self.name = name
        self.path = path
        """Where these very bytes lie; None for standard input and what is compressed."""
        self.size = size
        """Bytes of the file; 0 where that isn't known."""
        self.position = 0
        """How many of them were read."""
        self.line = 1
        """Line on which the next byte stands, before the first is read."""
        self.longest = LONGEST
        self._reader: io.BufferedReader[Any] = io.BufferedReader(
            _Guarded(file, name, self._count), CHUNK
        )
        if self.peek(len(_GZIP)) == _GZIP:
            self.path = None
            inflated = gzip.GzipFile(fileobj=self._reader)
            self._reader = io.BufferedReader(_Guarded(inflated, name), CHUNK)

    def read(self, size: int) -> bytes:
        """The next bytes; fewer than `size` only at the end. Raises FileFault."""
        return self._reader.read(size)

    def peek(self, size: int) -> bytes:
        """What read() would give, without reading it."""
        data = self._reader.read(size)
        self._reader = io.BufferedReader(_Rejoined(data, self._reader), CHUNK)
        return data

    @property
    def reader(self) -> io.BufferedReader[Any]:
        """The rest as a file."""
        return self._reader

    def lines(self, faults: Faults) -> Iterator[tuple[int, bytes | None]]:
        """Each line with its number and its end; None for one that is too long to be held, which
        is noted as a fault."""
        limit = self.longest
        for number in count(self.line):
            line: bytes | None = self._reader.readline(limit + 1)
            if not line:
                return
            if len(line) > limit and not line.endswith(b"\n"):
                length, line = len(line), None
                length += self._pass_line()
                faults.add(
                    DataError(
                        f"{self.name}:{number}: a line of {length:,} bytes, over the limit of "
                        f"{limit:,}; split it, or check that entries end in line ends"
                    )
                )
            yield number, line

    def _pass_line(self) -> int:
        """Read to the end of the line; how many bytes that was."""
        length = 0
        while piece := self._reader.readline(CHUNK):
            length += len(piece)
            if piece.endswith(b"\n"):
                break
        return length

    def _count(self, size: int) -> None:
        self.position += size


def line_text(line: bytes, file: str, number: int) -> str:
    """The text of a line, without its end.

    Raises DataError where it is not UTF-8 or holds a NUL byte, which no text does.
    """
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    if (nul := line.find(b"\0")) >= 0:
        raise DataError(
            f"{file}:{number}: a NUL byte at column {nul + 1}; repair or remove it, and save the "
            "file as UTF-8 text"
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        column = len(line[: error.start].decode()) + 1
        raise not_utf8(line[error.start], file, number, f"at column {column}") from error


def not_utf8(byte: int, file: str, line: int, where: str) -> DataError:
    """The fault of a byte that no UTF-8 text has there."""
    return DataError(
        f"{file}:{line}: not UTF-8 (byte 0x{byte:02x} {where}); save the file as UTF-8"
    )


class _Guarded(io.RawIOBase):
    """Reads from another file, and names it when that fails."""

    def __init__(
        self, file: Any, name: str, counted: Callable[[int], None] = lambda size: None
    ) -> None:
        self._fill = getattr(file, "readinto1", None) or file.readinto
        self._name = name
        self._counted = counted

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            size = int(self._fill(buffer) or 0)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FileFault(
                f"{self._name}: damaged gzip data (is it cut short?): {error}"
            ) from error
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise FileFault(f"{self._name}: cannot be read: {error}") from error
        self._counted(size)
        return size


class _Rejoined(io.RawIOBase):
    """Bytes that were already read, then the rest of their file."""

    def __init__(self, head: bytes, rest: io.BufferedReader[Any]) -> None:
        self._head = memoryview(head)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return self._rest.readinto1(buffer)
        size = min(len(buffer), len(self._head))
        buffer[:size] = self._head[:size]
        self._head = self._head[size:]
        return size
