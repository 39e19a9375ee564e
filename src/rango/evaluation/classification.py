"""What a classifier is worth on labelled samples: by label, and which it takes for which."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelScore:
    """One label."""

    label: str
    precision: float | None
    """Of the samples given this label, the share that has it; None where none was given it."""
    recall: float | None
    """Of the samples that have it, the share given it; None where none has it."""
    f1: float
    """2·tp / (2·tp + fp + fn); 0 where the label is neither there nor given."""
    samples: int
    """That have it."""


@dataclass(frozen=True)
class Classification:
    """A classifier on some samples."""

    loss: float
    """Cross-entropy, nats a sample; ln K of a model that knows nothing of K labels."""
    accuracy: float
    """Share of samples given their label."""
    macro_f1: float
    """Mean of the labels' F1, of those that occur in the samples or in the answers."""
    labels: list[LabelScore]
    """In the order of the logits."""
    confusion: list[list[int]]
    """K × K counts: row the true label, column the one given."""
    samples: int
    """Samples evaluated."""

    def gap(self, training: Classification) -> float:
        """Held-out minus training loss, nats a sample: what was learnt by heart."""
        return self.loss - training.loss

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dataclasses.asdict(self)


class ClassSums:
    """Adds up batches: the loss in the precision of Python's floats, and the counts."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._loss = 0.0
        self._confusion = torch.zeros(len(labels), len(labels), dtype=torch.int64)

    def add(self, losses: Tensor, targets: Tensor, given: Tensor) -> None:
        """Samples with their loss (n,), their label (n,) and the likeliest one (n,)."""
        self._loss += float(losses.double().sum())
        ones = torch.ones(len(targets), dtype=torch.int64)
        self._confusion.index_put_((targets.cpu(), given.cpu()), ones, accumulate=True)

    def result(self) -> Classification:
        """Of all samples added, of which there must be some."""
        total = int(self._confusion.sum())
        scores = _scores(self._labels, self._confusion)
        met = [score.f1 for score, count in zip(scores, self._met(), strict=True) if count]
        return Classification(
            loss=self._loss / total,
            accuracy=int(self._confusion.trace()) / total,
            macro_f1=sum(met) / len(met),
            labels=scores,
            confusion=self._confusion.tolist(),
            samples=total,
        )

    def _met(self) -> list[int]:
        found: list[int] = (self._confusion.sum(dim=0) + self._confusion.sum(dim=1)).tolist()
        return found


def _scores(labels: Iterable[str], confusion: Tensor) -> list[LabelScore]:
    scores = []
    for index, label in enumerate(labels):
        right = int(confusion[index, index])
        given, have = int(confusion[:, index].sum()), int(confusion[index].sum())
        scores.append(
            LabelScore(
                label,
                precision=right / given if given else None,
                recall=right / have if have else None,
                f1=2 * right / (given + have) if given + have else 0.0,
                samples=have,
            )
        )
    return scores
