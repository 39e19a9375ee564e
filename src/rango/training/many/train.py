"""Train many adapters over one base, from a config to a folder a job."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from rango.progress import Progress, silent
from rango.tracking.events import json_numbers
from rango.training.checkpoint import Origins
from rango.training.many.config import ManyConfig, check_many
from rango.training.many.fleet import Fleet
from rango.training.many.ground import ground
from rango.training.many.outcome import FAILED, Outcome
from rango.training.many.source import JobList
from rango.training.run_folder import RunFolder, deciding


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
    folder = RunFolder(config.output, kind="jobs")
    folder.check(resume)
    rows = min(config.rows, len(config.jobs))
    pack = all(job.data.packing != "off" for job in config.jobs)
    adapters = [job.adapter for job in config.jobs]
    with (
        ground(config.base, adapters, rows=rows, pack=pack, progress=progress) as under,
        folder.open(dataclasses.asdict(config), resume),
    ):
        fleet = Fleet(
            config=config,
            source=JobList(config.jobs),
            folder=folder,
            ground=under,
            origins=Origins(_deciding(config), under.base.fingerprint, ""),
            watch=watch,
            progress=progress,
        )
        with closing(fleet):
            fleet.run()
        result = ManyResult(
            str(folder.path), {job.name: fleet.outcomes[job.name] for job in config.jobs}
        )
        folder.finish(result.as_dict())
        shutil.rmtree(fleet.snapshots, ignore_errors=True)
        return result


def _deciding(config: ManyConfig) -> dict[str, Any]:
    """The options that the result depends on."""
    jobs = {job.name: deciding(dataclasses.asdict(config.run_config(job))) for job in config.jobs}
    alone = ("rows", "round_tokens", "micro_tokens", "gradient_checkpointing")
    # rounds, and so the order of sums, follow from the order of the jobs
    return {name: getattr(config, name) for name in alone} | {"jobs": jobs, "order": list(jobs)}
