"""Search for the best options, from a config to the winner's adapter in a folder."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rango.data.templates.choose import use_template
from rango.errors import ConfigError, DataError, NonFiniteLossError
from rango.evaluation.fit import check_fit, check_labelled
from rango.files.atomic import atomic_directory, write_text
from rango.progress import Progress, silent
from rango.report.sweep_page import write_sweep_page
from rango.training.checkpoint import Origins
from rango.training.many.config import JOBS
from rango.training.many.fleet import Fleet
from rango.training.many.ground import Ground, ground
from rango.training.prepare import Samples, prepare_samples
from rango.training.run_folder import RunFolder, deciding
from rango.training.schedule import plan_steps
from rango.training.sweep.candidate import FAILED, FINISHED, Candidate
from rango.training.sweep.check import check_sweep
from rango.training.sweep.config import SweepConfig
from rango.training.sweep.extra import optuna
from rango.training.sweep.result import SweepResult, conclude_sweep
from rango.training.sweep.source import Candidates, job_of
from rango.training.sweep.space import Choice, Space
from rango.training.sweep.study import Study

BEST, RECIPE = "best", "recipe.yaml"
_LEAST_HELD_OUT = 2
"""One sample says nothing about how far the choice of samples moves a loss."""


def sweep(
    config: SweepConfig,
    *,
    resume: bool = False,
    watch: Callable[[Fleet], None] = lambda fleet: None,
    progress: Progress = silent,
) -> SweepResult:
    """Try candidates of a space of options, and leave the best one's adapter in OUTPUT/best.

    The candidates train at once as rows of one bank, on the same samples in the same order, and are
    compared on the same held-out samples: at rungs, where losers are pruned and give their rows to
    new candidates, and at the end.

    resume: continue an interrupted sweep from its last snapshot; the result is that of an
    undisturbed one, bit for bit. watch: called after each round and whenever a candidate begins or
    ends.

    Raises OutputExistsError, ConfigError, DataError, CheckpointError, TokenizerError, TargetError
    before anything is written; then StorageError and KeyboardInterrupt, which leave a sweep to
    resume; NonFiniteLossError, when all is written, where no candidate came to its end.
    """
    space, total = check_sweep(config)
    config = replace(config, space=space.plain())  # however it was written
    optuna()  # missing, it is missed now
    folder = RunFolder(config.output, kind="sweep")
    folder.check(resume)
    rows = min(config.rows, total)
    pack = config.data.packing != "off"
    adapters = space.shapes(config.adapter)
    with ground(config.base, adapters, rows=rows, pack=pack, progress=progress) as under:
        tokenizer = use_template(under.tokenizer, config.data.chat_template)
        samples = prepare_samples(config.data, tokenizer, progress)
        check_labelled(under.adapted.model, samples.train.samples[:1])
        for some in (samples.train.samples, samples.valid, samples.general):
            check_fit(some, under.adapted.model)
        _check_samples(config, space, samples)
        with folder.open(dataclasses.asdict(config), resume):
            found = _run(config, space, total, folder, under, samples, watch, progress)
            result = conclude_sweep(
                config,
                space,
                found.all,
                base_loss=found.base_loss,
                held_out=len(samples.valid),
            )
            if result.best.status == FINISHED:
                _keep_adapter(folder, result.best)
            _keep_recipe(folder, config, result.best, len(samples.train.samples))
            write_sweep_page(folder.path, result.as_dict())
            folder.finish(result.as_dict())
            shutil.rmtree(folder.snapshots, ignore_errors=True)
    if result.best.status != FINISHED:
        failed = sum(one.candidate.status == FAILED for one in result.candidates)
        raise NonFiniteLossError(
            f"{config.output}: none of {total} candidates came to its end: {failed} diverged, and "
            f"the others had been pruned. The best, {result.best.name} ({result.best.detail}), is "
            f"trained by rango train --config {shlex.quote(result.recipe)}; or lower the range of "
            "learning_rate"
        )
    return result


def recipe(config: SweepConfig, best: Candidate, samples: int) -> dict[str, Any]:
    """What trains the candidate again, alone: the config of `rango train`, as plain values.

    samples: how many it trains on.
    """
    run = config.many().run_config(job_of(config, best))
    total = plan_steps(run.training, samples).total
    # one evaluation, at the end: the weights kept are those that the sweep compared
    run = replace(run, training=replace(run.training, eval_every=total))
    return dataclasses.asdict(run) | {"output": str(Path(config.output) / "again")}


def _run(
    config: SweepConfig,
    space: Space,
    total: int,
    folder: RunFolder,
    under: Ground,
    samples: Samples,
    watch: Callable[[Fleet], None],
    progress: Progress,
) -> Candidates:
    """Train and judge all candidates."""
    with closing(Study(folder.path, space)) as study:
        source = Candidates(
            config,
            space,
            total,
            study,
            samples=len(samples.train.samples),
            packed=under.packed,
            pad_id=under.tokenizer.pad_token_id,
        )
        fleet = Fleet(
            config=config.many(),
            source=source,
            folder=folder,
            ground=under,
            origins=Origins(_deciding(config), under.base.fingerprint, samples.digest),
            watch=watch,
            prepare=lambda data, tokenizer, progress: samples,
            progress=progress,
        )
        with closing(fleet):
            fleet.run()
        return source


def _keep_adapter(folder: RunFolder, best: Candidate) -> None:
    """best/, a copy of it."""
    with atomic_directory(folder.clear(BEST)) as working:
        shutil.copytree(folder.path / JOBS / best.name / "adapter", working, dirs_exist_ok=True)


def _keep_recipe(folder: RunFolder, config: SweepConfig, best: Candidate, samples: int) -> None:
    text = yaml.safe_dump(recipe(config, best, samples), sort_keys=False, allow_unicode=True)
    write_text(folder.path / RECIPE, text, overwrite=True)


def _check_samples(config: SweepConfig, space: Space, samples: Samples) -> None:
    """Raise where the data give nothing to judge on, or too few steps to judge after."""
    if len(samples.valid) < _LEAST_HELD_OUT:
        raise DataError(
            f"{config.data.train}: {len(samples.valid)} samples are held out, and candidates are "
            f"compared on at least {_LEAST_HELD_OUT}; give data.valid, or a larger data.valid_share"
        )
    least = config.eta**config.halvings
    for batch_size in _batch_sizes(config, space):
        training = replace(config.training, batch_size=batch_size)
        steps = plan_steps(training, len(samples.train.samples)).total
        if steps < least:
            raise ConfigError(
                f"a run of {steps} steps (batch_size {batch_size}) is too short for "
                f"{config.halvings} rungs at eta {config.eta}, which take {least}; train longer, "
                "or lower halvings"
            )


def _batch_sizes(config: SweepConfig, space: Space) -> list[int]:
    dimension = space.dimensions.get("batch_size")
    if dimension is None:
        return [config.training.batch_size]
    return [*dimension.values] if isinstance(dimension, Choice) else [int(dimension.high)]


def _deciding(config: SweepConfig) -> dict[str, Any]:
    """The options that the result depends on."""
    kept = deciding(dataclasses.asdict(config))
    kept.pop("snapshot_seconds")
    return kept
