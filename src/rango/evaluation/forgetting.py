"""Forgetting: how far a tuned model has moved from its base on general text.

With adapters it costs one more pass and no more memory, since with its rows off the same model is
the base. (Biderman et al. 2024, "LoRA Learns Less and Forgets Less", arXiv 2405.09673.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from rango.adapters.attach import Adapted
from rango.data.samples import IGNORED, Batch, Sample
from rango.data.tokens.pack import Packed
from rango.errors import ConfigError
from rango.evaluation.evaluate import batches
from rango.evaluation.loss import token_logits
from rango.generation.inference import inference
from rango.progress import Progress, silent

BaseLogits = Callable[[Batch], Tensor]
"""The base's logits (K, V) at the supervised positions of a batch."""

_MOST_LOGITS = 2**26
"""Elements of one side's logits held at once (256 MB in fp32), unless one sample alone has more:
at a vocabulary of 151,936, 441 tokens."""
_CHUNK = 2**23
"""Elements of the logits whose log-softmax is held at once."""


@dataclass(frozen=True)
class Forgetting:
    """Nats a token of general text, over all supervised tokens."""

    base_loss: float
    loss: float
    kl: float
    """Mean of KL(base ‖ tuned) = Σ_v p(v)·(log p(v) - log q(v)), p the base's distribution."""
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dataclasses.asdict(self)


def forgetting(
    tuned: Adapted | nn.Module,
    samples: Sequence[Sample],
    *,
    base: nn.Module | BaseLogits | None = None,
    micro_tokens: int = 2048,
    packed: Packed | None = None,
    pad_id: int = 0,
    progress: Progress = silent,
) -> Forgetting:
    """Compare a tuned model with its base on general text.

    Adapters are their own base. A fully fine-tuned model needs `base`: another model, or what
    `record_base` kept of it before training. The options are evaluate()'s, and must be those of
    record_base. Raises ConfigError where the base is missing, DataError without supervised tokens.
    """
    model = tuned.model if isinstance(tuned, Adapted) else tuned
    base_logits = _base_side(tuned, base)
    sums = torch.zeros(3, dtype=torch.float64)
    tokens = 0
    for batch in batches(
        model,
        samples,
        micro_tokens=_bounded(model, micro_tokens),
        packed=packed,
        pad_id=pad_id,
        task="forgetting",
        progress=progress,
    ):
        with inference(model):
            reference = base_logits(batch)
            logits = token_logits(model, batch)
            targets = batch.targets[batch.targets != IGNORED].to(logits.device)
            sums += divergence(reference.to(logits.device), logits, targets).cpu()
        tokens += batch.supervised
    base_loss, loss, kl = (sums / tokens).tolist()
    return Forgetting(base_loss, loss, kl, tokens)


@torch.no_grad()
def divergence(base: Tensor, tuned: Tensor, targets: Tensor) -> Tensor:
    """Sums over positions of the base's loss, the tuned loss and KL(base ‖ tuned): fp64 (3,).

    base, tuned: logits (K, V); targets: (K,). In fp32, a few positions at a time.
    """
    total = torch.zeros(3, dtype=torch.float64, device=base.device)
    step = max(1, _CHUNK // base.shape[-1])
    for begin in range(0, len(targets), step):
        part = slice(begin, begin + step)
        log_p = log_softmax(base[part].float(), dim=-1)
        log_q = log_softmax(tuned[part].float(), dim=-1)
        true = targets[part, None]
        total[0] -= log_p.gather(1, true).double().sum()
        total[1] -= log_q.gather(1, true).double().sum()
        # where p is 0 both logarithms may be -inf, and the term is 0
        p = log_p.exp()
        terms = log_p.sub_(log_q).mul_(p).masked_fill_(p == 0, 0.0)
        total[2] += terms.double().sum()
    return total


def record_base(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    micro_tokens: int = 2048,
    packed: Packed | None = None,
    pad_id: int = 0,
    progress: Progress = silent,
) -> BaseLogits:
    """Keep a model's logits on general text, before full fine-tuning changes it.

    They take (supervised tokens) · (vocabulary) · (bytes of the model's type) of main memory, so
    the text should be short. Give forgetting() the same samples and options.
    """
    kept: dict[tuple[int, ...], Tensor] = {}
    for batch in batches(
        model,
        samples,
        micro_tokens=_bounded(model, micro_tokens),
        packed=packed,
        pad_id=pad_id,
        task="base on general text",
        progress=progress,
    ):
        with inference(model):
            kept[batch.indices] = token_logits(model, batch).cpu()

    def recorded(batch: Batch) -> Tensor:
        if batch.indices not in kept:
            raise ConfigError(
                "forgetting: the base was recorded with other samples or options; record it with "
                "the same samples, micro_tokens and packed"
            )
        return kept[batch.indices]

    return recorded


def _base_side(tuned: Adapted | nn.Module, base: nn.Module | BaseLogits | None) -> BaseLogits:
    if isinstance(base, nn.Module):
        model = base

        def of_model(batch: Batch) -> Tensor:
            with inference(model):
                return token_logits(model, batch)

        return of_model
    if base is not None:
        return base
    if not isinstance(tuned, Adapted):
        raise ConfigError(
            "forgetting: a model without adapters does not hold its base; give base=, the base "
            "model or what record_base() kept of it"
        )
    adapted = tuned

    def rows_off(batch: Batch) -> Tensor:
        with adapted.disabled():
            return token_logits(adapted.model, batch)

    return rows_off


def _bounded(model: nn.Module, micro_tokens: int) -> int:
    """micro_tokens, or as many as _MOST_LOGITS allows."""
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    vocabulary = getattr(text_config, "vocab_size", None) or 1
    return max(1, min(micro_tokens, _MOST_LOGITS // vocabulary))
