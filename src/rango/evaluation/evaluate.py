"""Loss, perplexity and accuracy on held-out samples: sums over tokens, divided once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rango.base.classifier import is_classifier, labels_of
from rango.base.packing import packing_probe
from rango.data.samples import IGNORED, Batch, Sample
from rango.data.tokens.pack import Packed, collate, lengths_of, plan_batches
from rango.errors import DataError
from rango.evaluation.classification import Classification, ClassSums
from rango.evaluation.fit import check_fit, check_labelled
from rango.evaluation.loss import TokenLosses, token_losses
from rango.generation.inference import inference
from rango.progress import Progress, silent


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on some samples; each figure is over all tokens of its kind."""

    loss: float
    """Nats a supervised token."""
    perplexity: float
    """exp(loss)."""
    token_accuracy: float
    """Share of supervised tokens that are the likeliest one, given the true ones before."""
    content_loss: float | None
    """Nats a content token: the answer without its end-of-turn marker. None without any."""
    content_accuracy: float | None
    """Token accuracy on content tokens."""
    tokens: int
    """Supervised tokens."""
    content_tokens: int
    """Content tokens among them."""
    samples: int
    """Samples evaluated."""

    def gap(self, training: Evaluation) -> float:
        """Held-out minus training loss, nats a token: what was learnt by heart. Both of the same
        model in eval mode, this one of the held-out samples."""
        return self.loss - training.loss

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dataclasses.asdict(self)


def evaluate(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    micro_tokens: int = 2048,
    packed: Packed | None = None,
    pad_id: int = 0,
    progress: Progress = silent,
) -> Evaluation | Classification:
    """Evaluate a model as it is: with its adapters, or without, inside `adapted.disabled()`.
    Of a classifier, on labelled samples, a Classification.

    packed None packs several samples in a row where a probe shows that the model keeps them apart.
    micro_tokens bounds what is computed at once and does not change the result. The model is in
    eval mode during it, and as it was afterwards. Raises DataError without supervised tokens.
    """
    config: Any = getattr(model, "config", None)
    classes = ClassSums(labels_of(config)) if is_classifier(model) else None
    sums = _Sums()
    for batch in batches(
        model,
        samples,
        micro_tokens=micro_tokens,
        packed=packed,
        pad_id=pad_id,
        task="evaluate",
        progress=progress,
    ):
        with inference(model):
            found = token_losses(model, batch)
        if classes is None:
            sums.add(found)
        elif found.given is not None:
            classes.add(found.losses, batch.targets[batch.targets != IGNORED], found.given)
    if classes is not None:
        return classes.result()
    return sums.result(len(samples))


def batches(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    micro_tokens: int,
    packed: Packed | None,
    pad_id: int,
    task: str,
    progress: Progress,
) -> Iterator[Batch]:
    """The batches of all samples, reporting progress in tokens as each has been used.

    packed None asks the probe. Raises DataError where no token of the samples is supervised.
    """
    if not any(sample.label is not None or any(sample.supervised[1:]) for sample in samples):
        raise DataError(
            f"{task}: expected samples with supervised tokens, found none in {len(samples)} samples"
        )
    check_labelled(model, samples[:1])
    check_fit(samples, model)
    if packed is None:
        packed = packing_probe(model).how
    plan = plan_batches(samples, range(len(samples)), micro_tokens=micro_tokens, packed=packed)
    total = int(lengths_of(samples, range(len(samples))).sum())
    done = 0
    for indices in plan:
        batch = collate(samples, indices, packed=packed, pad_id=pad_id)
        yield batch
        done += batch.tokens
        progress(task, done, total, "tokens")


@dataclass
class _Sums:
    """Sums over tokens, in the precision of Python's floats."""

    loss: float = 0.0
    correct: int = 0
    tokens: int = 0
    content_loss: float = 0.0
    content_correct: int = 0
    content_tokens: int = 0

    def add(self, found: TokenLosses) -> None:
        losses = found.losses.double()
        self.loss += float(losses.sum())
        self.correct += int(found.correct.sum())
        self.tokens += len(losses)
        self.content_loss += float(losses[found.content].sum())
        self.content_correct += int(found.correct[found.content].sum())
        self.content_tokens += int(found.content.sum())

    def result(self, samples: int) -> Evaluation:
        loss = self.loss / self.tokens
        content = self.content_tokens
        return Evaluation(
            loss=loss,
            perplexity=math.exp(loss) if loss < 700 else math.inf,
            token_accuracy=self.correct / self.tokens,
            content_loss=self.content_loss / content if content else None,
            content_accuracy=self.content_correct / content if content else None,
            tokens=self.tokens,
            content_tokens=content,
            samples=samples,
        )
