"""Training with tokenized samples in hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rango.adapters.attach import Adapted
from rango.base.linear import QuantizedLinear
from rango.base.load import Base
from rango.base.packing import packing_probe
from rango.data.samples import Sample
from rango.data.tokens.pack import Packed, epoch_order
from rango.errors import ConfigError, DataError
from rango.evaluation.fit import check_labelled
from rango.progress import Progress, silent
from rango.training.checkpoint import Checkpoint, RunState
from rango.training.config import TrainingConfig
from rango.training.loop import Run, run_steps
from rango.training.memory import PeakMemory
from rango.training.monitor import COMPLETED, Monitor
from rango.training.recorder import Recorder, Unrecorded
from rango.training.reference import forgetting_of
from rango.training.result import Trained
from rango.training.schedule import check_training, plan_steps
from rango.training.trainee import FullTrainee, LoraTrainee, Trainee, restore


def train_model(
    model: Adapted | Base,
    samples: Sequence[Sample],
    valid: Sequence[Sample] = (),
    config: TrainingConfig | None = None,
    *,
    row: int = 0,
    general: Sequence[Sample] = (),
    packed: Packed | None = None,
    pad_id: int = 0,
    recorder: Recorder | None = None,
    start: Checkpoint | None = None,
    progress: Progress = silent,
) -> Trained:
    """Train row `row` of an attached adapter, or every weight of a base, in place.

    samples are learnt; valid are evaluated on at the start, during the run and at the end, and
    then decide which weights are kept; on general, forgetting is measured. packed: samples share
    rows without padding (None: where the probe shows that the model keeps them apart). start: a
    checkpoint of the same run to go on from.

    Raises ConfigError for options that make no sense, DataError without samples,
    NonFiniteLossError, KeyboardInterrupt (see rango.training.loop), and what the recorder raises.
    """
    trainee = _trainee(model, config, row)
    config = trainee.config
    if not samples:
        raise DataError("no samples to train on")
    check_labelled(model.model, samples[:1])
    plan = plan_steps(config, len(samples))
    packed = packing_probe(model.model).how if packed is None else packed
    state = start.state if start else RunState()
    # before any weight moves: full fine-tuning keeps a copy of the base to compare with
    forgetting = forgetting_of(model, general, config, packed=packed, pad_id=pad_id)
    monitor = Monitor(
        trainee,
        valid,
        packed=packed,
        pad_id=pad_id,
        forgetting=forgetting,
        progress=progress,
    )
    if start:
        restore(trainee, start.tensors["weights"])
        trainee.optimizer.load_state(start.tensors["optimizer"])
        monitor.best = start.tensors["best"]
    peak = PeakMemory(next(model.model.parameters()).device)
    run = Run(
        trainee=trainee,
        samples=samples,
        plan=plan,
        state=state,
        monitor=monitor,
        recorder=recorder or Unrecorded(),
        packed=packed,
        pad_id=pad_id,
        progress=progress,
    )
    run_steps(run)
    return conclude(run, model, peak.bytes())


def conclude(run: Run, model: Adapted | Base, peak_memory: int) -> Trained:
    """Put the best weights back, and say what became of a run that has ended."""
    trainee, state, monitor = run.trainee, run.state, run.monitor
    if monitor.best:
        restore(trainee, monitor.best)
    with trainee.learning():
        train_loss = _loss_on_some(monitor, run.samples, len(monitor.valid), trainee.config.seed)
    adapted = _evaluation_at(state, state.best_step)
    return Trained(
        steps=state.step,
        stop=state.stop or COMPLETED,
        best_step=state.best_step,
        base=_evaluation_at(state, 0),
        adapted=adapted,
        train_loss=train_loss,
        gap=None if train_loss is None else adapted["loss"] - train_loss,
        trainable=trainee.trainable(),
        share=trainee.trainable() / _parameters(model),
        tokens=state.tokens,
        supervised=state.supervised,
        seconds=state.seconds,
        step_seconds=state.step_seconds,
        peak_memory=peak_memory,
        packed=bool(run.packed),
        evaluations=state.evaluations,
    )


def _trainee(model: Adapted | Base, config: TrainingConfig | None, row: int) -> Trainee:
    method: Literal["lora", "full"] = "lora" if isinstance(model, Adapted) else "full"
    config = config or TrainingConfig(method=method)
    if config.method != method:
        given = "adapters attached" if method == "lora" else "a base without adapters"
        raise ConfigError(
            f"training.method is {config.method}, and the model given has {given}; set method to "
            f"{method}, or {'detach' if method == 'lora' else 'attach'} them"
        )
    check_training(config)
    base = model.base if isinstance(model, Adapted) else model
    if base is not None and base.kind != "classifier":
        check_causal(base)
    if isinstance(model, Adapted):
        return LoraTrainee(model, config, row)
    return FullTrainee(model, config)


def check_causal(base: Base) -> None:
    """Raise ConfigError for a base that does not continue text."""
    if base.kind == "classifier":
        raise ConfigError(
            f"{base.source}: a classifier (labels {', '.join(base.labels)}), which learns from "
            "text+label data; these have no labels"
        )
    if base.kind != "causal":
        raise ConfigError(
            f"{base.source}: an encoder ({type(base.model).__name__}), and training teaches a "
            "model to continue text; choose a causal language model, or give text+label data to "
            "train a classifier"
        )


def _loss_on_some(
    monitor: Monitor, samples: Sequence[Sample], count: int, seed: int
) -> float | None:
    """Mean loss on the first `count` training samples of the first epoch."""
    some = [samples[index] for index in epoch_order(len(samples), seed, 0)[:count]]
    return monitor.evaluate(some).loss if some else None


def _evaluation_at(state: RunState, step: int | None) -> dict[str, Any]:
    """The evaluation at a step, or the last."""
    if step is None:
        return state.evaluations[-1]
    return next(values for values in state.evaluations if values["step"] == step)


def _parameters(model: Adapted | Base) -> int:
    """Parameters of the base, quantized ones counted by their number and tied ones once."""
    own = {id(leaf) for leaf in model.parameters()} if isinstance(model, Adapted) else set()
    packed = sum(
        module.in_features * module.out_features
        for module in model.model.modules()
        if isinstance(module, QuantizedLinear)
    )
    plain = sum(p.numel() for p in model.model.parameters() if id(p) not in own)
    return packed + plain
