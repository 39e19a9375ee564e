"""Checkpoints of a run: everything that the rest of it depends on, committed whole or not at all.

A checkpoint is a folder ``step-00000120`` with ``tensors.safetensors`` (weights, optimizer, best
snapshot) and ``state.json`` (numbers, and what the run was started with). Random numbers need no
state: order, initialisation and dropout derive from the seed and the step.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rango.errors import AdapterError, ConfigError
from rango.files.atomic import atomic_directory
from rango.files.digests import file_digest

_NAME = re.compile(r"step-(\d{8,})")
_FORMAT = 1


@dataclass(frozen=True)
class Origins:
    """What a run was started with; a run is only continued with the same."""

    config: dict[str, Any]
    """Every option that decides the result, as nested plain values."""
    base: str
    """Fingerprint of the base."""
    data: str
    """Digest of the tokenized samples: training, held out, general."""

    def check(self, now: Origins, where: Path) -> None:
        """Raise ConfigError naming every difference between the run and what is given now."""
        before, after = _flat(self.config), _flat(now.config)
        differences = [
            f"{name}: {before.get(name, 'absent')!r} then, {after.get(name, 'absent')!r} now"
            for name in sorted(before.keys() | after.keys())
            if before.get(name, "absent") != after.get(name, "absent")
        ]
        if self.base != now.base:
            differences.append(f"the base's weights: {self.base} then, {now.base} now")
        if self.data != now.data:
            differences.append(f"the samples: {self.data} then, {now.data} now")
        if differences:
            more = f"; and {len(differences) - 10} more" if len(differences) > 10 else ""
            raise ConfigError(
                f"{where}: this run was started differently, so it cannot be continued: "
                + "; ".join(differences[:10])
                + more
                + ". Resume with what it was started with, or choose another output folder"
            )


@dataclass
class RunState:
    """Where a run is, in plain values (JSON)."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens computed in training."""
    supervised: int = 0
    """Targets learnt from."""
    seconds: float = 0.0
    """Time spent, in this process and those before."""
    step_seconds: float = 0.0
    """Of those, in steps; the rest went into evaluation and checkpoints."""
    recent_loss: float = 0.0
    """Sum of the token losses since the last evaluation."""
    recent_supervised: int = 0
    """Number of them."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Every evaluation, in order."""
    best_step: int | None = None
    """Step of the best evaluation on held-out samples."""
    best_loss: float | None = None
    """Its loss."""
    worse: int = 0
    """Evaluations since then."""
    stop: str | None = None
    """Why the run ended, once it has."""
    events: int = 0
    """Bytes of the event log that belong to the steps done."""


@dataclass(frozen=True)
class Checkpoint:
    """What is written and read back.

    tensors: by kind: weights, optimizer, best (empty where there is no best yet).
    """

    state: RunState
    origins: Origins
    tensors: dict[str, dict[str, Tensor]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Commit a checkpoint under `folder`, then drop all but the `keep` latest.

    Raises StorageError where the disk refuses; those before are then untouched.
    """
    path = folder / f"step-{checkpoint.state.step:08d}"
    with atomic_directory(path, overwrite=True) as working:
        save_file(
            {
                f"{kind}/{name}": tensor.contiguous()
                for kind, tensors in checkpoint.tensors.items()
                for name, tensor in tensors.items()
            },
            working / "tensors.safetensors",
        )
        facts = {
            "format": _FORMAT,
            "state": dataclasses.asdict(checkpoint.state),
            "origins": dataclasses.asdict(checkpoint.origins),
            "tensors": file_digest(working / "tensors.safetensors"),
        }
        (working / "state.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Those under `folder`, in the order of their steps."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; AdapterError where it is not as it was written."""
    try:
        facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            raise AdapterError(
                f"{path}: a checkpoint of format {facts['format']!r}; this version of Rango reads "
                f"format {_FORMAT}: continue the run with the version that started it"
            )
        if file_digest(path / "tensors.safetensors") != facts["tensors"]:
            raise AdapterError(f"{path}: tensors.safetensors is not what was written; {_REMEDY}")
        tensors: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}, "best": {}}
        for key, tensor in load_file(path / "tensors.safetensors").items():
            kind, _, name = key.partition("/")
            tensors[kind][name] = tensor
        return Checkpoint(RunState(**facts["state"]), Origins(**facts["origins"]), tensors)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{path}: not readable as a checkpoint ({error}); {_REMEDY}") from error


_REMEDY = "delete it to continue from the one before, or from the start"


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
