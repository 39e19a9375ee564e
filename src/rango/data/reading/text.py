"""Plain text: a sample a paragraph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rango.data.faults import Faults
from rango.data.reading.stream import ByteStream, line_text
from rango.errors import DataError


def paragraphs(stream: ByteStream, faults: Faults) -> Iterator[tuple[int, Any]]:
    """Each paragraph as an entry, with the line on which it begins; blank lines separate them.

    One with a fault in it is left out whole.
    """
    begin, size, whole = 0, 0, True
    gathered: list[str] = []
    for number, line in stream.lines(faults):
        text = None
        try:
            text = None if line is None else line_text(line, stream.name, number)
        except DataError as error:
            faults.add(error)
        if text is None:
            gathered, whole = [], False
        elif text.strip():
            begin = begin or number
            size += len(text) + 1
            if whole and size > stream.longest:
                faults.add(
                    DataError(
                        f"{stream.name}:{begin}: a paragraph over the limit of "
                        f"{stream.longest:,} bytes; separate paragraphs by blank lines"
                    )
                )
                gathered, whole = [], False
            if whole:
                gathered.append(text)
        else:
            if gathered:
                yield begin, {"text": "\n".join(gathered)}
            begin, size, whole, gathered = 0, 0, True, []
    if gathered:
        yield begin, {"text": "\n".join(gathered)}
