"""Everything that decides a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.data.config import DataConfig
from rango.training.config import TrainingConfig
from rango.training.many.config import ManyConfig

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
