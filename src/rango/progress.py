"""How long work says how far it is. The command line draws it; libraries stay silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work calls as it advances."""

    def __call__(
        self, task: str, done: float, total: float, unit: str = "", note: str = ""
    ) -> None:
        """`done` of `total` units of `task` are done; `note` says how it goes."""
        ...


def silent(task: str, done: float, total: float, unit: str = "", note: str = "") -> None:
    """Report nothing."""
