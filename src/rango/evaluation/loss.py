"""The loss of a batch, token by token, with only the supervised positions in the head.

Most of a fine-tuning batch is prompt. Its hidden states are needed, its logits are not, and the
head with its softmax is a quarter of a step at a large vocabulary; so transformers'
`logits_to_keep` is given the positions that count.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rango.data.samples import IGNORED, Batch


@dataclass(frozen=True)
class TokenLosses:
    """One entry for each supervised position of a batch, row by row; K = batch.supervised."""

    losses: Tensor
    """(K,) fp32, nats, differentiable."""
    correct: Tensor
    """(K,) bool: the target is the likeliest token."""
    content: Tensor
    """(K,) bool: the target is content rather than an end-of-turn marker."""
    samples: Tensor
    """(K,) int64: index of the sample within the batch."""


def token_losses(model: nn.Module, batch: Batch) -> TokenLosses:
    """Cross-entropy of each supervised token, in fp32 whatever the model computes in."""
    logits = token_logits(model, batch)
    supervised = batch.targets != IGNORED
    targets = batch.targets[supervised].to(logits.device)
    return TokenLosses(
        losses=cross_entropy(logits.float(), targets, reduction="none"),
        correct=logits.detach().argmax(dim=-1) == targets,
        content=batch.content[supervised].to(logits.device),
        samples=batch.samples[supervised].to(logits.device),
    )


def token_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (K, V) of the supervised positions, in the model's own type, row by row."""
    supervised = batch.targets != IGNORED  # (B, S)
    columns = supervised.any(dim=0).nonzero()[:, 0]  # those that any row needs
    logits = forward_logits(
        model, batch.input_ids, batch.position_ids, batch.attention_mask, columns
    )  # (B, columns, V)
    wanted = supervised[:, columns]
    if bool(wanted.all()):
        return logits.flatten(0, 1)
    return logits[wanted.to(logits.device)]


def forward_logits(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """Logits (B, S, V) of one pass without a KV cache, or (B, columns, V) of these positions; of a
    model without a head its first output.

    Whatever the model's forward has no argument for is left out; the head sees only `columns`
    where it has `logits_to_keep`.
    """
    device = next(model.parameters()).device
    accepted = inspect.signature(model.forward).parameters
    optional: dict[str, Any] = {
        "position_ids": position_ids,
        "attention_mask": attention_mask,
        "logits_to_keep": columns,
        "use_cache": False,
    }
    arguments = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in optional.items()
        if value is not None and name in accepted
    }
    output = model(input_ids=input_ids.to(device), **arguments)
    logits: Tensor = output if isinstance(output, Tensor) else getattr(output, "logits", output[0])
    if columns is None or "logits_to_keep" in arguments:
        return logits
    return logits[:, columns.to(logits.device)]
