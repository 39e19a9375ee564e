"""The decoding loop: one prefill, then one token a sequence a pass, over the model's KV cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rango.adapters.fused.cache import roomy_cache
from rango.adapters.fused.head import narrow_head
from rango.adapters.fused.install import fused
from rango.errors import ConfigError, DataError
from rango.generation.inference import inference

Choose = Callable[[Tensor], Tensor]
"""Logits (B, V) in fp32 -> the next tokens (B,)."""


def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    limits: Sequence[int],
    ends: Collection[int],
    choose: Choose,
    pad_id: int = 0,
) -> Iterator[list[int | None]]:
    """Yield, pass by pass, the next token of each sequence, or None for one that has ended.

    A sequence ends after a token of `ends`, which is yielded too, or after its limit. Prompts are
    padded on the left, so that every sequence writes into the same column of the cache.

    Raises ConfigError where the model cannot generate or has too few positions, DataError for an
    empty prompt.
    """
    check_room(model, prompts, limits)
    device = next(model.parameters()).device
    input_ids, mask = (part.to(device) for part in left_padded(prompts, pad_id))
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    accepted = frozenset(inspect.signature(model.forward).parameters)
    left = torch.tensor(list(limits))  # tokens that each sequence may still write
    enders = torch.tensor(sorted(ends), dtype=torch.int64)
    with fused(model):
        modules = list(model.modules())
        cache: Any = roomy_cache(model)
        while True:
            with inference(model, modules), narrow_head(model):
                logits, cache = _pass(model, accepted, input_ids, mask, position_ids, cache)
                tokens = choose(logits).cpu()
            running = left > 0
            yield [
                token if runs else None
                for token, runs in zip(tokens.tolist(), running.tolist(), strict=True)
            ]
            left = torch.where(torch.isin(tokens, enders), 0, left - 1).clamp(min=0)
            going = left > 0
            if not going.any():
                return
            # one that has ended stays where it is: its next position might not exist
            position_ids = position_ids[:, -1:] + going.long()[:, None].to(device)
            input_ids = torch.where(going, tokens, pad_id)[:, None].to(device)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (B, longest) int64, padding on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def positions(model: nn.Module) -> int | None:
    """How many positions the model was made for; None where its config does not say."""
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    limit = getattr(text_config, "max_position_embeddings", None)
    return int(limit) if limit else None


def check_room(model: nn.Module, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
    """Raise ConfigError or DataError, naming the prompt, unless each fits with its answer."""
    can_generate = getattr(model, "can_generate", None)
    if can_generate is None or not can_generate():
        raise ConfigError(
            f"{type(model).__name__} cannot generate text: expected a causal language model of "
            "transformers"
        )
    room = positions(model)
    for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True), start=1):
        if not prompt:
            raise DataError(f"prompt {number} has no tokens; give it some text")
        if limit < 1:
            raise ConfigError(f"max_new_tokens {limit}: expected at least 1")
        if room is not None and len(prompt) + limit > room:
            rest = room - len(prompt)
            remedy = f"max_new_tokens to at most {rest}, or " if rest > 0 else ""
            raise ConfigError(
                f"prompt {number} has {len(prompt)} tokens and max_new_tokens is {limit}, "
                f"{len(prompt) + limit} in all; the model has {room} positions: lower "
                f"{remedy}the length of the prompt"
            )


def _pass(
    model: nn.Module,
    accepted: Collection[str],
    input_ids: Tensor,
    mask: Tensor,
    position_ids: Tensor,
    cache: Any,
) -> tuple[Tensor, Any]:
    """Logits (B, V) after the last column, in fp32, and the cache with this pass in it.

    accepted: the arguments that the model's forward takes.
    """
    optional = {"position_ids": position_ids, "logits_to_keep": 1}
    output = model(
        input_ids=input_ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **{name: value for name, value in optional.items() if name in accepted},
    )
    return output.logits[:, -1].float(), output.past_key_values
