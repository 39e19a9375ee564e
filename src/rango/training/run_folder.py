"""The folder of a run: config.yaml, events.jsonl, checkpoints/, adapter/ or model/, result.json,
report.html."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rango.errors import ConfigError, OutputExistsError
from rango.files.atomic import atomic_directory, refuse_existing, write_text
from rango.tracking.events import EventLog

SKIPPED = "skipped.txt"
"""Why entries of the data were left out, where data.skip_bad lets that happen."""

_CONFIG, _EVENTS, _RESULT = "config.yaml", "events.jsonl", "result.json"

_KINDS = {"jobs": "jobs", "space": "sweep"}
"""By a key that only its config has, the kind of a run."""
_NAMES = {"job": "a run of one job", "jobs": "a run of many jobs", "sweep": "a sweep"}

# options that name places or habits; what they lead to is compared by digest, or changes nothing
_FREE = (
    ("output",),
    ("base", "model"),
    ("base", "revision"),
    ("base", "cache"),
    ("base", "cache_gb"),
    ("data", "train"),
    ("data", "valid"),
    ("data", "general"),
    ("data", "chat_template"),
    ("data", "cache"),
    ("data", "cache_gb"),
    ("training", "checkpoint_every"),
    ("training", "keep_checkpoints"),
)


class RunFolder:
    """Paths of a run; kind: job, jobs (many at once) or sweep."""

    def __init__(self, path: str | Path, *, kind: str = "job") -> None:
        self.path, self.kind = Path(path), kind
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        """Of a run of many jobs, or a sweep."""
        self.result = self.path / _RESULT

    def check(self, resume: bool) -> None:
        """Refuse early what `open` would refuse: OutputExistsError, ConfigError."""
        if not resume:
            refuse_existing(
                self.path, "choose another output, or pass resume to continue an interrupted run"
            )
            return
        if self.path.exists() and not (self.path / _CONFIG).is_file():
            raise ConfigError(
                f"{self.path}: nothing to resume: it has no {_CONFIG}, so it is not the folder of "
                "a run; choose another output"
            )
        if not self.path.exists():
            raise ConfigError(f"{self.path}: nothing to resume: no such folder; check the output")
        written = yaml.safe_load((self.path / _CONFIG).read_text("utf-8")) or {}
        kind = next((kind for key, kind in _KINDS.items() if key in written), "job")
        if kind != self.kind:
            raise ConfigError(f"{self.path}: the folder of {_NAMES[kind]}; choose another output")
        if self.result.exists():
            raise OutputExistsError(
                f"{self.path}: this run is finished, so there is nothing to resume; choose another "
                "output for a new one"
            )

    @contextmanager
    def open(self, config: dict[str, Any], resume: bool) -> Iterator[EventLog]:
        """Make the folder with `config` in it, or take an interrupted one again; yields the event
        log, which no other process can open meanwhile."""
        self.check(resume)
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        if not resume:
            with atomic_directory(self.path) as working:
                (working / _CONFIG).write_text(text, encoding="utf-8")
        with EventLog(self.path / _EVENTS) as log:
            self._sweep()
            saved = (*self.checkpoints.glob("step-*"), *self.snapshots.glob("round-*"))
            if resume and not saved:
                # nothing to go on from: it starts anew, and this is its config
                write_text(self.path / _CONFIG, text, overwrite=True)
            yield log

    def _sweep(self) -> None:
        """Remove what a killed process had not committed yet; put back what it was replacing."""
        for folder in (self.path, self.checkpoints, self.snapshots):
            for retired in folder.glob(".*.old"):
                for kept in retired.iterdir():
                    if not (folder / kept.name).exists():
                        kept.rename(folder / kept.name)
            for pattern in (".*.tmp", ".*.old"):
                for left in folder.glob(pattern):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def note_skipped(self, faults: Sequence[str]) -> None:
        """Write what is wrong with the entries of the data that were left out, a line each."""
        if faults:
            lines = "".join(f"{fault}\n" for fault in faults)
            write_text(self.path / SKIPPED, lines, overwrite=True)

    def clear(self, name: str) -> Path:
        """Path of a part that is to be written now, without what a killed run left of it."""
        path = self.path / name
        if path.exists():
            shutil.rmtree(path)
        return path

    def finish(self, result: dict[str, Any]) -> None:
        """Commit result.json: from now on the run is finished."""
        write_text(self.result, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def deciding(config: dict[str, Any]) -> dict[str, Any]:
    """The options that a run's result depends on, as JSON gives them back."""
    kept: dict[str, Any] = json.loads(json.dumps(copy.deepcopy(config)))
    for *groups, name in _FREE:
        place = kept
        for group in groups:
            place = place[group]
        place.pop(name)
    return kept
