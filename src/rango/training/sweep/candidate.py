"""One candidate of a sweep, and how it has done so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from rango.training.sweep.space import Params

TRAINING, FINISHED, PRUNED, FAILED = "training", "finished", "pruned", "failed"


@dataclass
class Candidate:
    """In plain values (JSON)."""

    number: int
    """In the order in which they began, from 0; Optuna's number of the trial."""
    params: Params
    """The values of the space."""
    status: str = TRAINING
    """training, finished, pruned (a rung was its end) or failed (it diverged, say)."""
    detail: str = ""
    """Why it ended, as a sentence."""
    losses: list[float] = field(default_factory=list)
    """On what is held out, nats a token: at each rung that it reached, and at the end."""
    steps: int = 0
    seconds: float = 0.0
    """Of training and judging it."""

    @property
    def name(self) -> str:
        """Of its folder under OUTPUT/jobs."""
        return f"trial-{self.number:04d}"


def ranked(candidates: list[Candidate]) -> list[Candidate]:
    """The best first: whoever came further, and of those the one with the least loss there; the
    failed ones last."""

    def place(candidate: Candidate) -> tuple[bool, int, float, int]:
        last = candidate.losses[-1] if candidate.losses else 0.0
        return candidate.status == FAILED, -len(candidate.losses), last, candidate.number

    return sorted(candidates, key=place)
