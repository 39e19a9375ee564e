"""JSON Lines: an entry a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rango.data.faults import Faults
from rango.data.reading.json_text import parse_json
from rango.data.reading.stream import ByteStream, line_text
from rango.data.samples import Origin
from rango.errors import DataError

_MARK = "\ufeff"


def line_entries(stream: ByteStream, faults: Faults) -> Iterator[tuple[int, Any]]:
    """Each entry with its line; blank lines are passed over.

    A byte-order mark may stand before any line, as files put together have it.
    """
    for number, line in stream.lines(faults):
        if line is None:
            continue
        try:
            text = line_text(line, stream.name, number).removeprefix(_MARK)
            if not text or text.isspace():
                continue
            entry = parse_json(text, Origin(stream.name, number))
        except DataError as error:
            faults.add(error)
            continue
        yield number, entry
