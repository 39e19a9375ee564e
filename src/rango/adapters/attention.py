"""Our attention in transformers' models: registered as "rango", chosen by `use_rango_attention`.

transformers asks a mask function once a pass for what each layer's attention function is then
given. Ours answers with a table of boundaries (boundaries.py), and no square mask is built. Masks
that a table cannot express (holes in the padding, other overlays), other devices and other types
get transformers' sdpa and its ordinary mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel, masking_utils
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from rango.adapters.boundaries import Pattern, Table, boundaries, is_table, square_mask
from rango.errors import ConfigError
from rango.kernels.attention import attention, attention_backward

NAME = "rango"

_HARMLESS = frozenset(
    {
        "cache_position",
        "num_items_in_batch",
        "output_attentions",  # there are none to give, as with sdpa
        "output_hidden_states",
        "output_router_logits",
        "position_ids",  # boundaries among them are in the table
        "return_dict",
        "sliding_window",  # in the table, as it is in sdpa's mask
        "use_cache",
    }
)
"""Keywords that transformers passes and that change no attention."""
_SAME = 1e-4
"""Relative difference allowed between the outputs of the probe."""


class PackedAttention(torch.autograd.Function):
    """kernels.attention with its backward pass; keeps q, k, v, out and lse."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Table,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        """(B, heads, S, dim), laid out in memory as (B, S, heads, dim)."""
        out, lse = _attend(q, k, v, table, scale, softcap)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = table, scale, softcap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        table, scale, softcap = ctx.options
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = attention_backward(
            grads[0],
            q,
            k,
            v,
            out,
            lse,
            table.bounds,
            key_bounds=table.key_bounds,
            scale=scale,
            causal=table.causal,
            window=table.window,
            softcap=softcap,
        )
        return dq, dk, dv, None, None, None


def rango_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """The attention function: query (B, heads, S, dim) -> (B, S, heads, dim), no weights.

    Dropout goes to sdpa. ConfigError for keywords that neither implements.
    """
    refused = not_implemented(keywords)
    if refused:
        raise ConfigError(
            f"the attention {NAME!r} does not implement {', '.join(refused)}, which "
            f"{type(module).__name__} asks for; use model.set_attn_implementation('eager')"
        )
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if attention_mask is None:
        table = _unmasked(query, key, causal=is_causal)
    else:
        table = Table.read(attention_mask) if is_table(attention_mask) else None
        if table is not None and table.plain and not is_causal:
            # a mask that sdpa would have gone without; then the module's own word counts
            table = replace(table, causal=False)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if table is not None and not dropout and _served(query, key, value):
        traced = query.requires_grad or key.requires_grad or value.requires_grad
        if traced and torch.is_grad_enabled():
            out = PackedAttention.apply(query, key, value, table, scaling, softcap)
        else:
            out, _ = _attend(query, key, value, table, scaling, softcap)
        return out.transpose(1, 2), None
    mask = attention_mask
    if table is not None and (mask is not None or softcap is not None):
        mask = square_mask(table, query, key)
    if softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal
        )
    if mask is None or dropout:
        raise ConfigError(
            f"the attention {NAME!r}: {type(module).__name__} gives no mask for queries "
            f"{[*query.shape]} and keys {[*key.shape]}; use model.set_attn_implementation('eager')"
        )
    return _softcapped(query, key, value, mask, scaling, softcap), None


def not_implemented(keywords: dict[str, Any]) -> list[str]:
    """Those that are set and change what attention computes."""
    return sorted(name for name in keywords.keys() - _HARMLESS if _is_set(keywords[name]))


def rango_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor | None:
    """The mask function: a boundary table where one says it all, else the mask of sdpa."""
    on_cpu = torch.device(options.get("device", "cpu")).type == "cpu"
    if on_cpu and options.get("dtype") == torch.float32 and not torch.compiler.is_compiling():
        pattern = Pattern.of(mask_function)
        start = int(kv_offset)
        real = None if attention_mask is None else attention_mask[:, start : start + kv_length]
        ahead = int(q_offset) - start
        table = (
            boundaries(pattern, batch_size, q_length, kv_length, ahead, real) if pattern else None
        )
        if table is not None:
            return table.written()
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **options,
    )


AttentionInterface.register(NAME, rango_attention)
AttentionMaskInterface.register(NAME, rango_mask)


def use_rango_attention(model: nn.Module) -> bool:
    """Give a model of transformers our attention, and say whether it now has it.

    Only if its classes take registered attention functions, and a packed pair and a padded one
    then give the outputs that they gave before; else the model is left as it was.
    """
    if not isinstance(model, PreTrainedModel) or model.config.sub_configs:
        return False
    if getattr(model.config, "is_encoder_decoder", False) or model.device.type != "cpu":
        return False
    before = model.config._attn_implementation
    if before == NAME:
        return True
    vocabulary = getattr(model.config, "vocab_size", None)
    # one who asks for eager where there is sdpa wants what only eager gives
    default = "sdpa" if model._supports_sdpa else "eager"
    if (
        before != default
        or not isinstance(vocabulary, int)
        or not model._can_set_attn_implementation()
    ):
        return False
    found: list[Tensor] = []
    with _evaluating(model), torch.no_grad(), suppress(Exception):
        # whatever cannot be probed (other inputs than input_ids, keywords that ours does not
        # implement) stays as it is
        expected = _probe(model, vocabulary)
        model.set_attn_implementation(NAME)
        found = _probe(model, vocabulary)
    same = bool(found) and all(
        bool((a - b).norm() <= _SAME * b.norm()) for a, b in zip(found, expected, strict=True)
    )
    if not same:
        model.set_attn_implementation(before)
    return same


def _unmasked(query: Tensor, key: Tensor, *, causal: bool) -> Table | None:
    """What sdpa does without a mask: causal from the first key on, but for a single query."""
    batch, _, queries, _ = query.shape
    causal = causal and queries > 1
    if len(key) != batch or (causal and key.shape[2] < queries):
        return None
    return boundaries(Pattern(causal, None, None), batch, queries, key.shape[2], 0, None)


def _served(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return (
        query.dtype == key.dtype == value.dtype == torch.float32
        and query.is_cpu
        and query.shape[-1] == key.shape[-1]
        and key.shape == value.shape
        and not torch.compiler.is_compiling()
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, table: Table, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    batch, heads, length, dim = q.shape
    return attention(
        q,
        k,
        v,
        table.bounds,
        key_bounds=table.key_bounds,
        scale=scale,
        causal=table.causal,
        window=table.window,
        softcap=softcap,
        out=q.new_empty((batch, length, heads, dim)).transpose(1, 2),
    )


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    """What sdpa cannot: tanh-capped scores, with the whole square of them in memory."""
    group = query.shape[1] // key.shape[1]
    scores = query @ repeat_kv(key, group).transpose(2, 3) * scale
    scores = softcap * (scores / softcap).tanh()
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ repeat_kv(value, group)).transpose(1, 2).contiguous()


def _is_set(given: object) -> bool:
    return not (given is None or given is False or (isinstance(given, int | float) and given == 0))


def _probe(model: PreTrainedModel, vocabulary: int) -> list[Tensor]:
    """Outputs for a packed pair, and for the real tokens of a pair padded on the left."""
    window = getattr(model.config, "sliding_window", None)
    extra = window if isinstance(window, int) and 0 < window <= 64 else 0
    room = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    long, short = min(14 + extra, room), min(11 + extra, room)
    accepted = inspect.signature(model.forward).parameters
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(long)

    def outputs(ids: Tensor, **options: Tensor) -> Tensor:
        given: dict[str, Any] = {
            name: x.to(device) for name, x in options.items() if name in accepted
        }
        if "use_cache" in accepted:
            given["use_cache"] = False  # with a cache, transformers looks for no boundaries
        return model(input_ids=ids.to(device), **given)[0].float()

    pair = torch.randint(vocabulary, (1, long + short), generator=generator)
    positions = torch.cat([torch.arange(long), torch.arange(short)]).unsqueeze(0)
    padded = pair[:, : 2 * short].view(2, short)
    real = torch.ones_like(padded)
    real[1, : short // 2] = 0
    left_padded = outputs(padded, attention_mask=real)
    return [outputs(pair, position_ids=positions), left_padded[real.bool().to(device)]]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
