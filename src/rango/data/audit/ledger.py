"""Where each sample was read and how it begins, kept for findings made after the pass.

In memory: 12 bytes a sample. The excerpts go to a temporary file once there are many.
"""

from __future__ import annotations

import tempfile
from array import array
from types import TracebackType

from rango.data.audit.result import Instance
from rango.data.audit.view import View, shorten
from rango.data.samples import Origin

_RECORD = 160
"""Bytes of an excerpt; one of wide characters is cut shorter than 120 of them."""
_IN_MEMORY = 1 << 24
"""Bytes of excerpts kept in memory before they go to disk."""


class Ledger:
    """Origins and excerpts by the samples' indices, in the order they were added."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._files = array("I")
        self._lines = array("Q")
        self._excerpts = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._excerpts.close()

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, view: View) -> None:
        """Note the next sample, once its personal data is masked."""
        origin = view.example.origin
        number = self._numbers.get(origin.file)
        if number is None:
            number = self._numbers[origin.file] = len(self._names)
            self._names.append(origin.file)
        self._files.append(number)
        self._lines.append(origin.line)
        record = view.summary().encode("utf-8", "replace")[:_RECORD]
        self._excerpts.write(record.ljust(_RECORD, b"\0"))

    def origin(self, index: int) -> Origin:
        """Where a sample was read."""
        return Origin(self._names[self._files[index]], self._lines[index])

    def instance(self, index: int, other: int | None = None, say: str = "") -> Instance:
        """A sample as an instance of a finding, after `say`; `other` is its pair's index."""
        self._excerpts.seek(index * _RECORD)
        record = self._excerpts.read(_RECORD).rstrip(b"\0").decode("utf-8", "ignore")
        paired = None if other is None else self.origin(other)
        return Instance(self.origin(index), shorten(say + record, 120), paired)
