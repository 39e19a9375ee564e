"""Train many adapters over one base, from a config to a folder a job."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rango.adapters.attach import attach_targets
from rango.adapters.config import LoraConfig
from rango.adapters.targets import Target, find_targets
from rango.base.load import Base, load_configured
from rango.base.packing import packing_probe
from rango.base.roles import Uncovered, uncovered_weights
from rango.base.tokenizer import load_tokenizer
from rango.data.tokens.pack import Packed
from rango.errors import ConfigError, TargetError
from rango.progress import Progress, silent
from rango.tracking.events import json_numbers
from rango.training.checkpoint import Origins
from rango.training.many.config import ManyConfig, check_many
from rango.training.many.fleet import FAILED, Fleet, Outcome
from rango.training.run_folder import RunFolder, deciding

_FILES_A_JOB, _OTHER_FILES = 12, 256


@dataclass(frozen=True)
class ManyResult:
    """A finished run of many jobs."""

    output: str
    """The run's folder; each job's is OUTPUT/jobs/NAME."""
    outcomes: dict[str, Outcome]
    """What became of each job, in the order of the config."""

    @property
    def failed(self) -> dict[str, str]:
        """Why, by name."""
        found = self.outcomes.items()
        return {name: outcome.detail for name, outcome in found if outcome.status == FAILED}

    def as_dict(self) -> dict[str, Any]:
        """What result.json holds."""
        jobs = {name: dataclasses.asdict(outcome) for name, outcome in self.outcomes.items()}
        return json_numbers({"output": self.output, "jobs": jobs})


def train_many(
    config: ManyConfig,
    *,
    resume: bool = False,
    watch: Callable[[Fleet], None] = lambda fleet: None,
    progress: Progress = silent,
) -> ManyResult:
    """Train the jobs of `config` at once over one base: each as if alone, to within rounding.

    Every job gets what training it alone would give: its own order of samples, its loss over its
    own targets, its steps, schedule, clipping, evaluations and stopping. One whose data cannot be
    used, or that diverges, ends by itself and is told of in the result; the others go on.

    resume: continue an interrupted run from its last snapshot; the result is that of an undisturbed
    run, bit for bit. watch: called after each round and whenever a job begins or ends.

    Raises OutputExistsError, ConfigError, CheckpointError, TokenizerError, TargetError before
    anything is written; then StorageError and KeyboardInterrupt, which leave a run to resume.
    """
    check_many(config)
    folder = RunFolder(config.output, many=True)
    folder.check(resume)
    _allow_files(config)
    tokenizer = load_tokenizer(config.base.model, config.base.revision)
    base = load_configured(config.base, progress=progress)
    if base.kind != "causal":
        raise ConfigError(
            f"{base.source}: {type(base.model).__name__} does not continue text, and many jobs at "
            "once train models that do; train a classifier with rango train"
        )
    targets = _Targets(base, config)
    packed = _packed(base, config)
    rows = min(config.rows, len(config.jobs))
    adapted = attach_targets(base.model, targets.union(), rows=rows, base=base)
    fleet = None
    try:
        with folder.open(dataclasses.asdict(config), resume):
            fleet = Fleet(
                config=config,
                folder=folder,
                adapted=adapted,
                tokenizer=tokenizer,
                targets=targets.of,
                uncovered=targets.left_by,
                packed=packed,
                origins=Origins(_deciding(config), base.fingerprint, ""),
                watch=watch,
                progress=progress,
            )
            fleet.run()
            result = ManyResult(
                str(folder.path), {job.name: fleet.outcomes[job.name] for job in config.jobs}
            )
            folder.finish(result.as_dict())
            shutil.rmtree(fleet.snapshots, ignore_errors=True)
            return result
    finally:
        if fleet is not None:
            fleet.close()
        adapted.detach()


class _Targets:
    """What each job adapts; jobs with the same adapter share the answer."""

    def __init__(self, base: Base, config: ManyConfig) -> None:
        self._keys = {job.name: _key(job.adapter) for job in config.jobs}
        self._found = {
            key: find_targets(base.model, adapter)
            for key, adapter in {_key(job.adapter): job.adapter for job in config.jobs}.items()
        }
        head = base.model.get_output_embeddings()
        self._uncovered = {}
        for key, targets in self._found.items():
            covered = {target.module for target in targets}
            if any(base.model.get_submodule(name) is head for name in covered):
                raise TargetError(
                    "the head sees only some tokens of a batch, so jobs that share batches cannot "
                    "adapt it; leave it out of target_modules, or train that job alone"
                )
            self._uncovered[key] = uncovered_weights(base.model, covered)

    def of(self, name: str) -> list[Target]:
        """A job's targets."""
        return self._found[self._keys[name]]

    def left_by(self, name: str) -> list[Uncovered]:
        """The weights that a job leaves as they are."""
        return self._uncovered[self._keys[name]]

    def union(self) -> list[Target]:
        """The sites of all jobs, each with the largest rank that any of them has there."""
        sites: dict[str, Target] = {}
        for targets in self._found.values():
            for target in targets:
                known = sites.get(target.name)
                r = max(target.r, known.r) if known else target.r
                sites[target.name] = replace(target, r=r)
        return list(sites.values())


def _allow_files(config: ManyConfig) -> None:
    """Raise the soft limit on open files to what the rows need; ConfigError where that is refused.

    A job in training maps the files of its samples and writes its log.
    """
    needed = _FILES_A_JOB * min(config.rows, len(config.jobs)) + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(
            f"rows: {config.rows} jobs at once need {needed} open files, and the system allows "
            f"{hard}; lower rows"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _key(adapter: LoraConfig) -> str:
    return json.dumps(dataclasses.asdict(adapter), sort_keys=True)


def _packed(base: Base, config: ManyConfig) -> Packed:
    """Samples share rows unless the model, or a job's config, does not let them."""
    if any(job.data.packing == "off" for job in config.jobs):
        return False
    return packing_probe(base.model).how


def _deciding(config: ManyConfig) -> dict[str, Any]:
    """The options that the result depends on."""
    jobs = {job.name: deciding(dataclasses.asdict(config.run_config(job))) for job in config.jobs}
    alone = ("rows", "round_tokens", "micro_tokens", "gradient_checkpointing")
    # rounds, and so the order of sums, follow from the order of the jobs
    return {name: getattr(config, name) for name in alone} | {"jobs": jobs, "order": list(jobs)}
