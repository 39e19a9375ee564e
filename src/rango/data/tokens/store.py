"""Tokenized samples on disk: five bytes a token, mapped into memory and read where they are used.

    FOLDER/ids         int32 a token, one sample after the other
    FOLDER/flags       a byte a token: 1 supervised, 2 content
    FOLDER/ends        int64 a sample: where it ends among the tokens
    FOLDER/origins     two int64 a sample: which source file, and its line there
    FOLDER/labels      int32 a sample: the number of its label, or -1; empty if none has one
    FOLDER/store.json  the source files, counts, and the digest of each of these files

All numbers are little-endian. What is mapped is the system's to take back at any time.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, overload

import numpy as np
from numpy.typing import NDArray

from rango.data.samples import Origin, Sample
from rango.files.atomic import storage_errors
from rango.files.digests import file_digest, json_digest

FACTS = "store.json"
FORMAT = 2
"""Counts up when the files change."""

_SUPERVISED, _CONTENT = 1, 2
_TYPES = {"ids": "<i4", "flags": "|u1", "ends": "<i8", "origins": "<i8", "labels": "<i4"}
_UNLABELLED = -1
_BLOCK = 4096
"""Samples read at once where all of them are."""


@dataclass(frozen=True, eq=False)
class Block:
    """N consecutive samples of T tokens in all, as arrays."""

    ids: NDArray[np.int32]
    """(T,)."""
    flags: NDArray[np.uint8]
    """(T,)."""
    lengths: NDArray[np.int64]
    """(N,)."""
    origins: NDArray[np.int64]
    """(N, 2): index into `files`, line."""
    files: tuple[str, ...]
    labels: NDArray[np.int32]
    """(N,): -1 for a sample without one."""

    @staticmethod
    def of(samples: Sequence[Sample]) -> Block:
        """Samples as arrays."""
        files: dict[str, int] = {}
        origins = [
            (files.setdefault(sample.origin.file, len(files)), sample.origin.line)
            for sample in samples
        ]
        lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
        tokens = int(lengths.sum())

        def joined(masks: Iterator[tuple[bool, ...]]) -> NDArray[np.uint8]:
            return np.frombuffer(b"".join(map(bytes, masks)), np.uint8)

        supervised = joined(sample.supervised for sample in samples)
        content = joined(sample.content for sample in samples)
        ids = chain.from_iterable(sample.input_ids for sample in samples)
        return Block(
            ids=np.fromiter(ids, np.int32, tokens),
            flags=supervised * np.uint8(_SUPERVISED) | content * np.uint8(_CONTENT),
            lengths=lengths,
            origins=np.array(origins, dtype=np.int64).reshape(-1, 2),
            files=tuple(files),
            labels=np.array(
                [_UNLABELLED if s.label is None else s.label for s in samples], dtype=np.int32
            ),
        )

    def digested(self) -> bytes:
        """What the digest of samples reads: of each its length (int64), its token ids (int32), and
        the two masks (a byte a token), and its label (int32) where it has one."""
        ids = self.ids.astype("<i4").tobytes()
        lengths = self.lengths.astype("<i8").tobytes()
        supervised = (self.flags & _SUPERVISED != 0).tobytes()
        content = (self.flags & _CONTENT != 0).tobytes()
        parts: list[bytes] = []
        begin = 0
        for place, length in enumerate(self.lengths.tolist()):
            end = begin + length
            parts.append(lengths[8 * place : 8 * place + 8])
            parts.append(ids[4 * begin : 4 * end])
            parts.append(supervised[begin:end])
            parts.append(content[begin:end])
            if self.labels[place] != _UNLABELLED:
                parts.append(self.labels[place].astype("<i4").tobytes())
            begin = end
        return b"".join(parts)


class SampleStore(Sequence[Sample]):
    """Samples in a folder, a sequence like any other; the folder may be renamed or removed while
    they are in use."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        """Map what a StoreWriter wrote, without looking at it; `open` does that."""
        self._sources = tuple(facts["sources"])
        self.digest: str = facts["digest"]
        """As rango.data.tokens.tokenize.digest gives it."""
        self.tokens: int = facts["tokens"]
        """Tokens of all samples."""
        self.supervised: int = facts["supervised"]
        """Tokens, or labels, that the loss counts."""
        self.highest: int = facts["highest"]
        """Largest token id."""
        self.notes: dict[str, Any] = facts["notes"]
        """What the writer noted beside the samples."""
        self._ids = _mapped(folder, "ids")
        self._flags = _mapped(folder, "flags")
        self._ends = _mapped(folder, "ends")
        self._origins = _mapped(folder, "origins").reshape(-1, 2)
        self._labels = _mapped(folder, "labels")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a folder that a StoreWriter wrote. Raises OSError, or ValueError where it is not
        what was written."""
        noted = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        facts = noted.get("facts") if isinstance(noted, dict) else None
        if facts is None or noted.get("digest") != json_digest(facts):
            raise ValueError(f"{FACTS} is not what was written")
        if facts["format"] != FORMAT:
            raise ValueError(f"{FACTS} has format {facts['format']}, not {FORMAT}")
        for name in _TYPES:
            if file_digest(folder / name) != facts["files"][name]:
                raise ValueError(f"{name} is not what was written")
        return cls(folder, facts)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, store.json left out."""
        arrays = (self._ids, self._flags, self._ends, self._origins, self._labels)
        return sum(array.nbytes for array in arrays)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(N,): tokens of each sample."""
        return np.diff(self._ends, prepend=0)

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return int(self.lengths.max(initial=0))

    def arrays(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Token ids, supervised and content of a sample, each (length,)."""
        span = self._span(index)
        flags = self._flags[span]
        return self._ids[span], flags & _SUPERVISED != 0, flags & _CONTENT != 0

    def label(self, index: int) -> int | None:
        """The number of a sample's label."""
        found = int(self._labels[index]) if len(self._labels) else _UNLABELLED
        return None if found == _UNLABELLED else found

    def blocks(self) -> Iterator[Block]:
        """All samples, a few thousand at once."""
        for first in range(0, len(self), _BLOCK):
            some = slice(first, first + _BLOCK)
            begin = int(self._ends[first - 1]) if first else 0
            span = slice(begin, int(self._ends[some][-1]))
            yield Block(
                self._ids[span],
                self._flags[span],
                self.lengths[some],
                self._origins[some],
                self._sources,
                self._labels[some] if len(self._labels) else _unlabelled(len(self.lengths[some])),
            )

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self._sample(place) for place in range(*index.indices(len(self)))]
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"sample {place} of {len(self)}")
        return self._sample(place % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def _span(self, place: int) -> slice:
        return slice(int(self._ends[place - 1]) if place else 0, int(self._ends[place]))

    def _sample(self, place: int) -> Sample:
        ids, supervised, content = self.arrays(place)
        source, line = self._origins[place].tolist()
        return Sample(
            tuple(ids.tolist()),
            tuple(supervised.tolist()),
            tuple(content.tolist()),
            Origin(self._sources[source], line),
            self.label(place),
        )


class StoreWriter:
    """Writes samples into an empty folder, block after block; a context, which closes the files.

    Raises StorageError where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.samples = self.tokens = 0
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {name: hashlib.sha256() for name in _TYPES}
        self._digest = hashlib.sha256()
        self._sources: dict[str, int] = {}
        self._supervised = 0
        self._highest = -1
        self._labelled = False

    def __enter__(self) -> Self:
        with storage_errors(self._folder):
            for name in _TYPES:
                self._files[name] = open(self._folder / name, "xb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with storage_errors(self._folder):
            for file in self._files.values():
                file.close()

    def add(self, block: Block) -> None:
        """Append samples."""
        if not len(block.lengths):
            return
        known = [self._sources.setdefault(file, len(self._sources)) for file in block.files]
        origins = block.origins.copy()
        origins[:, 0] = np.array(known, dtype=np.int64)[origins[:, 0]]
        ends = self.tokens + np.cumsum(block.lengths)
        self._write(ids=block.ids, flags=block.flags, ends=ends, origins=origins)
        self._add_labels(block.labels)
        self._digest.update(block.digested())
        self.samples += len(block.lengths)
        self.tokens += len(block.ids)
        self._supervised += int(np.count_nonzero(block.flags & _SUPERVISED))
        self._supervised += int(np.count_nonzero(block.labels != _UNLABELLED))
        self._highest = max(self._highest, int(block.ids.max()))

    def _add_labels(self, labels: NDArray[np.int32]) -> None:
        """The first labelled block brings those before it along."""
        if self._labelled or np.any(labels != _UNLABELLED):
            before = 0 if self._labelled else self.samples
            self._write(labels=np.concatenate([_unlabelled(before), labels]))
            self._labelled = True

    def finish(self, notes: dict[str, Any]) -> SampleStore:
        """Close, note beside the samples what is given (JSON values), and open them."""
        with storage_errors(self._folder):
            for file in self._files.values():
                file.close()
            facts = {
                "format": FORMAT,
                "samples": self.samples,
                "tokens": self.tokens,
                "supervised": self._supervised,
                "highest": self._highest,
                "digest": f"sha256:{self._digest.hexdigest()}",
                "sources": list(self._sources),
                "files": {n: f"sha256:{state.hexdigest()}" for n, state in self._hashes.items()},
                "notes": notes,
            }
            text = json.dumps({"facts": facts, "digest": json_digest(facts)})
            (self._folder / FACTS).write_text(text + "\n", encoding="utf-8")
        return SampleStore(self._folder, facts)

    def _write(self, **arrays: NDArray[Any]) -> None:
        with storage_errors(self._folder):
            for name, values in arrays.items():
                data = values.astype(_TYPES[name]).tobytes()
                self._hashes[name].update(data)
                self._files[name].write(data)


def _unlabelled(count: int) -> NDArray[np.int32]:
    return np.full(count, _UNLABELLED, dtype=np.int32)


def _mapped(folder: Path, name: str) -> NDArray[Any]:
    """A file as a read-only array."""
    path = folder / name
    if not path.stat().st_size:  # cannot be mapped
        return np.zeros(0, dtype=_TYPES[name])
    # a plain array over the same memory: memmap's own class makes every small slice slow
    return np.memmap(path, dtype=_TYPES[name], mode="r").view(np.ndarray)
