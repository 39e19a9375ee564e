"""What a run gives back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rango.tracking.events import json_numbers
from rango.training.config import TrainingConfig
from rango.training.monitor import COMPLETED, FORGETTING, PATIENCE

Values = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """The outcome of the loop; the weights that are kept are in the model."""

    steps: int
    """Optimizer steps done."""
    stop: str
    """completed, patience or forgetting."""
    best_step: int | None
    """Step whose weights are kept; None where nothing was held out: the last."""
    base: Values
    """Evaluation of the base (loss, perplexity, …; kl where forgetting is measured)."""
    adapted: Values
    """Evaluation of the weights kept."""
    train_loss: float | None
    """Loss of the weights kept on as many training samples as are held out."""
    gap: float | None
    """Held-out loss less that."""
    trainable: int
    """Parameters that were trained."""
    share: float
    """Of those, as a share of the base's parameters."""
    tokens: int
    """Tokens computed in training."""
    supervised: int
    """Targets learnt from."""
    seconds: float
    """Time in all: steps, evaluations, checkpoints."""
    step_seconds: float
    """Time in steps."""
    peak_memory: int
    """Bytes: the most that this process took while training."""
    packed: bool
    """Whether samples shared rows without padding."""
    evaluations: list[Values] = field(default_factory=list)
    """Every evaluation, with its step."""

    @property
    def tokens_per_second(self) -> float:
        """Speed of the steps."""
        return self.tokens / self.step_seconds if self.step_seconds else 0.0

    def as_dict(self) -> Values:
        """Plain values."""
        values = dataclasses.asdict(self) | {"tokens_per_second": self.tokens_per_second}
        return json_numbers(values)

    def stopped(self, config: TrainingConfig) -> str:
        """Why the run ended and which weights are kept, as a sentence."""
        reason = {
            COMPLETED: f"All {self.steps} steps were done",
            PATIENCE: f"Stopped after {self.steps} steps: {config.patience} evaluations in a row "
            "gave no better held-out loss",
            FORGETTING: f"Stopped after {self.steps} steps: the KL divergence from the base on "
            f"general text exceeded {config.max_forgetting}",
        }[self.stop]
        if self.best_step is None:
            return f"{reason}; the last weights are kept."
        if "loss" not in self.adapted:
            return f"{reason}; the weights of step {self.best_step}, within the limit, are kept."
        return f"{reason}; the weights of step {self.best_step} had the best held-out loss."


@dataclass(frozen=True)
class RunResult:
    """A finished run. `facts` are those of rango.json and result.json, as
    rango.report.card.model_card describes them."""

    output: str
    """The run's folder."""
    saved: str
    """Folder of the adapter (or, with method full, of the model)."""
    trained: Trained
    facts: Values

    def as_dict(self) -> Values:
        """What result.json holds."""
        return json_numbers({"output": self.output, "saved": self.saved} | self.facts)
