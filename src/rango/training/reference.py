"""How far a run has moved from its base, measured on general text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from rango.adapters.attach import Adapted
from rango.base.load import Base
from rango.data.samples import Sample
from rango.data.tokens.pack import Packed
from rango.evaluation.forgetting import BaseLogits, Forgetting, forgetting, record_base
from rango.progress import Progress
from rango.training.config import TrainingConfig


def forgetting_of(
    model: Adapted | Base,
    general: Sequence[Sample],
    config: TrainingConfig,
    *,
    packed: Packed,
    pad_id: int,
) -> Callable[[Progress], Forgetting] | None:
    """A measurement to call at any time; None without general text.

    An adapter's base is the same model without its rows. Full fine-tuning changes the base, so
    this is to be called before: its logits are kept, or a copy of it where that is smaller.
    """
    if not general:
        return None
    base = None if isinstance(model, Adapted) else _kept(model, general, config, packed, pad_id)
    tuned = model if isinstance(model, Adapted) else model.model

    def measure(progress: Progress) -> Forgetting:
        return forgetting(
            tuned,
            general,
            base=base,
            micro_tokens=config.micro_tokens,
            packed=packed,
            pad_id=pad_id,
            progress=progress,
        )

    return measure


def _kept(
    base: Base, general: Sequence[Sample], config: TrainingConfig, packed: Packed, pad_id: int
) -> nn.Module | BaseLogits:
    targets = sum(sum(sample.supervised[1:]) for sample in general)
    logits = targets * base.model.get_input_embeddings().weight.shape[0]
    if logits > sum(parameter.numel() for parameter in base.model.parameters()):
        return copy.deepcopy(base.model)
    return record_base(
        base.model, general, micro_tokens=config.micro_tokens, packed=packed, pad_id=pad_id
    )
