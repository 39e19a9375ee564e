"""Everything that decides a run of many jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.data.config import DataConfig
from rango.errors import AdapterError, ConfigError
from rango.files.names import adapter_name
from rango.training.config import RunConfig, TrainingConfig
from rango.training.schedule import check_training, peak_learning_rate

JOBS = "jobs"
"""Where the jobs' folders lie in the output."""
SHARED = ("micro_tokens", "gradient_checkpointing", "checkpoint_every", "keep_checkpoints")
"""Of a run's options, those that are not a job's."""


@dataclass(frozen=True)
class JobConfig:
    """One adapter to train."""

    name: str
    """Its folder's name under OUTPUT/jobs: letters, digits, dot, underscore and hyphen."""
    data: DataConfig
    """Its samples."""
    adapter: LoraConfig = field(default_factory=LoraConfig)
    """The adapter; jobs may differ in rank, alpha, dropout and targets."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How to train it. What is the whole run's (see SHARED) stays as it is by default."""


@dataclass(frozen=True)
class ManyConfig:
    """Many jobs over one base."""

    base: BaseConfig
    """The frozen base, loaded once."""
    jobs: list[JobConfig]
    """In the order in which they begin."""
    output: str
    """Folder of the run, which must not exist yet (or be an interrupted run, with --resume)."""
    rows: int = 16
    """Most jobs that train at once: each takes a row of the bank, with its gradient and AdamW's
    moments. The others wait for a row."""
    round_tokens: int = 16384
    """Tokens of a round, in which no job does more than one step: with less than all jobs' next
    steps take, they take turns. Changes who waits, not what any job learns."""
    micro_tokens: int = 2048
    """Most tokens computed at once, of several jobs together; changes memory and speed but not the
    result."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each layer, and compute the rest again in the backward pass."""
    snapshot_seconds: float = 60.0
    """Save everything that the run depends on this often, beside whenever it is interrupted."""

    def run_config(self, job: JobConfig) -> RunConfig:
        """What the job alone would be trained with."""
        training = replace(
            job.training,
            learning_rate=peak_learning_rate(job.training),
            micro_tokens=self.micro_tokens,
            gradient_checkpointing=self.gradient_checkpointing,
        )
        output = str(Path(self.output) / JOBS / job.name)
        return RunConfig(self.base, job.data, output, job.adapter, training)


def check_many(config: ManyConfig) -> None:
    """Raise ConfigError naming everything that makes no sense about the run as a whole."""
    wrong = []
    if not config.jobs:
        wrong.append("jobs: expected at least one, found none")
    for name, least in (("rows", 1), ("round_tokens", 1), ("micro_tokens", 1)):
        if getattr(config, name) < least:
            wrong.append(f"{name}: expected at least {least}, found {getattr(config, name)}")
    if not config.snapshot_seconds > 0:
        wrong.append(f"snapshot_seconds: expected above 0, found {config.snapshot_seconds}")
    seen: dict[str, str] = {}
    for job in config.jobs:
        twin = job.name.lower()  # a file system may not tell capitals apart
        if twin in seen:
            wrong.append(f"jobs: the name {job.name!r} is there twice ({seen[twin]!r})")
        seen[twin] = job.name
        wrong += _faults(job)
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ConfigError("; ".join(wrong[:10]) + more)


def _faults(job: JobConfig) -> Iterator[str]:
    """What makes no sense about a job among others."""
    where = f"job {job.name}"
    try:
        adapter_name(job.name)
    except AdapterError as error:
        yield f"jobs: {error}"
    try:
        check_training(job.training)
    except ConfigError as error:
        yield f"{where}: {error}"
    if job.training.method != "lora":
        yield (
            f"{where}: training.method {job.training.method}: many jobs share a frozen base, so "
            "each trains an adapter; set it to lora"
        )
    for name in SHARED:
        if getattr(job.training, name) != getattr(TrainingConfig, name):
            yield (
                f"{where}: training.{name} is the whole run's; micro_tokens and "
                "gradient_checkpointing stand beside the jobs, and so does snapshot_seconds"
            )
    if job.adapter.modules_to_save:
        yield (
            f"{where}: adapter.modules_to_save: jobs that share batches hold no layer whole; leave "
            "it out, or train that job alone"
        )
    if job.data.train == "-":
        yield f"{where}: data.train: standard input cannot be read again; name a file"
