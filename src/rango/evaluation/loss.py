"""The loss of a batch, token by token, with only the supervised positions in the head.

Most of a fine-tuning batch is prompt. Its hidden states are needed, its logits are not, and the
head with its softmax is a quarter of a step at a large vocabulary. Where the head is a frozen
linear layer of a model that is known here, the body's hidden states at the positions that count go
straight to the kernel for head and loss, which stores no logits; elsewhere, transformers'
`logits_to_keep` is given those positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rango.adapters.fused.watch import is_watched
from rango.base.classifier import is_classifier
from rango.base.linear import Int8Linear, NF4Linear
from rango.base.stored import StoredLinear
from rango.data.samples import IGNORED, Batch
from rango.errors import DataError
from rango.kernels.cross_entropy import CrossEntropy, linear_cross_entropy
from rango.kernels.dispatch import facts
from rango.numerics.products import FrozenWeight


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
    given: Tensor | None = None
    """(K,) int64: of a classifier, the likeliest label."""


@dataclass(frozen=True)
class HeadSpec:
    """A head whose loss the kernel can compute: logits = scale · (hidden · weightᵀ + bias), then
    softcap · tanh(logits / softcap) where there is a soft cap."""

    body: nn.Module
    """The model below its head; the first of its outputs is hidden (B, S, H)."""
    weight: FrozenWeight
    """(V, H)."""
    bias: Tensor | None
    """(V,)."""
    scale: float = 1.0
    softcap: float | None = None


def _of_product(model: Any) -> tuple[float, float | None]:
    return 1.0, None


def _softcapped(model: Any) -> tuple[float, float | None]:
    return 1.0, model.config.final_logit_softcapping


_SCALE_AND_SOFTCAP: dict[str, Callable[[Any], tuple[float, float | None]]] = {
    "CohereForCausalLM": lambda model: (model.logit_scale, None),
    "FalconForCausalLM": _of_product,
    "GPT2LMHeadModel": _of_product,
    "GPTNeoXForCausalLM": _of_product,
    "Gemma2ForCausalLM": _softcapped,
    "Gemma3ForCausalLM": _softcapped,
    "GemmaForCausalLM": _of_product,
    "GraniteForCausalLM": lambda model: (1.0 / model.config.logits_scaling, None),
    "LlamaForCausalLM": _of_product,
    "MistralForCausalLM": _of_product,
    "Olmo2ForCausalLM": _of_product,
    "Phi3ForCausalLM": _of_product,
    "PhiForCausalLM": _of_product,
    "Qwen2ForCausalLM": _of_product,
    "Qwen3ForCausalLM": _of_product,
    "SmolLM3ForCausalLM": _of_product,
}
"""By class of transformers, what its forward does to the head's product, as far as that is all it
does after the body. A test holds each to its own forward."""

_HEADS = (nn.Linear, StoredLinear, NF4Linear, Int8Linear)


def fused_head(model: nn.Module) -> tuple[HeadSpec | None, str]:
    """How `token_losses` takes head and loss as one kernel here and now (within autocast, or with
    gradients on, it may not), or None and why."""
    rule = head_rule(model)
    if rule is None:
        return None, f"what {type(model).__name__} does to its logits is not known"
    known: Any = model
    head, body = known.get_output_embeddings(), known.base_model
    reason = _obstacle(model, head, body)
    if reason:
        return None, reason
    scale, softcap = rule(model)
    quantized = isinstance(head, NF4Linear | Int8Linear)
    weight = head.quantized if quantized else head.weight
    return HeadSpec(body, weight, head.bias, scale, softcap), ""


def head_rule(model: nn.Module) -> Callable[[Any], tuple[float, float | None]] | None:
    """What gives scale and soft cap of a model's logits; None for a class that is not known."""
    kind = type(model)
    if not kind.__module__.startswith("transformers.models."):
        return None
    return _SCALE_AND_SOFTCAP.get(kind.__name__)


def _obstacle(model: nn.Module, head: nn.Module, body: nn.Module) -> str:
    """Why this head does not go to the kernel; empty if it does."""
    if facts().in_use == "reference":
        return f"no compiled kernels: {facts().reason}"
    if type(head) not in _HEADS:
        return f"its head is a {type(head).__name__}, not a frozen linear layer"
    if torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters()):
        return "its head is being trained"
    for name, module in (("its head", head), ("the model", model)):
        if is_watched(module):
            return f"{name} has hooks, or a forward of its own"
    tensors = (*head.parameters(), *head.buffers())
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "its head is not on the CPU"
    # matrices may be held narrower than what they are computed in; norms and biases are not
    computed = next((p.dtype for p in body.parameters() if p.ndim == 1), None)
    if computed != torch.float32 or torch.is_autocast_enabled("cpu"):
        return "it does not compute in fp32"
    return ""


