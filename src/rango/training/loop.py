"""The loop: one optimizer step after the other, for an adapter as for a whole model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from rango.base.heap import settle_freed_memory
from rango.data.samples import Batch, Sample
from rango.data.tokens.pack import Packed, collate, epoch_order, plan_batches
from rango.errors import NonFiniteLossError
from rango.evaluation.loss import TokenLosses, token_losses
from rango.progress import Progress, silent
from rango.training.checkpoint import RunState
from rango.training.determinism import deterministic_kernels
from rango.training.interrupt import stop_requests
from rango.training.monitor import COMPLETED, Monitor
from rango.training.recorder import Recorder, Tensors
from rango.training.schedule import StepPlan
from rango.training.trainee import Trainee


@dataclass
class Run:
    """A run, ready to start or to go on."""

    trainee: Trainee
    samples: Sequence[Sample]
    plan: StepPlan
    state: RunState
    monitor: Monitor
    recorder: Recorder
    packed: Packed
    pad_id: int = 0
    progress: Progress = silent

    def tensors(self) -> Tensors:
        """Everything that a checkpoint holds."""
        return {
            "weights": self.trainee.weights(),
            "optimizer": self.trainee.optimizer.state(),
            "best": self.monitor.best,
        }


def run_steps(run: Run) -> None:
    """Train until the plan is done or a reason to stop is found, which `run.state.stop` then says.

    Raises NonFiniteLossError, the weights being those before that step; KeyboardInterrupt after
    SIGINT or SIGTERM, the step being finished. Both leave a checkpoint.
    """
    state, plan, optimizer = run.state, run.plan, run.trainee.optimizer
    clock = time.perf_counter()
    settle_freed_memory(run.trainee.model.config)
    with deterministic_kernels(), run.trainee.learning(), stop_requests() as request:
        optimizer.zero_grad()  # whatever a run that failed here before has left
        if not state.evaluations:  # what all later ones are compared with: the base
            look(run)
        for batches in _steps(run):
            started = time.perf_counter()

            # the loss of a step is the mean over ALL its targets: a mean of the micro-batches'
            # means would weigh a target by how many others share its micro-batch
            targets = sum(batch.supervised for batch in batches)
            total = 0.0
            for batch in batches:  # input_ids (B, S): B = 1 when packed
                with run.trainee.prepare(batch, state.step):
                    found = token_losses(run.trainee.model, batch)  # losses (K,), K targets
                    (found.losses.sum() / targets).backward()
                total += float(found.losses.detach().double().sum())
                if not math.isfinite(total):
                    _refuse(run, f"the loss is {total} on {_culprits(run, batch, found)}")
                del found  # its graph, before the next forward pass builds another

            norm = float(optimizer.clip(run.trainee.config.max_grad_norm).max())
            if not math.isfinite(norm):
                _refuse(run, f"the gradient's norm is {norm}, at a loss of {total / targets:.4g}")

            rate = plan.rate(state.step)
            optimizer.step(rate)
            optimizer.zero_grad()

            state.step += 1
            tokens = sum(batch.tokens for batch in batches)
            account(run, tokens, targets, total, rate, norm, time.perf_counter() - started)
            if plan.evaluates_at(state.step):
                look(run)
            if state.step == plan.total and state.stop is None:
                state.stop = COMPLETED
            clock, state.seconds = _tick(clock, state.seconds)
            asked = request.asked  # read once: what is asked from here on waits a step
            if state.stop or asked or plan.checkpoints_at(state.step):
                run.recorder.checkpoint(state, run.tensors())
            if asked:
                run.recorder.event("stop", state.step, reason="interrupted")
                raise KeyboardInterrupt(f"interrupted after step {state.step} of {plan.total}")
            if state.stop:
                break
        run.recorder.event("stop", state.step, reason=state.stop)


def _steps(run: Run) -> Iterator[list[Batch]]:
    """The micro-batches of each step still to do, in order."""
    if run.state.stop:
        return
    epoch, order = -1, list[int]()
    for step in range(run.state.step, run.plan.total):
        now, first = run.plan.position(step)
        if now != epoch:
            epoch, order = now, epoch_order(len(run.samples), run.trainee.config.seed, now)
        yield [
            collate(run.samples, indices, packed=run.packed, pad_id=run.pad_id)
            for indices in plan_batches(
                run.samples,
                order[first : first + run.plan.batch_size],
                micro_tokens=run.trainee.config.micro_tokens,
                packed=run.packed,
            )
        ]


def account(
    run: Run, tokens: int, targets: int, total: float, rate: float, norm: float, seconds: float
) -> None:
    """Add a step that is done to the run's sums, and tell of it; `total` is the sum of the losses
    of its `targets`."""
    state = run.state
    state.tokens += tokens
    state.supervised += targets
    state.recent_loss += total
    state.recent_supervised += targets
    state.step_seconds += seconds
    run.recorder.event(
        "step",
        state.step,
        loss=total / targets,
        learning_rate=rate,
        grad_norm=norm,
        tokens=tokens,
        supervised=targets,
        tokens_per_second=tokens / seconds,
    )
    note = f"loss {total / targets:.4f}, lr {rate:.2e}, {tokens / seconds:.0f} tok/s"
    run.progress("train", state.step, run.plan.total, "step", note)


def look(run: Run) -> None:
    """Evaluate, and tell of it; may set `run.state.stop`."""
    values = run.monitor.look(run.state)
    if values:
        run.recorder.event("evaluation", run.state.step, **values)


def _refuse(run: Run, what: str) -> NoReturn:
    """Leave the weights as they are before this step, and end the run."""
    run.trainee.optimizer.zero_grad()
    step = run.state.step
    path = run.recorder.checkpoint(run.state, run.tensors())
    run.recorder.event("stop", step, reason="non-finite", detail=what)
    kept = "the weights are unchanged" if path is None else f"the weights before it are in {path}"
    raise NonFiniteLossError(
        f"step {step + 1} of {run.plan.total}: {what}; {kept}. Start again with a lower "
        "training.learning_rate or a longer warm-up, or look at those samples"
    )


def _culprits(run: Run, batch: Batch, found: TokenLosses) -> str:
    """The samples whose losses are not finite."""
    places = found.samples[~found.losses.isfinite()].unique().tolist()
    origins = [str(run.samples[batch.indices[place]].origin) for place in places]
    if not origins:
        return "a whole micro-batch"
    more = f" and {len(origins) - 3} more samples" if len(origins) > 3 else ""
    return ", ".join(origins[:3]) + more


def _tick(clock: float, seconds: float) -> tuple[float, float]:
    now = time.perf_counter()
    return now, seconds + now - clock
