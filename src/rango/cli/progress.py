"""Progress on standard error: a bar with rate and time left, or now and then a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from rango.report.format import duration, printable, size

QUIET_SECONDS = 2.0
"""Work that ends sooner says nothing."""
LINE_SECONDS = 10.0
"""Without a terminal a task writes a line this often, and one when it ends."""


@dataclass
class _Task:
    started: float
    first: float
    last_line: float
    shown: TaskID | None = None
    ended: bool = False


class ProgressBars:
    """A `rango.progress.Progress` for the command line; use it in a `with` block.

    Each task is a bar of its own name; a task shows up once it has gone on for two seconds.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(file=sys.stderr, highlight=False)
        self._clock = clock
        self._tasks: dict[str, _Task] = {}
        self._bars: Progress | None = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(
        self, task: str, done: float, total: float, unit: str = "", note: str = ""
    ) -> None:
        """Take note; draw or write where it is time to."""
        now = self._clock()
        known = self._tasks.get(task)
        if known is None or (known.ended and done < total):
            known = self._tasks[task] = _Task(now, done, now)
        if now - known.started < QUIET_SECONDS or known.ended:
            known.ended = known.ended or done >= total
            return
        known.ended = done >= total
        rate = (done - known.first) / (now - known.started)
        words = printable(" ".join(word for word in (_rate(rate, unit), note) if word))
        if self._console.is_terminal:
            self._draw(task, known, done, total, words)
        elif known.ended or now - known.last_line >= LINE_SECONDS:
            known.last_line = now
            left = (total - done) / rate if rate > 0 and not known.ended else None
            self._console.print(_line(task, done, total, unit, words, left), soft_wrap=True)

    def _draw(self, name: str, task: _Task, done: float, total: float, words: str) -> None:
        if self._bars is None:
            self._bars = _new_bars(self._console)
            self._bars.start()
        if task.shown is None:
            task.shown = self._bars.add_task(printable(name), total=total, words=words)
        self._bars.update(task.shown, completed=done, total=total, words=words)


def _new_bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[words]}", markup=False, style="dim"),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _rate(rate: float, unit: str) -> str:
    if rate <= 0:
        return ""
    if unit == "B":
        return f"{size(rate)}/s"
    number = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return f"{number} {unit}/s" if unit else f"{number}/s"


def _line(task: str, done: float, total: float, unit: str, words: str, left: float | None) -> str:
    amount = f"{done:,.0f}/{total:,.0f} {unit}".rstrip()
    if unit == "B":
        amount = f"{size(done)} of {size(total)}"
    share = f" ({100 * done / total:.0f}%)" if total > 0 else ""
    text = f"{task}: {amount}{share} {words}".rstrip()
    return f"{text}, {duration(left)} left" if left is not None else text
