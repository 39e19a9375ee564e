"""Jobs in training, seen: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rango.cli.progress import ProgressBars
from rango.report.format import duration, printable
from rango.training.many.fleet import Fleet
from rango.training.many.job import Job
from rango.training.many.outcome import FAILED, STOPPED, TRAINED

_REFRESH = 0.5
_AROUND = 8
"""Lines of a terminal that are not rows of the table."""


class FleetView:
    """Progress of a run of many jobs; use it in a `with` block."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr, highlight=False)
        self._bars = ProgressBars(self._console)
        self._live: Live | None = None
        self._drawn = 0.0
        self._began: tuple[float, float] | None = None
        self._seen: dict[str, tuple[float, int]] = {}
        """When each job was first seen, and at which step."""

    def __enter__(self) -> FleetView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._bars.__exit__(kind, error, trace)

    def progress(
        self, task: str, done: float, total: float, unit: str = "", note: str = ""
    ) -> None:
        """A `rango.progress.Progress`; silent once the table is there."""
        if self._live is None:
            self._bars(task, done, total, unit, note)

    def watch(self, fleet: Fleet) -> None:
        """Draw the table, if it is time to."""
        if not self._console.is_terminal:
            return
        now = time.monotonic()
        if self._live is None:
            self._bars.__exit__(None, None, None)
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        elif now - self._drawn < _REFRESH and fleet.jobs:
            return
        self._drawn = now
        self._live.update(self._drawing(fleet, now), refresh=True)

    def _drawing(self, fleet: Fleet, now: float) -> RenderableType:
        room = max(3, self._console.height - _AROUND)
        left = {name: self._left(job, now) for name, job in fleet.jobs.items()}
        table = jobs_in_training(fleet, left, room)
        return Group(table, Text(self._summary(fleet, now), style="dim"))

    def _left(self, job: Job, now: float) -> float | None:
        """Seconds until the job is done, as fast as it has come along among the others."""
        step, total = job.run.state.step, job.run.plan.total
        began, first = self._seen.setdefault(job.name, (now, step))
        return (now - began) / (step - first) * (total - step) if step > first else None

    def _summary(self, fleet: Fleet, now: float) -> str:
        done = len(fleet.outcomes) + sum(
            job.run.state.step / job.run.plan.total for job in fleet.jobs.values()
        )
        ended = Counter(outcome.status for outcome in fleet.outcomes.values())
        words = [
            f"{len(fleet.jobs)} training",
            f"{fleet.source.waiting} waiting",
            f"{ended[TRAINED]} trained",
            *(f"{ended[status]} {status}" for status in (STOPPED, FAILED) if ended[status]),
            *([printable(fleet.source.note())] if fleet.source.note() else []),
        ]
        if self._began is None:
            self._began = now, done
        seconds, gained = now - self._began[0], done - self._began[1]
        if gained > 0:
            words.append(f"{duration(seconds / gained * (fleet.source.total - done))} left")
        return ", ".join(words)


def jobs_in_training(fleet: Fleet, left: Mapping[str, float | None], room: int) -> Table:
    """A row for each job that trains, at most `room`, with the seconds that it has left."""
    table = Table(box=None, pad_edge=False)
    for name in ("job", "step", "loss", "held out", "rate", "time left"):
        table.add_column(name, justify="left" if name == "job" else "right")
    jobs = list(fleet.jobs.values())
    for job in jobs[:room]:
        state, plan = job.run.state, job.run.plan
        seconds = left.get(job.name)
        table.add_row(
            Text(printable(f"{job.name} {fleet.source.words(job.name)}".rstrip())),
            f"{state.step}/{plan.total}",
            "" if job.loss is None else f"{job.loss:.4f}",
            "" if state.best_loss is None else f"{state.best_loss:.4f}",
            f"{plan.rate(max(0, state.step - 1)):.1e}",
            "" if seconds is None else duration(seconds),
        )
    if len(jobs) > room:
        table.add_row(f"and {len(jobs) - room} more")
    return table
