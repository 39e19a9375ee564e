"""Evaluation during a run, and the reasons to end it early."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from rango.data.samples import Sample
from rango.data.tokens.pack import Packed
from rango.errors import ConfigError
from rango.evaluation.evaluate import evaluate
from rango.evaluation.forgetting import Forgetting
from rango.progress import Progress, silent
from rango.training.checkpoint import RunState
from rango.training.config import TrainingConfig
from rango.training.trainee import Trainee, snapshot

COMPLETED, PATIENCE, FORGETTING = "completed", "patience", "forgetting"
"""Why a run ended by itself."""
_DETAILS = ("labels", "confusion")
"""What grows with the number of a classifier's labels: kept of its first look, its best and its
last."""


class Monitor:
    """Looks at a run every now and then.

    Each look evaluates the held-out samples and, where there is general text, how far the model
    has moved from its base on it; keeps a copy of the weights with the best held-out loss (the
    base itself, at step 0, does not count; neither does a look above max_forgetting); and says
    whether to stop.
    """

    def __init__(
        self,
        trainee: Trainee,
        valid: Sequence[Sample],
        *,
        packed: Packed,
        pad_id: int = 0,
        forgetting: Callable[[Progress], Forgetting] | None = None,
        progress: Progress = silent,
    ) -> None:
        config = trainee.config
        check_measurable(config, bool(valid), forgetting is not None)
        self.trainee, self.valid, self.config = trainee, valid, config
        self.best: dict[str, Tensor] = {}
        self._packed, self._pad_id = packed, pad_id
        self._forgetting, self._progress = forgetting, progress

    def look(self, state: RunState) -> dict[str, Any]:
        """Evaluate now; updates `state` (its best, its stop) and returns the event's values, a
        classifier's figures by label left out."""
        values: dict[str, Any] = {}
        if self.valid:
            with nullcontext() if state.step else self.trainee.untrained():
                values |= dataclasses.asdict(self.evaluate(self.valid))
        if state.recent_supervised:
            values["train_loss"] = state.recent_loss / state.recent_supervised
            if self.valid:
                values["gap"] = values["loss"] - values["train_loss"]
        if self._forgetting is not None:
            moved = self._forgetting(self._progress)
            values |= {
                "kl": moved.kl,
                "general_loss": moved.loss,
                "general_base_loss": moved.base_loss,
            }
        state.recent_loss, state.recent_supervised = 0.0, 0
        state.evaluations.append({"step": state.step} | values)
        if state.step > 0:
            self._judge(state, values)
        for earlier in state.evaluations[1:-1]:
            if earlier["step"] != state.best_step:
                for name in _DETAILS:
                    earlier.pop(name, None)
        return {name: value for name, value in values.items() if name not in _DETAILS}

    def evaluate(self, samples: Sequence[Sample]) -> Any:
        """Evaluation of the model as it is."""
        return evaluate(
            self.trainee.model,
            samples,
            micro_tokens=self.config.micro_tokens,
            packed=self._packed,
            pad_id=self._pad_id,
            progress=self._progress,
        )

    def _judge(self, state: RunState, values: dict[str, Any]) -> None:
        limit = self.config.max_forgetting
        if limit is not None and not values["kl"] <= limit:
            state.stop = FORGETTING
            return
        if not self.valid:
            if limit is not None:  # the last look within the limit
                state.best_step, self.best = state.step, snapshot(self.trainee)
            return
        if values["loss"] < (math.inf if state.best_loss is None else state.best_loss):
            state.best_step, state.best_loss, state.worse = state.step, values["loss"], 0
            self.best = snapshot(self.trainee)
            return
        state.worse += 1
        if self.config.patience is not None and state.worse >= self.config.patience:
            state.stop = PATIENCE


def check_measurable(config: TrainingConfig, held_out: bool, general: bool) -> None:
    """Raise ConfigError where a reason to stop is asked for that nothing can show."""
    if config.patience is not None and not held_out:
        raise ConfigError(
            "training.patience stops on the held-out loss, and no samples are held out; give "
            "data.valid or a data.valid_share above 0"
        )
    if config.max_forgetting is not None and not general:
        raise ConfigError(
            "training.max_forgetting needs text to measure forgetting on; give data.general, or "
            "held-out samples whose prompts serve"
        )
