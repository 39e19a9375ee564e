"""Faults of a data file are gathered: one run names up to ten of them, not just the first."""

from __future__ import annotations

from rango.errors import DataError

LIMIT = 10
"""Faults that are gathered before giving up."""


class Faults:
    """Gathers DataErrors and raises them as one."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._messages: list[str] = []

    def add(self, error: DataError) -> None:
        """Note a fault; the tenth raises them all."""
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
        raise DataError(f"{self._source}: {so_far}{count} faults:\n{lines}")
