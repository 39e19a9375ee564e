"""Everything that decides a run of many jobs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.data.config import DataConfig
from rango.errors import AdapterError, ConfigError
from rango.files.names import adapter_name
from rango.training.config import RunConfig, TrainingConfig

JOBS = "jobs"
"""Where the jobs' folders lie in the output."""


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
    """How to train it. micro_tokens, gradient_checkpointing, checkpoint_every and keep_checkpoints
    are the whole run's and must not differ."""


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
        try:
            adapter_name(job.name)
        except AdapterError as error:
            wrong.append(f"jobs: {error}")
        # a file system may not tell capitals apart
        twin = seen.setdefault(job.name.lower(), job.name)
        if twin is not job.name:
            wrong.append(f"jobs: the name {job.name!r} is there twice ({twin!r})")
        if job.training.method != "lora":
            wrong.append(
                f"job {job.name}: training.method {job.training.method}: many jobs share a frozen "
                "base, so each trains an adapter; set it to lora"
            )
        if job.data.train == "-":
            wrong.append(f"job {job.name}: data.train: standard input cannot be read again; a file")
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ConfigError("; ".join(wrong[:10]) + more)
