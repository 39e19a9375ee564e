"""The jobs of a run: they get a row, train in rounds beside each other, and give it back."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rango.adapters.recompute import recomputing
from rango.base.heap import settle_freed_memory
from rango.data.config import DataConfig
from rango.data.templates.choose import use_template
from rango.errors import ConfigError, DataError, TokenizerError, VerificationError
from rango.evaluation.fit import check_fit, check_labelled
from rango.progress import Progress, silent
from rango.tracking.events import json_numbers
from rango.training.checkpoint import Origins, RunState
from rango.training.determinism import deterministic_kernels
from rango.training.fit import conclude
from rango.training.interrupt import StopRequest, stop_requests
from rango.training.loop import Run, account, look
from rango.training.many.config import JOBS, JobConfig, ManyConfig
from rango.training.many.finish import finish_job
from rango.training.many.gradients import Share, add_gradients
from rango.training.many.ground import Ground
from rango.training.many.job import Job, JobLog, events_of
from rango.training.many.outcome import FAILED, STOPPED, TRAINED, Outcome
from rango.training.many.scheduler import Scheduler
from rango.training.many.snapshot import Snapshot, Training, latest_snapshot, save_snapshot
from rango.training.many.source import Source
from rango.training.memory import PeakMemory
from rango.training.monitor import COMPLETED, Monitor, check_measurable
from rango.training.optimizer import BankAdamW
from rango.training.prepare import Samples, prepare_samples
from rango.training.reference import forgetting_of
from rango.training.run_folder import RunFolder
from rango.training.schedule import check_training, plan_steps
from rango.training.trainee import LoraTrainee, adamw_settings

_SHARE_OF_SNAPSHOTS = 0.05
"""At most this part of the time goes into snapshots, however often they are asked for."""


Prepare = Callable[[DataConfig, Any, Progress], Samples]
"""From what a job says of its data, and a tokenizer, to samples."""


@dataclass
class Fleet:
    """A run of many jobs, ready to start or to go on."""

    config: ManyConfig
    """The run's own options; its jobs come from `source`."""
    source: Source
    folder: RunFolder
    ground: Ground
    origins: Origins
    watch: Callable[[Fleet], None]
    """Called after each round, and when a job begins or ends."""
    prepare: Prepare = prepare_samples
    progress: Progress = silent
    round: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)
    """Those that train, in the order in which they began."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """Of those that have ended."""

    def __post_init__(self) -> None:
        self.adapted, self.tokenizer = self.ground.adapted, self.ground.tokenizer
        self.packed = self.ground.packed
        self.scheduler = Scheduler(self.config.round_tokens)
        self.optimizer = BankAdamW(self.adapted.bank, active=[])
        self.snapshots = self.folder.snapshots
        self._peak = PeakMemory(self.adapted.bank.parameters.device)
        self._saved_at, self._saving = time.monotonic(), 0.0
        self._base_looks: dict[str, dict[str, Any]] = {}
        """The evaluation of the base, by the digest of the samples."""

    def run(self) -> None:
        """Train all jobs. Raises KeyboardInterrupt after SIGINT or SIGTERM, the round being
        finished and everything saved."""
        settle_freed_memory(self.adapted.model.config)
        with deterministic_kernels(), stop_requests() as request:
            self._resume()
            while self._admit(request) or request.asked:
                if self.jobs and not request.asked:  # else it would be a round of some, not all
                    self._round()
                asked = request.asked  # read once: what is asked from here on waits a round
                if asked or self._is_due():
                    self._save()
                if asked:
                    raise KeyboardInterrupt(
                        f"interrupted after round {self.round}; to continue: the same command, "
                        "with --resume"
                    )

    def close(self) -> None:
        """Let go of the jobs' files."""
        for job in self.jobs.values():
            job.files.close()

    # one round

    def _round(self) -> None:
        chosen = self.scheduler.choose({name: job.cost() for name, job in self.jobs.items()})
        started = time.perf_counter()
        jobs, shares, norms = self._gradients([self.jobs[name] for name in chosen])
        rates = torch.zeros(self.adapted.bank.rows, dtype=torch.float64)
        for job in jobs:
            rates[job.row] = job.run.plan.rate(job.run.state.step)
        self.optimizer.activate(job.row for job in jobs)
        self.optimizer.step(rates)
        self.optimizer.zero_grad()
        self.round += 1
        seconds = time.perf_counter() - started
        tokens = sum(share.tokens for share in shares)
        for job, share in zip(jobs, shares, strict=True):
            job.run.state.step += 1
            own = seconds * share.tokens / tokens  # of the round, its part
            job.run.state.seconds += own
            rate, norm = float(rates[job.row]), float(norms[job.row])
            account(job.run, share.tokens, share.targets, share.loss, rate, norm, own)
            job.loss = share.loss / share.targets
            self._judge(job)
        going_on = [job for job in jobs if job.name in self.jobs]
        for name, why in self.source.after_round(going_on).items():
            self._stop(self.jobs[name], why)
        self._tell()

    def _gradients(self, jobs: list[Job]) -> tuple[list[Job], list[Share], torch.Tensor]:
        """The gradients of these jobs' steps, clipped, in their rows; which of them have one, their
        shares, and the norms (rows,). The others have ended."""
        limits = torch.zeros(self.adapted.bank.rows)
        for job in jobs:
            limits[job.row] = job.run.trainee.config.max_grad_norm
        shares = self._add(jobs)
        norms = self.optimizer.clip(limits)
        if not any(_fault(share, norms[job.row]) for job, share in zip(jobs, shares, strict=True)):
            return jobs, shares, norms
        # what is not finite may have spoilt the sums of its neighbours: now each for itself
        self.optimizer.zero_grad()
        kept: list[tuple[Job, Share]] = []
        for job in jobs:
            (share,) = self._add([job])
            gradient = self.optimizer.gradients[job.row]
            fault = _fault(share, gradient.norm())
            if fault:
                gradient.zero_()
                self._fail(job, fault)
            else:
                kept.append((job, share))
        return [job for job, _ in kept], [share for _, share in kept], self.optimizer.clip(limits)

    def _add(self, jobs: list[Job]) -> list[Share]:
        with recomputing(self.adapted.model, self.config.gradient_checkpointing):
            return add_gradients(
                self.adapted,
                jobs,
                micro_tokens=self.config.micro_tokens,
                packed=self.packed,
                pad_id=self.tokenizer.pad_token_id,
            )

    def _judge(self, job: Job) -> None:
        """After a step: evaluate if it is time; the job may have ended."""
        run = job.run
        clock = time.perf_counter()
        if run.plan.evaluates_at(run.state.step):
            with run.trainee.learning():
                look(run)
        if run.state.step == run.plan.total and run.state.stop is None:
            run.state.stop = COMPLETED
        run.state.seconds += time.perf_counter() - clock
        if not run.state.stop:
            return
        run.recorder.event("stop", run.state.step, reason=run.state.stop)
        trained = conclude(run, self.adapted, self._peak.bytes())
        try:
            result = finish_job(self.adapted, job, trained)
        except VerificationError as error:
            self._end(job, Outcome(FAILED, str(error), trained.steps))
            return
        self._end(
            job,
            Outcome(
                TRAINED,
                trained.stopped(job.config.training),
                trained.steps,
                result.saved,
                trained.base.get("loss"),
                trained.adapted.get("loss"),
            ),
        )

    def _fail(self, job: Job, what: str) -> None:
        step = job.run.state.step
        job.run.recorder.event("stop", step, reason="non-finite", detail=what)
        advice = "lower its training.learning_rate, or look at its samples"
        self._end(job, Outcome(FAILED, f"step {step + 1}: {what}; {advice}", step))

    def _stop(self, job: Job, why: str) -> None:
        state = job.run.state
        job.run.recorder.event("stop", state.step, reason=STOPPED, detail=why)
        self._end(job, Outcome(STOPPED, why, state.step, None, state.evaluations[0].get("loss")))

    def _end(self, job: Job, outcome: Outcome) -> None:
        """Give the row back."""
        self.source.ended(job.name, outcome, job)
        self.outcomes[job.name] = outcome
        del self.jobs[job.name]
        job.log.sync()
        job.files.close()
        with torch.no_grad():
            self.adapted.bank.row(job.row).zero_()

    # beginning and going on

    def _admit(self, request: StopRequest) -> bool:
        """Give free rows to those that wait, until asked to stop; whether any job trains."""
        free = sorted(set(range(self.adapted.bank.rows)) - {job.row for job in self.jobs.values()})
        while free and not request.asked:
            given = self.source.next()
            if given is None:
                break
            try:
                job = self._begin(given, free[0], None)
            except (DataError, TokenizerError, ConfigError) as error:
                self.outcomes[given.name] = Outcome(FAILED, str(error))
                self.source.ended(given.name, self.outcomes[given.name], None)
            else:
                del free[0]
                self.jobs[given.name] = job
            self._tell()
        return bool(self.jobs)

    def _begin(self, given: JobConfig, row: int, then: Training | None) -> Job:
        """A job in its row: new, or as it was `then`."""
        name, config = given.name, self.config.run_config(given)
        check_training(config.training)
        tokenizer = use_template(self.tokenizer, config.data.chat_template)
        data = self.prepare(config.data, tokenizer, self.progress)
        check_measurable(config.training, bool(data.valid), bool(data.general))
        check_labelled(self.adapted.model, data.train.samples[:1])
        for some in (data.train.samples, data.valid, data.general):
            check_fit(some, self.adapted.model)
        if then and then.data != data.digest:
            raise ConfigError(
                f"job {name}: its samples are not those it was started with ({then.data} then, "
                f"{data.digest} now); put them back, or choose another output folder"
            )
        self.adapted.configure(row, config.adapter, self.ground.targets.of(config.adapter))
        self.adapted.reset(row, config.training.seed)
        self.optimizer.renew(row, adamw_settings(config.training))
        trainee = LoraTrainee(self.adapted, config.training, row, self.optimizer)
        forgetting = forgetting_of(
            self.adapted,
            data.general,
            config.training,
            packed=self.packed,
            pad_id=tokenizer.pad_token_id,
        )
        plan = plan_steps(config.training, len(data.train.samples))
        config = replace(config, training=replace(config.training, eval_every=plan.eval_every))
        folder = RunFolder(config.output)
        files = ExitStack()
        before = then.state.events if then else None
        log = files.enter_context(events_of(folder, dataclasses.asdict(config), before))
        run = Run(
            trainee=trainee,
            samples=data.train.samples,
            plan=plan,
            state=then.state if then else RunState(),
            monitor=Monitor(
                trainee,
                data.valid,
                packed=self.packed,
                pad_id=tokenizer.pad_token_id,
                forgetting=forgetting,
            ),
            recorder=JobLog(log),
            packed=self.packed,
            pad_id=tokenizer.pad_token_id,
        )
        uncovered = self.ground.targets.left_by(config.adapter)
        job = Job(name, row, config, folder, log, files, tokenizer, data, run, uncovered)
        if then is None:
            folder.note_skipped(data.bad)
            run.recorder.event("start", 0, total=run.plan.total, row=row)
            try:
                self._look_at_base(job)
            except BaseException:
                files.close()
                raise
        return job

    def _look_at_base(self, job: Job) -> None:
        """What all later evaluations are compared with: the base, which is the same for all jobs
        with the same samples."""
        run, digest = job.run, job.data.digest
        if digest not in self._base_looks:
            with run.trainee.learning():
                look(run)
            self._base_looks[digest] = run.state.evaluations[0]
            return
        known = self._base_looks[digest]
        run.state.evaluations.append(dict(known))
        if len(known) > 1:
            run.recorder.event("evaluation", **known)

    def _resume(self) -> None:
        """Put everything back as the last snapshot has it."""
        found = latest_snapshot(self.snapshots)
        if found is None:  # all begins anew, perhaps with other jobs
            shutil.rmtree(self.folder.path / JOBS, ignore_errors=True)
            return
        found.origins.check(self.origins, self.snapshots)
        self.round = found.round
        self.outcomes = {name: Outcome(**values) for name, values in found.outcomes.items()}
        self.source.restore(found.source)
        self.scheduler.credits, self.scheduler.waited = found.credits, found.waited
        for name, then in found.training.items():
            job = self._begin(self.source.job(name), then.row, then)
            self.jobs[name] = job
            best = found.tensors.get(f"best/{name}")
            job.run.monitor.best = {} if best is None else {"row": best}
        names = ("exp_avg", "exp_avg_sq", "steps")
        self.optimizer.load_state({name: found.tensors[name] for name in names})
        with torch.no_grad():
            self.adapted.bank.parameters.copy_(found.tensors["parameters"])

    # saving

    def _is_due(self) -> bool:
        wait = max(self.config.snapshot_seconds, self._saving / _SHARE_OF_SNAPSHOTS)
        return time.monotonic() - self._saved_at >= wait

    def _save(self) -> None:
        started = time.monotonic()
        for job in self.jobs.values():
            job.log.sync()
            job.run.state.events = job.log.size
        tensors = {"parameters": self.adapted.bank.parameters} | self.optimizer.state()
        for name, job in self.jobs.items():
            if job.run.monitor.best:
                tensors[f"best/{name}"] = job.run.monitor.best["row"]
        save_snapshot(
            self.snapshots,
            Snapshot(
                self.round,
                self.origins,
                self.scheduler.credits,
                self.scheduler.waited,
                {
                    name: Training(job.row, job.data.digest, job.run.state)
                    for name, job in self.jobs.items()
                },
                json_numbers({k: dataclasses.asdict(v) for k, v in self.outcomes.items()}),
                self.source.state(),
                tensors,
            ),
        )
        self._saved_at = time.monotonic()
        self._saving = self._saved_at - started

    def _tell(self) -> None:
        parts = [job.run.state.step / job.run.plan.total for job in self.jobs.values()]
        words = [f"{len(self.jobs)} training", f"{self.source.waiting} waiting", self.source.note()]
        note = ", ".join(word for word in words if word)
        self.progress("jobs", len(self.outcomes) + sum(parts), self.source.total, "jobs", note)
        self.watch(self)


def _fault(share: Share, norm: torch.Tensor) -> str | None:
    """What is not finite about a step."""
    if not math.isfinite(share.loss):
        return f"the loss is {share.loss}"
    if not bool(norm.isfinite()):
        return (
            f"the gradient's norm is {float(norm)}, at a loss of {share.loss / share.targets:.4g}"
        )
    return None
