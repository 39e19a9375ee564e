"""The candidates of a sweep as the jobs of a fleet: proposed, judged at the rungs, pruned."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rango.data.tokens.pack import Packed
from rango.evaluation.paired import sample_losses
from rango.files.atomic import write_text
from rango.report.format import decimal, percent
from rango.training.many import outcome as outcomes
from rango.training.many.config import JobConfig
from rango.training.many.job import Job
from rango.training.many.outcome import Outcome
from rango.training.schedule import plan_steps
from rango.training.sweep.candidate import FAILED, FINISHED, PRUNED, TRAINING, Candidate, ranked
from rango.training.sweep.config import SweepConfig
from rango.training.sweep.halving import going_on, rung_share, rung_steps
from rango.training.sweep.propose import beginning, next_by_tpe
from rango.training.sweep.space import Space, applied, words
from rango.training.sweep.study import Study

HELD_OUT = "held_out-{}.json"
"""In a candidate's folder, by the number of the rung from 1: its losses, sample by sample."""


def job_of(config: SweepConfig, candidate: Candidate) -> JobConfig:
    """What the sweep's config and the candidate's values make together."""
    adapter, training = applied(candidate.params, config.adapter, config.training)
    return JobConfig(candidate.name, config.data, adapter, training)


class Candidates:
    """A rango.training.many.source.Source.

    What it answers follows from its config and from what it was told; the study is told along, and
    not asked.
    """

    def __init__(
        self,
        config: SweepConfig,
        space: Space,
        total: int,
        study: Study,
        *,
        samples: int,
        packed: Packed,
        pad_id: int,
    ) -> None:
        """samples: how many each trains on. packed, pad_id: how to evaluate."""
        self.config, self.space, self.total, self.study = config, space, total, study
        self.all: list[Candidate] = []
        """Those that have begun."""
        self.base_loss: float | None = None
        """Of the base on what is held out, nats a token."""
        self._samples, self._packed, self._pad_id = samples, packed, pad_id
        self._first = beginning(space, config.sampler, total, config.rows, config.seed)

    @property
    def waiting(self) -> int:
        """Candidates that have not begun."""
        return self.total - len(self.all)

    def next(self) -> JobConfig | None:
        """The next candidate."""
        number = len(self.all)
        if number == self.total:
            return None
        if number < len(self._first):
            params = self._first[number]
        else:
            params = next_by_tpe(self.space, self.all, self.config.seed)
        candidate = Candidate(number, params)
        self.all.append(candidate)
        self.study.follow(self.all)
        return self.job(candidate.name)

    def job(self, name: str) -> JobConfig:
        """A candidate's job: looked at by the fleet before the first step and after the last."""
        job = job_of(self.config, self._of(name))
        total = plan_steps(job.training, self._samples).total
        return replace(job, training=replace(job.training, eval_every=total))

    def after_round(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Judge those that have reached a rung; why, by name, for those that are pruned."""
        arrived: dict[int, list[Candidate]] = {}
        why: dict[str, str] = {}
        for job in jobs:
            candidate = self._of(job.name)
            rung = len(candidate.losses)
            steps = rung_steps(job.run.plan.total, self.config.eta, self.config.halvings)
            if rung == len(steps) or job.run.state.step != steps[rung]:
                continue
            if self._measure(candidate, job):
                arrived.setdefault(rung, []).append(candidate)
            else:
                why[job.name] = candidate.detail
        for rung, here in arrived.items():
            losses = {
                c.number: math.inf if c.status == FAILED else c.losses[rung]
                for c in self.all
                if len(c.losses) > rung
            }
            kept = going_on(losses, self.config.eta)
            share = percent(rung_share(rung, self.config.eta, self.config.halvings), 0)
            for candidate in here:
                if candidate.number not in kept:
                    why[candidate.name] = (
                        f"after {share} of the run its held-out loss, "
                        f"{decimal(candidate.losses[rung])}, was not among the best {len(kept)} "
                        f"of {len(losses)}"
                    )
        if arrived:
            self.study.follow(self.all)
        return why

    def ended(self, name: str, outcome: Outcome, job: Job | None) -> None:
        """Note how; a candidate that came to its end is measured once more."""
        candidate = self._of(name)
        candidate.detail, candidate.steps = outcome.detail, outcome.steps
        if outcome.status == outcomes.FAILED:
            candidate.status = FAILED
        elif outcome.status == outcomes.STOPPED and candidate.status == TRAINING:
            candidate.status = PRUNED
        elif outcome.status == outcomes.TRAINED and job and self._measure(candidate, job):
            candidate.status = FINISHED
        if job is not None:
            candidate.seconds = job.run.state.seconds
            self.base_loss = job.run.state.evaluations[0]["loss"]
        self.study.follow(self.all)

    def words(self, name: str) -> str:
        """Its values."""
        return words(self._of(name).params)

    def note(self) -> str:
        """The best one so far."""
        measured = [candidate for candidate in self.all if candidate.losses]
        if not measured:
            return ""
        best = ranked(measured)[0]
        share = rung_share(len(best.losses) - 1, self.config.eta, self.config.halvings)
        at = "" if share == 1 else f" after {percent(share, 0)}"
        return f"best {decimal(best.losses[-1])}{at} with {words(best.params)}"

    def state(self) -> dict[str, Any]:
        """Every candidate so far."""
        return {
            "candidates": [dataclasses.asdict(candidate) for candidate in self.all],
            "base_loss": self.base_loss,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take them back; the study follows."""
        self.all = [Candidate(**values) for values in state["candidates"]]
        self.base_loss = state["base_loss"]
        self.study.follow(self.all)

    def _of(self, name: str) -> Candidate:
        return self.all[int(name.rpartition("-")[2])]

    def _measure(self, candidate: Candidate, job: Job) -> bool:
        """Evaluate on what is held out, as the weights are now; whether the loss is finite, without
        which the candidate has failed."""
        started = time.perf_counter()
        with job.run.trainee.learning():
            losses = sample_losses(
                job.run.trainee.model,
                job.data.valid,
                micro_tokens=job.run.trainee.config.micro_tokens,
                packed=self._packed,
                pad_id=self._pad_id,
            )
        rung = len(candidate.losses) + 1
        job.run.recorder.event("rung", job.run.state.step, rung=rung, loss=losses.loss)
        finite = math.isfinite(losses.loss)
        if finite:
            candidate.losses.append(losses.loss)
            text = json.dumps(losses.as_dict()) + "\n"
            write_text(job.folder.path / HELD_OUT.format(rung), text, overwrite=True)
        else:
            candidate.status, candidate.detail = FAILED, f"its held-out loss is {losses.loss}"
        job.run.state.seconds += time.perf_counter() - started
        return finite
