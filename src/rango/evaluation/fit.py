"""Whether a model has room for samples: embeddings for their tokens, positions for their length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from rango.base.classifier import is_classifier
from rango.data.samples import Sample
from rango.data.tokens.store import SampleStore
from rango.errors import DataError


def positions_of(model: nn.Module) -> int | None:
    """The most tokens that a model has positions for; None where it does not say."""
    config: Any = getattr(model, "config", None)
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int):
        return None
    # RoBERTa's positions begin after that of the padding
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return found if module.padding_idx is None else found - module.padding_idx - 1
    return found


def check_labelled(model: nn.Module, samples: Iterable[Sample]) -> None:
    """Raise DataError where a classifier is given samples without labels, or another model samples
    with them."""
    for sample in samples:
        if (sample.label is not None) != is_classifier(model):
            has = "has no label" if sample.label is None else "has a label"
            wants = "is a classifier" if is_classifier(model) else "is none for labels"
            raise DataError(f"{sample.origin}: {has}, and {type(model).__name__} {wants}")


def check_fit(samples: Iterable[Sample], model: nn.Module) -> None:
    """Raise DataError where a sample has a token without an embedding in the model, or more tokens
    than the model has positions. Models that are not transformers' are not looked into."""
    config: Any = getattr(model, "config", None)
    get_embeddings: Any = getattr(model, "get_input_embeddings", None)
    if config is None or get_embeddings is None:
        return
    vocabulary = get_embeddings().weight.shape[0]
    positions = positions_of(model)
    name = getattr(config, "name_or_path", "") or type(model).__name__
    if (
        isinstance(samples, SampleStore)
        and samples.highest < vocabulary
        and (positions is None or samples.longest <= positions)
    ):
        return
    for sample in samples:
        if max(sample.input_ids) >= vocabulary:
            raise DataError(
                f"{sample.origin}: token id {max(sample.input_ids)}, and {name} has embeddings for "
                f"0 to {vocabulary - 1}; is the tokenizer beside it its own?"
            )
        if positions is not None and len(sample) > positions:
            raise DataError(
                f"{sample.origin}: {len(sample)} tokens, and {name} has positions for {positions}; "
                f"set max_length to {positions} and too_long to skip or truncate"
            )
