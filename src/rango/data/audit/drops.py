"""Which samples a cleaned copy leaves out, and why."""

from __future__ import annotations

from rango.data.audit.ledger import Ledger
from rango.data.audit.result import Dropped


class Drops:
    """Samples to leave out by index; of several reasons the first one given holds."""

    def __init__(self) -> None:
        self._reasons: dict[int, tuple[str, str]] = {}

    def add(self, index: int, check: str, reason: str) -> None:
        """Leave a sample out."""
        self._reasons.setdefault(index, (check, reason))

    def listed(self, ledger: Ledger) -> tuple[Dropped, ...]:
        """All of them in the data's order."""
        return tuple(
            Dropped(ledger.origin(index), *self._reasons[index]) for index in sorted(self._reasons)
        )
