"""What a file is, seen from its content, and its entries.

Only plain text is known by its name: by content it could be anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rango.data.faults import Faults, FileFault
from rango.data.reading.arrow import arrow_stream_table, arrow_table, parquet_table
from rango.data.reading.columns import Columns
from rango.data.reading.formats import Format
from rango.data.reading.json_lines import line_entries
from rango.data.reading.json_list import list_entries, object_entries, spans_lines
from rango.data.reading.sources import CSV_SUFFIXES, TEXT_SUFFIXES, suffix_of
from rango.data.reading.stream import HEAD, ByteStream
from rango.data.reading.tables import DELIMITERS, Table, csv_names, csv_table
from rango.data.reading.text import paragraphs
from rango.data.samples import Origin
from rango.errors import DataError

EXPECTED = (
    "expected JSON Lines, a JSON list, CSV, Parquet or Arrow, of entries with 'messages'; "
    "'conversations'; 'instruction' and 'output'; 'prompt' and 'completion'; 'text' and 'label'; "
    "or 'text'"
)

_UTF8_MARK = b"\xef\xbb\xbf"
_TABLES = {
    b"PAR1": parquet_table,
    b"ARROW1": arrow_table,
    b"\xff\xff\xff\xff": arrow_stream_table,
}
_REFUSED = {
    b"\xff\xfe": "encoded as UTF-16; save it as UTF-8",
    b"\xfe\xff": "encoded as UTF-16; save it as UTF-8",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or save the table as CSV",
    b"\xfd7zXZ\0": "compressed with xz; decompress it first (gzip alone is read as it is)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it first (gzip alone is read as it is)",
    b"BZh9": "compressed with bzip2; decompress it first (gzip alone is read as it is)",
    b"FEA1": "Feather of version 1; write it as version 2, or as Parquet",
}
"""Beginnings of files that can't be read, and what to do about them."""


@dataclass(frozen=True)
class Contents:
    """The entries of a file, each with its line or row."""

    entries: Iterator[tuple[int, Any]]
    format: Format | None = None
    """Where it is known without them: of a table, from the names of its columns."""
    plain: bool = False
    """Plain text, whose entries have no columns of their own."""


def contents(stream: ByteStream, columns: Columns, faults: Faults) -> Contents:
    """What the file holds. Raises FileFault where that can't be known or read."""
    head = stream.peek(HEAD)
    for mark, fault in _REFUSED.items():
        if head.startswith(mark):
            raise FileFault(f"{stream.name}: {fault}")
    suffix = suffix_of(stream.name)
    if suffix not in TEXT_SUFFIXES:
        for mark, table in _TABLES.items():
            if head.startswith(mark):
                return _table(table(stream, columns.needs, faults), stream, columns)
    head = _past_mark(stream)
    if suffix in TEXT_SUFFIXES:
        return Contents(paragraphs(stream, faults), plain=True)
    head = _past_blanks(stream, head)
    start = head.lstrip()[:1]
    if start == b"[":
        return Contents(list_entries(stream, faults))
    if start == b"{" and spans_lines(head):
        return Contents(object_entries(stream))
    if start in (b"{", b""):
        return Contents(line_entries(stream, faults))
    if delimiter := _delimiter(head, suffix, stream, columns):
        return _table(csv_table(stream, delimiter, faults), stream, columns)
    line = stream.line + head[: len(head) - len(head.lstrip())].count(b"\n")
    shown = repr(head.lstrip()[:20].decode(errors="replace"))
    raise FileFault(
        f"{stream.name}:{line}: neither JSON nor any other kind of data that is known (it starts "
        f"with {shown}); {EXPECTED}. Plain text needs a name ending in {', '.join(TEXT_SUFFIXES)}"
    )


def is_read_by_arrow(stream: ByteStream) -> bool:
    """Whether its beginning is that of a table which pyarrow reads."""
    return stream.peek(HEAD).startswith(tuple(_TABLES))


def is_json_lines(stream: ByteStream) -> bool:
    """Whether entries are lines of JSON, as `contents` sees it; reads on where blanks are."""
    if suffix_of(stream.name) in TEXT_SUFFIXES:
        return False
    head = _past_blanks(stream, _past_mark(stream))
    start = head.lstrip()[:1]
    return not start or (start == b"{" and not spans_lines(head))


def _table(table: Table, stream: ByteStream, columns: Columns) -> Contents:
    names, rows = table
    try:
        format = columns.header(names, Origin(stream.name, stream.line))
    except DataError as error:
        raise FileFault(str(error)) from error
    return Contents(rows, format)


def _past_mark(stream: ByteStream) -> bytes:
    """What comes next, past a byte-order mark."""
    head = stream.peek(HEAD)
    if not head.startswith(_UTF8_MARK):
        return head
    stream.read(len(_UTF8_MARK))
    return stream.peek(HEAD)  # a whole head: a shorter one would be taken for all there is


def _past_blanks(stream: ByteStream, head: bytes) -> bytes:
    """What comes next, past blanks of more than a head's length."""
    while head and not head.strip():
        following = stream.peek(2 * len(head))[len(head) :]
        if not following:
            break
        stream.line += stream.read(len(head)).count(b"\n")
        head = following
    return head


def _delimiter(head: bytes, suffix: str, stream: ByteStream, columns: Columns) -> str | None:
    """What separates the cells of a table; None where this isn't one.

    By name it is one in any case; else where its first line names the columns of a format.
    """
    first = head.lstrip().split(b"\n", 1)[0]
    found = {delimiter: csv_names(first, delimiter) for delimiter in DELIMITERS}
    for delimiter, names in found.items():
        if len(names) > 1:
            try:
                columns.header(names, Origin(stream.name, stream.line))
                return delimiter
            except DataError:
                continue
    if suffix in CSV_SUFFIXES:
        return max(found, key=lambda delimiter: len(found[delimiter]))
    return None
