"""Faults of a data file are gathered: one run names up to ten of them, not just the first."""

from __future__ import annotations

from collections.abc import Callable

from rango.errors import DataError

LIMIT = 10
"""Faults that are gathered before giving up."""


class FileFault(DataError):
    """A fault after which nothing more can be read from its file."""


class Faults:
    """Gathers DataErrors and raises them as one; with `skip` given, hands each to it instead."""

    def __init__(self, source: str, skip: Callable[[DataError], None] | None = None) -> None:
        self.source = source
        self._skip = skip
        self._messages: list[str] = []
        self.noted = 0
        """Faults so far."""

    def add(self, error: DataError) -> None:
        """Note a fault; the tenth raises them all, unless they are skipped."""
        self.noted += 1
        if self._skip is not None:
            # whoever keeps the error should not keep, through its frames, the data as well
            error.__traceback__ = error.__cause__ = error.__context__ = None
            self._skip(error)
            return
        self._messages.append(str(error))
        if len(self._messages) == LIMIT:
            self.raise_any()

    def raise_any(self) -> None:
        """Raise one DataError with all that was noted; nothing if there was nothing."""
        count = len(self._messages)
        if count == 0:
            return
        if count == 1:
            raise DataError(self._messages[0])
        so_far = "the first " if count == LIMIT else ""
        lines = "\n".join(f"  {message}" for message in self._messages)
        raise DataError(f"{self.source}: {so_far}{count} faults:\n{lines}")
