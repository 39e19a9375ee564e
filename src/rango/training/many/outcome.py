"""What became of a job."""

from __future__ import annotations

from dataclasses import dataclass

TRAINED, STOPPED, FAILED = "trained", "stopped", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    status: str
    """trained; stopped, where whoever gave the job wanted no more of it; or failed."""
    detail: str
    """Why it ended, as a sentence."""
    steps: int = 0
    saved: str | None = None
    """The adapter's folder."""
    base_loss: float | None = None
    """On what was held out, nats a token; None without it."""
    loss: float | None = None
