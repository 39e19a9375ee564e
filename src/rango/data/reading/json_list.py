"""A JSON list, or objects one after the other that span lines: entry by entry, never whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from rango.data.faults import Faults, FileFault
from rango.data.reading.json_text import BROKEN, DECODER, at_end, malformed, unfinished
from rango.data.reading.stream import CHUNK, ESCAPED, HEAD, ByteStream, not_utf8
from rango.data.samples import Origin
from rango.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_OUTSIDE = re.compile(r'["\[\]{},]')
_INSIDE = re.compile(r'["\\]')


def list_entries(stream: ByteStream, faults: Faults) -> Iterator[tuple[int, Any]]:
    """The elements of a list, each with the line on which it begins.

    An element that doesn't parse is passed over by its brackets and quotes. Raises FileFault where
    that fails, or the list itself is broken: what follows can't be told apart.
    """
    window = _Window(stream)
    window.skip_space()
    window.move(window.at + 1)
    mark = window.skip_space()
    while mark != "]":
        line = window.line
        value, fault = window.value()
        if fault is None:
            yield line, value
        elif window.skip_value():
            faults.add(fault)
        else:
            raise FileFault(str(fault))
        mark = window.skip_space()
        if mark not in (",", "]"):
            raise window.unexpected("expected ',' or ']' in the JSON list")
        if mark == ",":
            window.move(window.at + 1)
            window.skip_space()
    window.move(window.at + 1)
    if window.skip_space():
        raise FileFault(f"{stream.name}:{window.line}: text after the end of the JSON list")


def object_entries(stream: ByteStream) -> Iterator[tuple[int, Any]]:
    """Objects one after the other, as pretty printers write them, with the lines on which they
    begin. Raises FileFault at the first that doesn't parse."""
    window = _Window(stream)
    while window.skip_space():
        line = window.line
        value, fault = window.value()
        if fault is not None:
            raise FileFault(str(fault))
        yield line, value


def spans_lines(head: bytes) -> bool:
    """Whether a file that begins so, with an object, has objects that span lines."""
    first, _, rest = head.lstrip().partition(b"\n")
    if not rest.strip():
        return False
    line = first.decode(errors="replace")
    try:
        DECODER.decode(line)
        return False
    except BROKEN:
        pass
    text = line + "\n" + rest.decode(errors="replace").rstrip()
    try:
        _, end = DECODER.raw_decode(text)
        return end > len(line)
    except BROKEN as error:
        return at_end(error, text) if len(head) < HEAD else unfinished(error, text)


class _Window:
    """A piece of a file's text that moves on as it is read.

    text[at] comes next; growing drops what was passed, and keeps `at` on the same character.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decode = decoder.decode
        self._ended = False
        self._damaged = False
        self._passed = 0  # characters dropped of the line on which the text begins
        self.text = ""
        self.at = 0
        self.line = stream.line

    def grow(self) -> bool:
        """Read on, at least as much as is waiting. False at the end."""
        if self._ended:
            return False
        waiting = len(self.text) - self.at
        data = self._stream.read(min(max(CHUNK, waiting), self._stream.longest + 1))
        more = self._decode(data, not data)
        self._ended = not data
        if not (data or more):
            return False
        self._damaged = self._damaged or (not more.isascii() and bool(ESCAPED.search(more)))
        self._passed = self._column(self.at) - 1
        self.text = self.text[self.at :] + more
        self.at = 0
        return True

    def move(self, to: int) -> None:
        """Pass over what stands before that place."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def skip_space(self) -> str:
        """Move to the next character that isn't white space, and return it; "" at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.move(space.end() if space else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def value(self) -> tuple[Any, DataError | None]:
        """The value that begins here, passed over; or its fault, and nothing passed over."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except BROKEN as error:
                if not unfinished(error, self.text):
                    return None, self._malformed(error)
                if len(self.text) - self.at > self._stream.longest:
                    return None, self._too_long()
                if not self.grow():
                    return None, self._malformed(error)
                continue
            if end < len(self.text) or not self.grow():  # else a number may go on
                break
        if end - self.at > self._stream.longest:
            return None, self._too_long()
        if self._damaged and (escaped := ESCAPED.search(self.text, self.at, end)):
            return None, self._not_utf8(escaped.start())
        self.move(end)
        return value, None

    def skip_value(self) -> bool:
        """Move past a value that doesn't parse, to the ',' or ']' after it; False at the end."""
        depth, quoted = 0, False
        while True:
            found = (_INSIDE if quoted else _OUTSIDE).search(self.text, self.at)
            if found is None:
                self.move(len(self.text))
                if not self.grow():
                    return False
                continue
            mark = found.group()
            if depth == 0 and not quoted and mark in ",]":
                self.move(found.start())
                return True
            self.move(found.end())
            if mark == '"':
                quoted = not quoted
            elif mark == "\\":
                if self.at == len(self.text) and not self.grow():
                    return False
                self.move(min(self.at + 1, len(self.text)))
            else:
                depth = max(0, depth + (1 if mark in "[{" else -1 if mark in "]}" else 0))

    def unexpected(self, expected: str) -> FileFault:
        """The fault of what stands here, which is not what was expected."""
        if self.at < len(self.text) and ESCAPED.match(self.text, self.at):
            return FileFault(str(self._not_utf8(self.at)))
        found = repr(self.text[self.at : self.at + 1])
        if self.at >= len(self.text):
            found = "the end of the file (is it cut short?)"
        return FileFault(f"{self._stream.name}:{self.line}: {expected}, found {found}")

    def _malformed(self, error: Exception) -> DataError:
        place = error.pos if isinstance(error, json.JSONDecodeError) else self.at
        if place < len(self.text) and ESCAPED.match(self.text, place):
            return self._not_utf8(place)
        origin = Origin(self._stream.name, self._line(place))
        return malformed(error, origin, self._column(place), self.text)

    def _not_utf8(self, place: int) -> DataError:
        byte = ord(self.text[place]) - 0xDC00
        where = f"at column {self._column(place)}"
        return not_utf8(byte, self._stream.name, self._line(place), where)

    def _too_long(self) -> DataError:
        return DataError(
            f"{self._stream.name}:{self.line}: an entry over the limit of "
            f"{self._stream.longest:,} bytes; split it"
        )

    def _line(self, place: int) -> int:
        return self.line + self.text.count("\n", self.at, place)

    def _column(self, place: int) -> int:
        begin = self.text.rfind("\n", 0, place) + 1
        return place - begin + 1 + (0 if begin else self._passed)
