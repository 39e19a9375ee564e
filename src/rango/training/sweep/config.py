"""Everything that decides a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.data.config import DataConfig
from rango.errors import ConfigError
from rango.training.config import TrainingConfig
from rango.training.many.config import JobConfig, ManyConfig
from rango.training.schedule import check_training
from rango.training.sweep.space import Params, Space, applied
from rango.training.sweep.written import parse_space

CANDIDATES = 24
"""Unless told otherwise."""
_EVERY_JOB = 2**40
"""Tokens of a round: all candidates do a step in each."""


@dataclass(frozen=True)
class SweepConfig:
    """A search for the best options over one base and one data set."""

    base: BaseConfig
    """The frozen base, loaded once."""
    data: DataConfig
    """The samples of all candidates, which are judged on what is held out."""
    output: str
    """Folder of the sweep, which must not exist yet (or be an interrupted one, with --resume)."""
    space: dict[str, Any] = field(default_factory=dict)
    """What to try, by option: a range (1e-5..1e-2) or a list of values."""
    adapter: LoraConfig = field(default_factory=LoraConfig)
    """The adapter of all candidates, as far as the space says nothing."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How to train all candidates, as far as the space says nothing."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Where candidates come from: tpe learns from those before (Bergstra et al. 2011), random
    spreads them over the space, grid takes every point of lists."""
    candidates: int | None = None
    """How many to try; by default 24, or every point of a grid."""
    eta: int = 3
    """Of the candidates that reach a rung, one in this many goes on."""
    halvings: int = 2
    """Rungs before the end, at 1/eta of the run, 1/eta², …; 0 trains all candidates to the end."""
    rows: int = 8
    """Most candidates that train at once: each takes a row of the bank, with its gradient and
    AdamW's moments."""
    seed: int = 0
    """Seed of the choice of candidates; that of their training is training.seed."""
    snapshot_seconds: float = 60.0
    """Save everything that the sweep depends on this often, beside whenever it is interrupted."""

    def many(self) -> ManyConfig:
        """The run of many jobs that it is, without its jobs."""
        return ManyConfig(
            base=self.base,
            jobs=[],
            output=self.output,
            rows=self.rows,
            round_tokens=_EVERY_JOB,
            micro_tokens=self.training.micro_tokens,
            gradient_checkpointing=self.training.gradient_checkpointing,
            snapshot_seconds=self.snapshot_seconds,
        )

    def job(self, name: str, params: Params) -> JobConfig:
        """A candidate."""
        adapter, training = applied(params, self.adapter, self.training)
        return JobConfig(name, self.data, adapter, training)


def check_sweep(config: SweepConfig) -> tuple[Space, int]:
    """The space, and how many candidates there will be.

    Raises ConfigError naming what makes no sense.
    """
    space = parse_space(config.space)
    check_training(config.training)
    wrong = [*_faults(config, space)]
    if wrong:
        raise ConfigError("; ".join(wrong))
    if config.sampler == "grid":
        return space, space.size or 0
    asked = CANDIDATES if config.candidates is None else config.candidates
    return space, asked if space.size is None else min(asked, space.size)


def _faults(config: SweepConfig, space: Space) -> Iterator[str]:
    least = {"eta": 2, "halvings": 0, "rows": 1, "seed": 0}
    for name, value in least.items():
        if getattr(config, name) < value:
            yield f"{name}: expected at least {value}, found {getattr(config, name)}"
    if config.candidates is not None and config.candidates < 1:
        yield f"candidates: expected at least 1, found {config.candidates}"
    if not config.snapshot_seconds > 0:
        yield f"snapshot_seconds: expected above 0, found {config.snapshot_seconds}"
    if config.sampler not in ("tpe", "random", "grid"):
        yield f"sampler: expected tpe, random or grid, found {config.sampler!r}"
    if config.sampler == "grid":
        if space.size is None:
            endless = [name for name, d in space.dimensions.items() if d.size is None]
            yield (
                f"sampler grid: {', '.join(endless)}: a range has no end of points; list values, "
                "or say how many after the range (1e-5..1e-2:9)"
            )
        if config.candidates is not None:
            yield "sampler grid tries every point; leave candidates out"
    if config.data.valid is None and not config.data.valid_share > 0:
        yield (
            "data: a sweep judges on held-out samples; give data.valid, or a data.valid_share "
            "above 0"
        )
    if config.data.train == "-":
        yield "data.train: standard input cannot be read again; name a file"
    if config.training.method != "lora":
        yield f"training.method {config.training.method}: a sweep trains adapters; set it to lora"
    for name in ("eval_every", "patience", "max_forgetting"):
        if getattr(config.training, name) is not None:
            yield (
                f"training.{name}: a sweep judges at its rungs and compares what the runs end "
                "with; leave it out"
            )
    if config.training.max_steps is not None and "batch_size" in space.dimensions:
        yield (
            "training.max_steps counts steps, so that a larger batch_size would see more samples; "
            "bound the run by training.epochs, or leave batch_size out of the space"
        )
    if config.adapter.modules_to_save:
        yield "adapter.modules_to_save: candidates share batches and hold no layer whole"
