"""May sequences be packed into one row, told apart by restarting position ids?

transformers finds the boundaries in position_ids for some architectures; some need an explicit mask
too, others attend across them in silence. So it is measured: a packed pair against each of its
members alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rango.base.classifier import is_classifier

_LENGTHS = (11, 14)
_LONGEST = 96
_ALONE = {torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 4e-2}
"""Allowed against each alone: other shapes round otherwise, the more so in 16 bits."""
_LEAK = 1e-4
"""Allowed when only the neighbour's tokens change, in any type: a masked one contributes zero."""


@dataclass(frozen=True)
class Packing:
    """What the probe found; `error` is relative, ‖packed − alone‖ / ‖alone‖ of the outputs."""

    ok: bool
    error: float
    reason: str
    """In words, for a message."""
    masked: bool = False
    """Only an explicit mask of the boundaries keeps them apart."""

    @property
    def how(self) -> bool | Literal["masked"]:
        """How to batch, as rango.data.tokens.pack takes it."""
        return "masked" if self.ok and self.masked else self.ok


def packing_probe(model: nn.Module) -> Packing:
    """Compare a packed pair of a few dozen tokens with each alone, and with another neighbour.

    The model is run as it is, adapters included, without dropout and without gradients, and is left
    unchanged. The members are longer than a sliding window of up to 64 tokens.
    """
    name = type(model).__name__
    if is_classifier(model):
        return Packing(False, float("inf"), f"{name} gives one answer a row")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return Packing(False, float("inf"), f"{name} takes no position_ids")
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    vocabulary = getattr(text, "vocab_size", None)
    if not isinstance(vocabulary, int):
        return Packing(False, float("inf"), f"{name} has no vocabulary to draw a probe from")
    first, second = (_sequence(model, vocabulary, length) for length in _lengths(text))
    found = _compared(model, first, second, vocabulary, masked=False)
    # a mask of boundaries alone would widen a sliding window longer than the probe
    windowed = getattr(text, "sliding_window", None) is not None
    if not found.ok and not windowed and not _looks_ahead(model, first, vocabulary):
        try:
            masked = _compared(model, first, second, vocabulary, masked=True)
        except (TypeError, ValueError, RuntimeError, IndexError):  # it takes no such mask
            return found
        return masked if masked.ok else found
    return found


def _compared(
    model: nn.Module, first: Tensor, second: Tensor, vocabulary: int, *, masked: bool
) -> Packing:
    name = type(model).__name__
    with _evaluating(model), torch.no_grad():
        together = _packed(model, first, second, masked)
        other_second = _packed(model, first, (second + 1) % vocabulary, masked)
        other_second = other_second[:, : first.shape[1]]
        other_first = _packed(model, (first + 1) % vocabulary, second, masked)
        other_first = other_first[:, first.shape[1] :]
        alone = [_outputs(model, first, None), _outputs(model, second, None)]
    error = _relative(together, torch.cat(alone, dim=1))
    leak = _relative(torch.cat([other_second, other_first], dim=1), together)
    tolerance = _ALONE.get(together.dtype, 1e-4)
    if error <= tolerance and leak <= _LEAK:
        by = " by an explicit mask" if masked else ""
        return Packing(True, error, f"{name} keeps packed sequences apart{by}", masked)
    return Packing(
        False,
        max(error, leak),
        f"{name} does not keep packed sequences apart: relative error {error:.2g} against each "
        f"alone ({tolerance:.0e} allowed), {leak:.2g} by changing the neighbour ({_LEAK:.0e})",
    )


def _looks_ahead(model: nn.Module, ids: Tensor, vocabulary: int) -> bool:
    """Whether a token's output depends on those after it, as in encoders."""
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % vocabulary
    with _evaluating(model), torch.no_grad():
        seen, other = (_outputs(model, each, None)[:, :-1] for each in (ids, changed))
    return _relative(other, seen) > _LEAK


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _packed(model: nn.Module, first: Tensor, second: Tensor, masked: bool) -> Tensor:
    lengths = [ids.shape[1] for ids in (first, second)]
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = torch.cat([first, second], dim=1)
    mask = None
    if masked:
        blocks = [torch.ones(length, length, dtype=torch.bool) for length in lengths]
        mask = torch.block_diag(*blocks).bool().tril()[None, None].to(packed.device)
    return _outputs(model, packed, positions.unsqueeze(0).to(packed.device), mask)


def _lengths(config: object) -> tuple[int, int]:
    """Longer than the sliding window if that is short, and within the positions there are."""
    window = getattr(config, "sliding_window", None)
    extra = window if isinstance(window, int) and 0 < window <= _LONGEST - 32 else 0
    room = getattr(config, "max_position_embeddings", None)
    limit = min(_LONGEST, room) if isinstance(room, int) and room > 0 else _LONGEST
    first, second = (min(length + extra, limit) for length in _LENGTHS)
    return first, second


def _sequence(model: nn.Module, vocabulary: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(vocabulary, (1, length), generator=generator)
    return ids.to(next(model.parameters()).device)


def _outputs(
    model: nn.Module, ids: Tensor, positions: Tensor | None, mask: Tensor | None = None
) -> Tensor:
    """Logits, or an encoder's last hidden state, (1, S, …). The cache is off, as it is in
    training: with one, transformers does not look for boundaries."""
    masked = {} if mask is None else {"attention_mask": mask}
    outputs = model(input_ids=ids, position_ids=positions, use_cache=False, **masked)
    found: Tensor = outputs[0]
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
