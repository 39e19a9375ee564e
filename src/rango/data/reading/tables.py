"""CSV: the first row names the columns, a row is an entry."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from rango.data.faults import Faults, FileFault
from rango.data.reading.stream import ESCAPED, ByteStream, not_utf8
from rango.errors import DataError

DELIMITERS = (",", ";", "\t")

Table = tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]
"""Names of the columns; rows, each with its number."""


def csv_names(line: bytes, delimiter: str) -> list[str]:
    """The names that a first line gives to the columns; none where it can't be one."""
    text = line.decode(errors="surrogateescape")
    if "\0" in text:
        return []
    try:
        return [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])]
    except csv.Error:
        return []


def csv_table(stream: ByteStream, delimiter: str, faults: Faults) -> Table:
    """The rows, each with the line on which it begins; all cells are strings.

    A row with a cell too many or too few, a damaged or an overlong line is noted as a fault.
    Raises FileFault where quotes are wrong: rows can't be told apart after that.
    """
    records = _records(stream, delimiter, faults)
    _, names = next(records, (1, []))
    names = [name.strip() for name in names]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise FileFault(f"{stream.name}:1: two columns have the name {min(twice)!r}; rename one")
    return names, _rows(records, names, stream.name, faults)


def _rows(
    records: Iterator[tuple[int, list[str]]], names: list[str], file: str, faults: Faults
) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, cells in records:
        if len(cells) != len(names):
            faults.add(
                DataError(
                    f"{file}:{line}: {len(cells)} cells where the first row names {len(names)} "
                    "columns; put quotes around cells that hold the delimiter or a line end"
                )
            )
        elif fault := _damage(cells, names, file, line):
            faults.add(fault)
        else:
            yield line, dict(zip(names, cells, strict=True))


def _records(stream: ByteStream, delimiter: str, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    lines = _Lines(stream, faults)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin = 0
        # the limit on a cell belongs to the whole process, so it is put back after every row
        limit = csv.field_size_limit(stream.longest)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise FileFault(
                f"{stream.name}:{lines.begin}: malformed CSV in the row that begins here: {error}; "
                "a quote within a quoted cell is written twice, and every quote is closed"
            ) from error
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if cells and not lines.broken:
            yield lines.begin, cells


class _Lines:
    """The lines of a stream as text, and where the row that they make up began."""

    def __init__(self, stream: ByteStream, faults: Faults) -> None:
        self._lines = stream.lines(faults)
        self.begin = 0
        """Line on which the row begins; set to 0 before a new one."""
        self.broken = False
        """Whether a line within the row was too long."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        for number, line in self._lines:
            if not self.begin:
                self.broken = False
            if line is None:
                self.broken = bool(self.begin)
                continue
            self.begin = self.begin or number
            return line.decode(errors="surrogateescape")
        raise StopIteration


def _damage(cells: list[str], names: list[str], file: str, line: int) -> DataError | None:
    """The fault of a row that no UTF-8 text could hold."""
    joined = "".join(cells)
    if "\0" not in joined and (joined.isascii() or not ESCAPED.search(joined)):
        return None
    for name, cell in zip(names, cells, strict=True):
        if "\0" in cell:
            return DataError(f"{file}:{line}: a NUL byte in column {name!r}; repair or remove it")
        if escaped := ESCAPED.search(cell):
            return not_utf8(ord(escaped.group()) - 0xDC00, file, line, f"in column {name!r}")
    return None