class _HeadLoss(torch.autograd.Function):
    """hidden (K, H) -> losses (K,), correct (K,); the gradient is formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: HeadSpec, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and correct."""
        found = _head_loss(hidden, head, targets, need_gradient=True)
        ctx.save_for_backward(found.gradient)
        ctx.mark_non_differentiable(found.correct)
        return found.losses, found.correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, losses: Tensor, _correct: Tensor) -> tuple[Tensor, None, None]:
        """Each token's gradient times what its loss counts."""
        (gradient,) = ctx.saved_tensors
        return gradient * losses.unsqueeze(1), None, None


def _head_loss(
    hidden: Tensor, head: HeadSpec, targets: Tensor, *, need_gradient: bool
) -> CrossEntropy:
    return linear_cross_entropy(
        hidden,
        head.weight,
        targets,
        bias=head.bias,
        scale=head.scale,
        softcap=head.softcap,
        need_gradient=need_gradient,
    )


def token_losses(model: nn.Module, batch: Batch) -> TokenLosses:
    """Cross-entropy of each supervised token, in fp32 whatever the model computes in.

    On the way through the kernel (fused_head) the losses can be differentiated once. Of a
    classifier: of each sample's label.
    """
    if is_classifier(model):
        return _label_losses(model, batch)
    supervised = batch.targets != IGNORED  # (B, S)
    targets = batch.targets[supervised]  # (K,)
    head, _ = fused_head(model)
    if head is None:
        logits = token_logits(model, batch)
        targets = targets.to(logits.device)
        losses = cross_entropy(logits.float(), targets, reduction="none")
        correct = logits.detach().argmax(dim=-1) == targets
    else:
        hidden = _hidden(head.body, batch, supervised)
        if torch.is_grad_enabled() and hidden.requires_grad:
            losses, correct = _HeadLoss.apply(hidden, head, targets)
        else:
            found = _head_loss(hidden, head, targets, need_gradient=False)
            losses, correct = found.losses, found.correct
    return TokenLosses(
        losses=losses,
        correct=correct,
        content=batch.content[supervised].to(losses.device),
        samples=batch.samples[supervised].to(losses.device),
    )


def _label_losses(model: nn.Module, batch: Batch) -> TokenLosses:
    supervised = batch.targets != IGNORED  # (B, S)
    rows, _ = supervised.nonzero(as_tuple=True)
    if len(rows) != len(batch.targets) or batch.supervised != len(rows):
        raise DataError(
            f"{type(model).__name__} learns one label a text: expected labelled samples, one a row"
        )
    logits = class_logits(model, batch)
    targets = batch.targets[supervised].to(logits.device)  # (B,)
    given = logits.detach().argmax(dim=-1)
    return TokenLosses(
        losses=cross_entropy(logits.float(), targets, reduction="none"),
        correct=given == targets,
        content=batch.content[supervised].to(logits.device),
        samples=batch.samples[supervised].to(logits.device),
        given=given,
    )


def class_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, K) of a classifier for a padded batch.

    The model counts its own positions, and padding is what its configuration calls so: some find
    the end of a text by it.
    """
    config: Any = model.config
    pad_id = config.get_text_config().pad_token_id
    ids, mask = batch.input_ids, batch.attention_mask
    if mask is not None and pad_id is not None:
        ids = ids.masked_fill(mask == 0, pad_id)
    arguments = _arguments(model, attention_mask=mask, use_cache=False)
    logits: Tensor = model(input_ids=ids.to(_device(model)), **arguments).logits
    return logits


def _hidden(body: nn.Module, batch: Batch, supervised: Tensor) -> Tensor:
    """Last hidden states (K, H) of the supervised positions, row by row."""
    arguments = _arguments(
        body,
        position_ids=batch.position_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
    )
    output = body(input_ids=batch.input_ids.to(_device(body)), **arguments)
    hidden: Tensor = output[0].flatten(0, 1)  # (B·S, H)
    places = supervised.flatten().nonzero()[:, 0]
    return hidden if len(places) == len(hidden) else hidden.index_select(0, places)


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
    arguments = _arguments(
        model,
        position_ids=position_ids,
        attention_mask=attention_mask,
        logits_to_keep=columns,
        use_cache=False,
    )
    output = model(input_ids=input_ids.to(_device(model)), **arguments)
    logits: Tensor = output if isinstance(output, Tensor) else getattr(output, "logits", output[0])
    if columns is None or "logits_to_keep" in arguments:
        return logits
    return logits[:, columns.to(logits.device)]


def _arguments(model: nn.Module, **optional: Any) -> dict[str, Any]:
    """Those that are given and that the model's forward takes, on the model's device."""
    accepted = inspect.signature(model.forward).parameters
    device = _device(model)
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in optional.items()
        if value is not None and name in accepted
    }


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
