"""Parquet and Arrow: a row is an entry, read by record batch, only the columns that are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rango.data.extras import extra
from rango.data.faults import Faults, FileFault
from rango.data.reading.stream import CHUNK, ByteStream
from rango.data.reading.tables import Table
from rango.errors import DataError

_ROWS = 1024
"""Most rows that become Python objects at once."""
_BYTES = 16 << 20
"""About as many bytes of a Parquet file are decoded at once, if a row isn't larger."""

Wanted = Callable[[str], bool]
"""Whether a column's values are needed."""


def parquet_table(stream: ByteStream, wanted: Wanted, faults: Faults) -> Table:
    """The rows of a Parquet file. Raises FileFault where it is damaged or cut short."""
    if stream.path is None:
        raise _needs_a_file(stream, "Parquet")
    parquet = extra("pyarrow.parquet", "a Parquet file")
    try:
        # a buffered, unforeseeing reader holds a few pages rather than a whole row group
        file = parquet.ParquetFile(str(stream.path), buffer_size=CHUNK, pre_buffer=False)
        names = list(file.schema_arrow.names)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        size = sum(max(0, group.total_byte_size) for group in groups)
        total = file.metadata.num_rows
    except _damage() as error:
        raise _damaged(stream, "Parquet", error) from error
    chosen = _chosen(names, wanted, stream)
    rows = max(1, min(_ROWS, _BYTES * max(1, total) // max(1, size)))

    def batches() -> Iterator[Any]:
        with file:
            yield from file.iter_batches(batch_size=rows, columns=chosen)

    return names, _rows(_moving(batches(), stream, total), names, chosen, stream, faults)


def arrow_table(stream: ByteStream, wanted: Wanted, faults: Faults) -> Table:
    """The rows of an Arrow file (Feather version 2). Raises FileFault as parquet_table does."""
    if stream.path is None:
        raise _needs_a_file(stream, "The file format of Arrow")
    arrow = extra("pyarrow", "an Arrow file")
    ipc = extra("pyarrow.ipc", "an Arrow file")
    try:
        # mapped, not read: one batch may be the whole table
        reader = ipc.open_file(arrow.memory_map(str(stream.path)))
        names, count = list(reader.schema.names), int(reader.num_record_batches)
    except _damage() as error:
        raise _damaged(stream, "Arrow", error) from error

    def batches() -> Iterator[Any]:
        for index in range(count):
            stream.position = stream.size * index // count
            yield reader.get_batch(index)

    return names, _rows(batches(), names, _chosen(names, wanted, stream), stream, faults)


def arrow_stream_table(stream: ByteStream, wanted: Wanted, faults: Faults) -> Table:
    """The rows of an Arrow stream, as `datasets` stores them. Raises FileFault likewise."""
    arrow = extra("pyarrow", "an Arrow stream")
    ipc = extra("pyarrow.ipc", "an Arrow stream")
    try:
        mapped = arrow.memory_map(str(stream.path)) if stream.path else None
        reader = ipc.open_stream(mapped or stream.reader)
        names = list(reader.schema.names)
    except _damage() as error:
        raise _damaged(stream, "Arrow", error) from error

    def batches() -> Iterator[Any]:
        for batch in reader:
            if mapped:
                stream.position = mapped.tell()
            yield batch

    return names, _rows(batches(), names, _chosen(names, wanted, stream), stream, faults)


def _rows(
    batches: Iterator[Any], names: list[str], chosen: list[str], stream: ByteStream, faults: Faults
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number; columns that aren't needed are None in it."""
    blank = dict.fromkeys(names)
    damage = _damage()
    row = 0
    while True:
        try:
            batch = next(batches, None)
            if batch is not None:
                batch.validate()
                batch = batch.select(chosen)
        except damage as error:
            raise FileFault(
                f"{stream.name}:{row + 1}: damaged from this row on (is it cut short?): {error}"
            ) from error
        if batch is None:
            return
        for begin in range(0, batch.num_rows, _ROWS):
            for entry in _entries(batch.slice(begin, _ROWS), damage):
                row += 1
                if isinstance(entry, dict):
                    yield row, {**blank, **entry}
                else:
                    faults.add(DataError(f"{stream.name}:{row}: a damaged row: {entry}"))


def _entries(batch: Any, damage: tuple[type[Exception], ...]) -> list[dict[str, Any] | Exception]:
    """A dictionary for each row, or what is wrong with it."""
    try:
        batch.validate(full=True)
        return list(batch.to_pylist())
    except damage as error:
        if batch.num_rows == 1:
            return [error]
    return [entry for i in range(batch.num_rows) for entry in _entries(batch.slice(i, 1), damage)]


def _moving(batches: Iterator[Any], stream: ByteStream, total: int) -> Iterator[Any]:
    """The same batches; the stream's position moves with them."""
    done = 0
    for batch in batches:
        done += batch.num_rows
        stream.position = stream.size * done // max(1, total)
        yield batch


def _chosen(names: list[str], wanted: Wanted, stream: ByteStream) -> list[str]:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise FileFault(f"{stream.name}: two columns have the name {min(twice)!r}; rename one")
    return [name for name in names if wanted(name)]


def _needs_a_file(stream: ByteStream, what: str) -> FileFault:
    return FileFault(
        f"{stream.name}: {what} is read from a file, not from standard input or through gzip; "
        "give the file itself"
    )


def _damaged(stream: ByteStream, what: str, error: Exception) -> FileFault:
    return FileFault(f"{stream.name}: not a whole {what} file (is it cut short?): {error}")


def _damage() -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged bytes."""
    arrow = extra("pyarrow", "a Parquet or Arrow file")
    return (arrow.ArrowException, OSError, ValueError, MemoryError, OverflowError, RuntimeError)
