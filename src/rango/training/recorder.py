"""Where a run leaves its events and checkpoints: in its folder, or nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rango.tracking.events import EventLog
from rango.training.checkpoint import (
    Checkpoint,
    Origins,
    RunState,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)

Tensors = dict[str, dict[str, Tensor]]


class Recorder(Protocol):
    """What the loop tells of itself."""

    def event(self, event: str, step: int, **values: Any) -> None:
        """Something happened."""
        ...

    def checkpoint(self, state: RunState, tensors: Tensors) -> Path | None:
        """Commit everything that the rest of the run depends on; returns where."""
        ...


class Unrecorded:
    """Keeps nothing."""

    def event(self, event: str, step: int, **values: Any) -> None:
        """Nothing."""

    def checkpoint(self, state: RunState, tensors: Tensors) -> None:
        """Nothing."""


class FolderRecorder:
    """Events go to `log`, checkpoints under `folder`, the latest `keep` of them kept."""

    def __init__(self, log: EventLog, folder: Path, origins: Origins, keep: int) -> None:
        self.log, self.folder, self.origins, self.keep = log, folder, origins, keep

    def event(self, event: str, step: int, **values: Any) -> None:
        """Append it."""
        self.log.append(event, step, **values)

    def checkpoint(self, state: RunState, tensors: Tensors) -> Path:
        """Commit it; the events so far are on the disk before it is."""
        self.log.sync()
        state.events = self.log.size
        path = save_checkpoint(
            self.folder, Checkpoint(state, self.origins, tensors), keep=self.keep
        )
        self.event("checkpoint", state.step, path=path.name)
        return path

    def latest(self) -> Checkpoint | None:
        """The checkpoint to continue from, the log cut back to it; None (and an empty log) where
        there is none. Raises ConfigError where the run was started with something else."""
        found = checkpoints(self.folder)
        if not found:
            self.log.truncate(0)
            return None
        checkpoint = load_checkpoint(found[-1])
        checkpoint.origins.check(self.origins, found[-1])
        self.log.truncate(checkpoint.state.events)
        return checkpoint
