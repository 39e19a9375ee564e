"""Labels for texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from rango.adapters.attach import Adapted
from rango.base.classifier import check_single_label, is_classifier, labels_of
from rango.base.load import Base
from rango.data.samples import Batch, Example, Message, Origin, Sample
from rango.data.tokens.labelled import shortened, whole
from rango.data.tokens.pack import collate, plan_batches
from rango.errors import ConfigError, DataError
from rango.evaluation.fit import positions_of
from rango.evaluation.loss import class_logits
from rango.generation.inference import inference
from rango.progress import Progress, silent


@dataclass(frozen=True)
class Classified:
    """A text's label."""

    label: str
    """The likeliest."""
    probability: float
    probabilities: dict[str, float]
    """By label, in the order of the logits; they add up to 1."""


def classify(
    model: nn.Module | Adapted | Base,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    too_long: Literal["error", "truncate"] = "error",
    micro_tokens: int = 2048,
    progress: Progress = silent,
) -> list[Classified]:
    """The label of each text, in their order.

    model: a classifier: a base with labels, with its adapter or without (then it knows only what
    its checkpoint does). too_long: what to do with a text of more tokens than the model has
    positions. micro_tokens bounds what is computed at once and does not change the result.
    Raises ConfigError for a model that is no classifier, DataError for texts that are too long.
    """
    module: Any = model if isinstance(model, nn.Module) else model.model
    if not is_classifier(module):
        raise ConfigError(
            f"{type(module).__name__} gives no labels; load the base with load_base(BASE, "
            "labels=[…]), or with load_base_for(ADAPTER, BASE)"
        )
    check_single_label(module, type(module).__name__)
    labels = labels_of(module.config)
    samples = _samples(module, tokenizer, texts, too_long)
    found: dict[int, Classified] = {}
    for batch in _batches(samples, micro_tokens, tokenizer.pad_token_id):
        with inference(module):
            shares = torch.softmax(class_logits(module, batch).float(), dim=-1).cpu()
        for index, row in zip(batch.indices, shares.tolist(), strict=True):
            best = max(range(len(labels)), key=row.__getitem__)
            by_label = dict(zip(labels, row, strict=True))
            found[index] = Classified(labels[best], row[best], by_label)
        progress("classify", len(found), len(samples), "texts")
    return [found[index] for index in range(len(samples))]


def _samples(model: nn.Module, tokenizer: Any, texts: Sequence[str], too_long: str) -> list[Sample]:
    if not texts:
        return []
    limit = positions_of(model)
    examples = [
        Example("text", (Message("user", text),), Origin("text", number))
        for number, text in enumerate(texts, start=1)
    ]
    samples = []
    for example, sample in zip(examples, whole(tokenizer, examples, [0] * len(texts)), strict=True):
        number = example.origin.line
        if limit is not None and len(sample) > limit:
            if too_long == "error":
                raise DataError(
                    f"text {number}: {len(sample)} tokens, and the model has positions for "
                    f"{limit}; set too_long to truncate"
                )
            sample = shortened(tokenizer, example, 0, limit)
        if not len(sample):
            raise DataError(f"text {number}: has no tokens")
        samples.append(sample)
    return samples


def _batches(samples: Sequence[Sample], micro_tokens: int, pad_id: int) -> Iterator[Batch]:
    plan = plan_batches(samples, range(len(samples)), micro_tokens=micro_tokens, packed=False)
    for indices in plan:
        yield collate(samples, indices, packed=False, pad_id=pad_id)
