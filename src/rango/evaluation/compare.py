"""Base, LoRA, QLoRA and full fine-tuning side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rango.evaluation.evaluate import Evaluation
from rango.evaluation.forgetting import Forgetting


@dataclass(frozen=True)
class Measured:
    """What was measured of one method, in one run; None where it does not apply."""

    method: str
    """Such as base, LoRA, QLoRA, full; runs of one name are averaged."""
    evaluation: Evaluation | None = None
    exact_match: float | None = None
    forgetting: Forgetting | None = None
    trainable: int | None = None
    """Trained parameters."""
    total: int | None = None
    """Parameters of the base."""
    peak_memory: int | None = None
    """Bytes."""
    seconds: float | None = None
    """Of training."""
    adapter_bytes: int | None = None
    """On disk: of the adapter, or of the whole model where that is what was trained."""


@dataclass(frozen=True)
class ComparisonRow:
    """One method: the mean over its runs, and the spread where there are several."""

    method: str
    runs: int
    values: dict[str, float | None]
    """trainable, share (of the base's parameters), loss, perplexity, token_accuracy, content_loss,
    content_accuracy, exact_match, forgetting (KL from the base), general_loss, peak_memory (bytes),
    seconds, adapter_bytes."""
    spread: dict[str, float] = field(default_factory=dict)
    """Sample standard deviation of those of the values that every run has."""

    def as_dict(self) -> dict[str, Any]:
        """method, runs, the values, and each spread as `<name>_spread`."""
        spread = {f"{name}_spread": value for name, value in self.spread.items()}
        return {"method": self.method, "runs": self.runs, **self.values, **spread}


def compare(runs: Sequence[Measured]) -> list[ComparisonRow]:
    """One row a method, in the order in which the methods first occur."""
    methods: dict[str, list[dict[str, float | None]]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(_figures(run))
    return [_row(method, figures) for method, figures in methods.items()]


def _figures(run: Measured) -> dict[str, float | None]:
    evaluation, moved = run.evaluation, run.forgetting
    share = None
    if run.trainable is not None and run.total:
        share = run.trainable / run.total
    return {
        "trainable": run.trainable,
        "share": share,
        "loss": evaluation.loss if evaluation else None,
        "perplexity": evaluation.perplexity if evaluation else None,
        "token_accuracy": evaluation.token_accuracy if evaluation else None,
        "content_loss": evaluation.content_loss if evaluation else None,
        "content_accuracy": evaluation.content_accuracy if evaluation else None,
        "exact_match": run.exact_match,
        "forgetting": moved.kl if moved else None,
        "general_loss": moved.loss if moved else None,
        "peak_memory": run.peak_memory,
        "seconds": run.seconds,
        "adapter_bytes": run.adapter_bytes,
    }


def _row(method: str, figures: list[dict[str, float | None]]) -> ComparisonRow:
    values: dict[str, float | None] = {}
    spread: dict[str, float] = {}
    for name in figures[0]:
        known = [value for figure in figures if (value := figure[name]) is not None]
        values[name] = _mean(known)
        # counts that all runs share (trainable parameters) have no spread worth a column
        if len(known) > 1 and len(known) == len(figures) and len(set(known)) > 1:
            spread[name] = statistics.stdev(known)
    return ComparisonRow(method, len(figures), values, spread)


def _mean(known: list[float]) -> float | None:
    if not known:
        return None
    if len(set(known)) == 1:
        return known[0]  # a count stays a whole number
    return math.fsum(known) / len(known)
