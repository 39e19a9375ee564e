"""One job while it has a row: what a run alone has, and where it stands among the others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rango.base.roles import Uncovered
from rango.data.tokens.pack import epoch_order, lengths_of
from rango.tracking.events import EventLog
from rango.training.checkpoint import RunState
from rango.training.config import RunConfig
from rango.training.loop import Run
from rango.training.prepare import Samples
from rango.training.run_folder import RunFolder


@dataclass
class Job:
    """A job that trains."""

    name: str
    row: int
    config: RunConfig
    folder: RunFolder
    log: EventLog
    files: ExitStack
    """Closes the log."""
    tokenizer: Any
    data: Samples
    run: Run
    uncovered: list[Uncovered]
    """The weights that it leaves as they are."""
    loss: float | None = None
    """Of its last step, nats a target."""
    _order: tuple[int, list[int]] = (-1, [])
    """The epoch last asked for, and its order."""

    def next_step(self) -> list[int]:
        """Indices of the samples of its next step."""
        plan = self.run.plan
        epoch, first = plan.position(self.run.state.step)
        if self._order[0] != epoch:
            seed = self.run.trainee.config.seed
            self._order = epoch, epoch_order(len(self.run.samples), seed, epoch)
        return self._order[1][first : first + plan.batch_size]

    def cost(self) -> int:
        """Tokens of its next step."""
        return int(lengths_of(self.run.samples, self.next_step()).sum())


@contextmanager
def events_of(folder: RunFolder, config: dict[str, Any], events: int | None) -> Iterator[EventLog]:
    """A job's log: new, or cut back to its first `events` bytes, as the last snapshot has it."""
    if events is None and folder.path.exists():
        shutil.rmtree(folder.path)
    folder.result.unlink(missing_ok=True)
    with folder.open(config, resume=events is not None) as log:
        log.truncate(events or 0)
        yield log


class JobLog:
    """A job's recorder: its events; the fleet keeps the rest."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def event(self, event: str, step: int, **values: Any) -> None:
        """Append it."""
        self._log.append(event, step, **values)

    def checkpoint(self, state: RunState, tensors: Any) -> Path | None:
        """Nothing: a snapshot has all jobs."""
        return None
