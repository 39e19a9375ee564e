"""The study on disk: OUTPUT/study.db, which Optuna and its dashboard read.

It follows the sweep and decides nothing: a snapshot says where a sweep is, and one that goes on
writes the file anew from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rango.errors import StorageError
from rango.training.sweep.candidate import TRAINING, Candidate
from rango.training.sweep.extra import frozen, optuna, silent
from rango.training.sweep.space import Space

FILE, NAME = "study.db", "sweep"
_PATIENCE = 60.0
"""Seconds to wait while another program reads the file."""


class Study:
    """Writes each candidate when it begins, at a rung and when it ends."""

    def __init__(self, folder: Path, space: Space) -> None:
        self._path, self._space = folder / FILE, space
        self._storage: Any = None
        self._id = 0
        self._written: dict[int, tuple[int, int]] = {}
        """By number: the trial's id, and how many of its losses are there."""
        self._ended: set[int] = set()

    def follow(self, candidates: Sequence[Candidate]) -> None:
        """Write what is new; the first time into a new file, in place of one that is there.
        Raises StorageError where the disk refuses."""
        with self._refusals():
            if self._storage is None:
                self._open()
            for candidate in candidates:
                if candidate.number not in self._written:
                    self._begin(candidate)
                if candidate.number not in self._ended:
                    self._go_on(candidate)

    def close(self) -> None:
        """Let go of the file."""
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()

    def _open(self) -> None:
        for ending in ("", "-journal", "-wal", "-shm"):
            Path(f"{self._path}{ending}").unlink(missing_ok=True)
        self._storage = optuna().storages.RDBStorage(
            f"sqlite:///{self._path.resolve()}",
            engine_kwargs={"connect_args": {"timeout": _PATIENCE}},
        )
        study = optuna().create_study(storage=self._storage, study_name=NAME)
        self._id = self._storage.get_study_id_from_name(study.study_name)

    def _begin(self, candidate: Candidate) -> None:
        trial = frozen(self._space, Candidate(candidate.number, candidate.params))
        number = self._storage.create_new_trial(self._id, template_trial=trial)
        self._written[candidate.number] = number, 0

    def _go_on(self, candidate: Candidate) -> None:
        trial, known = self._written[candidate.number]
        now = frozen(self._space, candidate)
        for rung, loss in now.intermediate_values.items():
            if rung > known:
                self._storage.set_trial_intermediate_value(trial, rung, loss)
        self._written[candidate.number] = trial, len(now.intermediate_values)
        if candidate.status != TRAINING:
            self._storage.set_trial_user_attr(trial, "end", candidate.detail)
            self._storage.set_trial_state_values(trial, now.state, now.values)
            self._ended.add(candidate.number)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        from sqlalchemy.exc import SQLAlchemyError

        kinds: Any = (SQLAlchemyError, optuna().exceptions.StorageInternalError)
        try:
            with silent():
                yield
        except kinds as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise StorageError(f"{self._path}: cannot be written: {reason}") from error
