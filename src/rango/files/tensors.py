"""Strict reading of safetensors files: the header is checked whole before any tensor is touched."""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rango.errors import CheckpointError, RangoError

MAX_HEADER = 4 * 2**20
"""Largest header accepted, in bytes: about 35,000 tensors a file. The format allows 100 MB, which
costs a reader minutes before it has seen a single weight."""

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""Bytes an element, by the format's name of the type."""


@dataclass(frozen=True)
class Entry:
    """One tensor's place in a file: bytes `start` to `end`, counted from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as stored."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class TensorFile:
    """A safetensors file, checked and mapped into memory.

    The mapping is private: pages come from the file and are never written back. The file is kept
    open by the mapping for as long as a view of it lives.
    """

    def __init__(self, path: Path, error: type[RangoError] = CheckpointError) -> None:
        """Check and map `path`; raise `error` if it is missing, truncated or malformed."""
        self.path = path
        try:
            with open(path, "rb") as file:
                size = path.stat().st_size
                self.entries, self.metadata = _read_header(file.read(8 + MAX_HEADER), size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError as missing:
            raise error(f"{path}: no such file") from missing
        except OSError as refused:
            raise error(f"{path}: cannot be read: {refused.strerror}") from refused
        except _Malformed as fault:
            raise error(f"{path}: {fault}") from fault

    def view(self, name: str) -> memoryview:
        """The bytes of tensor `name`, without a copy. Raises KeyError for an unknown name."""
        entry = self.entries[name]
        return memoryview(self._map)[entry.start : entry.end]

    def release(self, name: str) -> None:
        """Let the system take back the pages of `name`; they are read again when touched again."""
        entry = self.entries[name]
        first = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = entry.end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, first, length)


class _Malformed(Exception):
    """What is wrong with a file, without its name."""


def _read_header(beginning: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    if size < 8:
        raise _Malformed(f"truncated: {size} bytes, and a safetensors header needs at least 8")
    length = int.from_bytes(beginning[:8], "little")
    if length > MAX_HEADER:
        raise _Malformed(
            f"not a safetensors file, or its header is too large: {length} bytes announced, "
            f"{MAX_HEADER} allowed"
        )
    if 8 + length > size:
        raise _Malformed(
            f"truncated: its header should end at byte {8 + length}, the file at {size}; "
            "fetch it again"
        )
    try:
        header = json.loads(beginning[8 : 8 + length], object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as fault:
        raise _Malformed(f"not a safetensors file: its header is no JSON ({fault})") from fault
    if not isinstance(header, dict):
        raise _Malformed("not a safetensors file: its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _Malformed("malformed header: __metadata__ is no JSON object")
    entries = [_entry(name, fields, 8 + length) for name, fields in header.items()]
    _check_layout(entries, 8 + length, size)
    return {entry.name: entry for entry in entries}, {str(k): str(v) for k, v in metadata.items()}


def _entry(name: str, fields: Any, data: int) -> Entry:
    try:
        dtype, shape, (start, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        numbers = (*shape, start, end)
    except (TypeError, KeyError, ValueError) as fault:
        raise _Malformed(
            f"malformed header: tensor {name!r} needs dtype, shape and data_offsets"
        ) from fault
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _Malformed(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise _Malformed(f"malformed header: tensor {name!r} has a negative or fractional size")
    entry = Entry(name, dtype, tuple(shape), data + start, data + end)
    if entry.nbytes != entry.elements * DTYPE_BYTES[dtype]:
        raise _Malformed(
            f"malformed header: tensor {name!r} of shape {list(shape)} and dtype {dtype} needs "
            f"{entry.elements * DTYPE_BYTES[dtype]} bytes, {entry.nbytes} are announced"
        )
    return entry


def _check_layout(entries: list[Entry], data: int, size: int) -> None:
    """The tensors must fill the file from the header to its end, without gap or overlap."""
    place = data
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != place:
            raise _Malformed(
                f"malformed header: tensor {entry.name!r} begins at byte {entry.start}, "
                f"the one before it ends at {place}"
            )
        place = entry.end
    if place > size:
        raise _Malformed(
            f"truncated: its tensors should end at byte {place}, the file at {size}; fetch it again"
        )
    if place < size:
        raise _Malformed(
            f"{size - place} bytes follow its last tensor; it is not what its header says"
        )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found
