"""A whole run: from a config to a proven adapter in a folder."""

from __future__ import annotations

import dataclasses
import platform
import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from rango.adapters.attach import Adapted, attach
from rango.base.classifier import check_single_label, draw_head, stored_labels
from rango.base.load import Base, load_configured
from rango.base.packing import Packing, packing_probe
from rango.base.tokenizer import load_tokenizer
from rango.data.templates.choose import use_template
from rango.errors import ConfigError
from rango.evaluation.fit import check_fit
from rango.progress import Progress, silent
from rango.training.checkpoint import Origins
from rango.training.config import RunConfig
from rango.training.finish import finish
from rango.training.fit import check_causal, train_model
from rango.training.monitor import check_measurable
from rango.training.prepare import Samples, prepare_samples
from rango.training.recorder import FolderRecorder
from rango.training.result import RunResult
from rango.training.run_folder import RunFolder, deciding
from rango.training.schedule import StepPlan, check_training, peak_learning_rate, plan_steps

__all__ = ["train", "train_model"]


def train(config: RunConfig, *, resume: bool = False, progress: Progress = silent) -> RunResult:
    """Train as `config` says and leave everything in the folder `config.output`.

    resume: continue a run that was interrupted, from its last checkpoint (from the start, if it
    had none yet); the result is that of an undisturbed run, bit for bit.

    Full fine-tuning of a base whose type is "as stored" trains it in fp32: in bf16 most updates
    are smaller than the weights' last bit.

    Data of text+label make a classifier of the base, with a head of its own if it has none.

    Raises OutputExistsError, ConfigError, DataError, CheckpointError, TokenizerError, TargetError
    before anything is written; then NonFiniteLossError, StorageError, KeyboardInterrupt, which
    leave a run to resume; VerificationError if what was saved does not compute what was trained.
    """
    folder = RunFolder(config.output)
    folder.check(resume)
    config = _with_defaults(config)
    tokenizer = load_tokenizer(config.base.model, config.base.revision)
    tokenizer = use_template(tokenizer, config.data.chat_template)
    stored = stored_labels(config.base.model, config.base.revision)
    samples = prepare_samples(config.data, tokenizer, progress, stored=stored)
    check_measurable(config.training, bool(samples.valid), bool(samples.general))
    base = _load(config, samples.labels, progress)
    for some in (samples.train.samples, samples.valid, samples.general):
        check_fit(some, base.model)
    plan = plan_steps(config.training, len(samples.train.samples))
    config = _with_plan(config, plan)
    packing = _packing(config, base)
    model = _model(config, base)
    with folder.open(dataclasses.asdict(config), resume) as log:
        folder.note_skipped(samples.bad)
        origins = _origins(config, base, samples)
        recorder = FolderRecorder(
            log, folder.checkpoints, origins, config.training.keep_checkpoints
        )
        start = recorder.latest() if resume else None
        recorder.event(
            "start", start.state.step if start else 0, **_circumstances(plan, samples, packing)
        )
        try:
            trained = train_model(
                model,
                samples.train.samples,
                samples.valid,
                config.training,
                general=samples.general,
                packed=packing.how,
                pad_id=tokenizer.pad_token_id,
                recorder=recorder,
                start=start,
                progress=progress,
            )
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt(
                f"{interruption or 'interrupted'}; to continue: {_resume_command(folder)}"
            ) from interruption
        return finish(folder, config, model, tokenizer, samples, trained, recorder, progress)


def _resume_command(folder: RunFolder) -> str:
    words = ["rango", "train", "--config", str(folder.path / "config.yaml"), "--resume"]
    return shlex.join(words)


def _with_defaults(config: RunConfig) -> RunConfig:
    """The config with everything filled in that does not depend on the data."""
    check_training(config.training)
    base = config.base
    if config.training.method == "full":
        if base.quantize != "none":
            raise ConfigError(
                f"training.method full trains every weight, which base.quantize {base.quantize} "
                "does not allow; set base.quantize to none, or training.method to lora (QLoRA)"
            )
        if base.dtype == "as stored":
            base = replace(base, dtype="fp32")
    rate = peak_learning_rate(config.training)
    return replace(config, base=base, training=replace(config.training, learning_rate=rate))


def _with_plan(config: RunConfig, plan: StepPlan) -> RunConfig:
    training = replace(
        config.training, eval_every=plan.eval_every, checkpoint_every=plan.checkpoint_every
    )
    return replace(config, training=training)


def _load(config: RunConfig, labels: Sequence[str], progress: Progress) -> Base:
    base = load_configured(config.base, labels=labels or None, progress=progress)
    if labels:
        check_single_label(base.model, base.source)
    else:
        check_causal(base)
    return base


def _packing(config: RunConfig, base: Base) -> Packing:
    if config.data.packing == "off":
        return Packing(ok=False, error=0.0, reason="switched off by data.packing")
    return packing_probe(base.model)


def _model(config: RunConfig, base: Base) -> Adapted | Base:
    if config.training.method == "full":
        draw_head(base.model, config.training.seed)
        return base
    return attach(base, config.adapter, seed=config.training.seed)


def _origins(config: RunConfig, base: Base, samples: Samples) -> Origins:
    return Origins(deciding(dataclasses.asdict(config)), base.fingerprint, samples.digest)


def _circumstances(plan: StepPlan, samples: Samples, packing: Packing) -> dict[str, Any]:
    return {
        "total": plan.total,
        "per_epoch": plan.per_epoch,
        "train_samples": len(samples.train.samples),
        "valid_samples": len(samples.valid),
        "skipped": samples.skipped,
        "packed": packing.ok,
        "packing": packing.reason,
        "versions": {
            **{name: version(name) for name in ("rango", "torch", "transformers")},
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }
