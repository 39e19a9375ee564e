"""Whether a model has room for samples: embeddings for their tokens, positions for their length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from rango.data.samples import Sample
from rango.data.tokens.store import SampleStore
from rango.errors import DataError


def check_fit(samples: Iterable[Sample], model: nn.Module) -> None:
    """Raise DataError where a sample has a token without an embedding in the model, or more tokens
    than the model has positions. Models that are not transformers' are not looked into."""
    config: Any = getattr(model, "config", None)
    get_embeddings: Any = getattr(model, "get_input_embeddings", None)
    if config is None or get_embeddings is None:
        return
    vocabulary = get_embeddings().weight.shape[0]
    positions = getattr(config, "max_position_embeddings", None)
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
