"""How long work says how far it is. The command line draws it; libraries stay silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work advances; `done` and `total` are in the task's own `unit`."""

    def __call__(
        self, task: str, done: float, total: float, unit: str = "", note: str = ""
    ) -> None: ...


def silent(task: str, done: float, total: float, unit: str = "", note: str = "") -> None:
    """Report nothing."""
