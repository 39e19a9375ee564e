"""One consistent snapshot of a run of many jobs: bank, optimizer, scheduler and every job.

All jobs are saved as they were between the same two rounds, so that going on gives each what it
would have had: who shares a batch is part of the run.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rango.errors import AdapterError
from rango.files.atomic import atomic_directory
from rango.files.digests import file_digest
from rango.training.checkpoint import Origins, RunState

_FORMAT = 2
_TENSORS, _FACTS = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Training:
    """A job that has a row."""

    row: int
    data: str
    """Digest of its samples."""
    state: RunState


@dataclass
class Snapshot:
    """Where a run of many jobs is."""

    round: int
    origins: Origins
    credits: dict[str, int]
    waited: dict[str, int]
    training: dict[str, Training]
    """By name, in the order in which they began."""
    outcomes: dict[str, dict[str, Any]]
    """Of the jobs that have ended."""
    source: dict[str, Any]
    """State of what the jobs come from."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """parameters, exp_avg, exp_avg_sq (rows, P), steps (rows,), and best/NAME (P,) where a job has
    weights that it would go back to."""


def save_snapshot(folder: Path, snapshot: Snapshot) -> Path:
    """Commit a snapshot under `folder`, then drop those before it.

    Raises StorageError where the disk refuses; the one before is then untouched.
    """
    path = folder / f"round-{snapshot.round:08d}"
    with atomic_directory(path, overwrite=True) as working:
        save_file({k: v.contiguous() for k, v in snapshot.tensors.items()}, working / _TENSORS)
        facts = {
            "format": _FORMAT,
            "round": snapshot.round,
            "origins": dataclasses.asdict(snapshot.origins),
            "credits": snapshot.credits,
            "waited": snapshot.waited,
            "training": {name: dataclasses.asdict(job) for name, job in snapshot.training.items()},
            "outcomes": snapshot.outcomes,
            "source": snapshot.source,
            "tensors": file_digest(working / _TENSORS),
        }
        (working / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
    for old in _snapshots(folder):
        if old != path:
            shutil.rmtree(old)
    return path


def latest_snapshot(folder: Path) -> Snapshot | None:
    """The last snapshot under `folder`; None where there is none. AdapterError for one that is not
    as it was written."""
    found = _snapshots(folder)
    if not found:
        return None
    path = found[-1]
    try:
        facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            raise AdapterError(
                f"{path}: a snapshot of format {facts['format']!r}; this version of Rango reads "
                f"format {_FORMAT}: continue the run with the version that started it"
            )
        if file_digest(path / _TENSORS) != facts["tensors"]:
            raise AdapterError(f"{path}: {_TENSORS} is not what was written; {_REMEDY}")
        return Snapshot(
            round=facts["round"],
            origins=Origins(**facts["origins"]),
            credits=facts["credits"],
            waited=facts["waited"],
            training={
                name: Training(job["row"], job["data"], RunState(**job["state"]))
                for name, job in facts["training"].items()
            },
            outcomes=facts["outcomes"],
            source=facts["source"],
            tensors=load_file(path / _TENSORS),
        )
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{path}: not readable as a snapshot ({error}); {_REMEDY}") from error


_REMEDY = "delete it to start the jobs anew"


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if path.is_dir())
