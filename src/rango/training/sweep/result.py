"""What a sweep found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rango.evaluation.paired import SampleLosses, paired_interval
from rango.tracking.events import json_numbers
from rango.training.many.config import JOBS
from rango.training.sweep.advice import advice
from rango.training.sweep.candidate import FAILED, FINISHED, Candidate, ranked
from rango.training.sweep.config import SweepConfig
from rango.training.sweep.halving import rung_share
from rango.training.sweep.source import HELD_OUT
from rango.training.sweep.space import Space


@dataclass(frozen=True)
class Ranked:
    """A candidate in its place."""

    rank: int
    """From 1."""
    candidate: Candidate
    interval: tuple[float, float] | None = None
    """95% interval of its held-out loss less the best one's at the same rung, the last that it
    reached, nats a token; None for the best itself and where nothing was measured."""

    @property
    def as_good(self) -> bool:
        """Whether it could as well be the best, for all that the held-out samples said there."""
        failed = self.candidate.status == FAILED
        return not failed and self.interval is not None and self.interval[0] <= 0

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        own = dataclasses.asdict(self.candidate) | {"name": self.candidate.name}
        own["losses"] = list(self.candidate.losses)
        return {"rank": self.rank, "interval": self.interval, "as_good": self.as_good, **own}


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep."""

    output: str
    """Its folder; each candidate's is OUTPUT/jobs/NAME."""
    space: dict[str, Any]
    candidates: list[Ranked]
    """The best first."""
    rungs: list[float]
    """The shares of the run at which losses were measured, the last being 1."""
    base_loss: float | None
    """Of the base on the held-out samples, nats a token."""
    held_out: int
    """Samples that the candidates were judged on."""
    held_out_share: float | None
    """Of the data, where they are a share of it."""
    advice: list[str]
    """What to change in the next sweep, as sentences."""
    seconds: float
    """Of training and judging all candidates."""

    @property
    def best(self) -> Candidate:
        """The best candidate, which finished if any did."""
        return self.candidates[0].candidate

    @property
    def saved(self) -> str:
        """The best candidate's adapter."""
        return str(Path(self.output) / "best")

    @property
    def recipe(self) -> str:
        """Its config, as `rango train --config` reads it."""
        return str(Path(self.output) / "recipe.yaml")

    def as_dict(self) -> dict[str, Any]:
        """What result.json holds."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found["candidates"] = [candidate.as_dict() for candidate in self.candidates]
        found |= {"saved": self.saved} if self.best.status == FINISHED else {}
        found |= {"recipe": self.recipe}
        return json_numbers(found)


def conclude_sweep(
    config: SweepConfig,
    space: Space,
    candidates: Sequence[Candidate],
    *,
    base_loss: float | None,
    held_out: int,
) -> SweepResult:
    """Rank the candidates, and say how sure that is and what to try next."""
    order = ranked([*candidates])
    rungs = [rung_share(rung, config.eta, config.halvings) for rung in range(config.halvings + 1)]
    jobs = Path(config.output) / JOBS
    table: list[Ranked] = []
    for place, candidate in enumerate(order, 1):
        interval = None
        if place > 1 and 0 < len(candidate.losses) <= len(order[0].losses):
            file = HELD_OUT.format(len(candidate.losses))
            pair = (_read(jobs / one.name / file) for one in (candidate, order[0]))
            interval = paired_interval(*pair, seed=config.seed)
        table.append(Ranked(place, candidate, interval))
    finished = order[0].status == FINISHED
    alike = [one.candidate for one in table if one.as_good]
    return SweepResult(
        output=config.output,
        space=space.plain(),
        candidates=table,
        rungs=rungs,
        base_loss=base_loss,
        held_out=held_out,
        held_out_share=None if config.data.valid else config.data.valid_share,
        advice=advice(space, candidates, order[0], alike, rungs) if finished else [],
        seconds=sum(candidate.seconds for candidate in candidates),
    )


def _read(path: Path) -> SampleLosses:
    return SampleLosses.from_dict(json.loads(path.read_text(encoding="utf-8")))
