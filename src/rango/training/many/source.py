"""Where the jobs of a run come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rango.training.many.config import JobConfig
from rango.training.many.job import Job
from rango.training.many.outcome import Outcome


class Source(Protocol):
    """What a fleet asks for jobs, and tells of them. All in a fixed order, so that the answers may
    depend on what was told before and a run that goes on still gets the same ones."""

    total: int
    """Jobs that there will have been in the end."""

    @property
    def waiting(self) -> int:
        """Jobs that are still to be given out."""
        ...

    def next(self) -> JobConfig | None:
        """A job for a free row; None where there is none now. Its name is new."""
        ...

    def job(self, name: str) -> JobConfig:
        """One that was given out, again."""
        ...

    def after_round(self, jobs: Sequence[Job]) -> dict[str, str]:
        """These jobs did a step and train on; why, by name, for those that are to stop here."""
        ...

    def ended(self, name: str, outcome: Outcome, job: Job | None) -> None:
        """A job ended; None: before it had a row. The weights that it kept are still in its row."""
        ...

    def words(self, name: str) -> str:
        """What tells the job from others, besides its name; may be nothing."""
        ...

    def note(self) -> str:
        """How it stands, in a few words; may be nothing."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that the next answers depend on, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        ...


class JobList:
    """The jobs of a list, in its order."""

    def __init__(self, jobs: Sequence[JobConfig]) -> None:
        self._jobs, self._begun = {job.name: job for job in jobs}, 0
        self._names = list(self._jobs)
        self.total = len(jobs)

    @property
    def waiting(self) -> int:
        """Jobs that are still to be given out."""
        return self.total - self._begun

    def next(self) -> JobConfig | None:
        """The next of the list."""
        if not self.waiting:
            return None
        self._begun += 1
        return self._jobs[self._names[self._begun - 1]]

    def job(self, name: str) -> JobConfig:
        """The one of that name."""
        return self._jobs[name]

    def after_round(self, jobs: Sequence[Job]) -> dict[str, str]:
        """None is stopped."""
        return {}

    def ended(self, name: str, outcome: Outcome, job: Job | None) -> None:
        """Nothing follows from it."""

    def words(self, name: str) -> str:
        """Nothing: the names were chosen."""
        return ""

    def note(self) -> str:
        """Nothing."""
        return ""

    def state(self) -> dict[str, Any]:
        """How many were given out."""
        return {"begun": self._begun}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind them."""
        self._begun = state["begun"]
