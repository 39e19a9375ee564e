"""Full activation checkpointing: keep what goes into a layer, and compute the rest again.

After Chen et al. 2016, arXiv 1604.06174. transformers has its own, which does nothing in eval mode,
and the frozen base is always in eval mode; so layers that are not fused (those know how to do it
themselves) are given theirs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rango.adapters.checkpointed import RecomputedLayer
from rango.adapters.fused.layer import FusedLayer
from rango.adapters.mixin import mix_in, take_out
from rango.errors import ConfigError


@contextmanager
def recomputing(model: nn.Module, recompute: bool = True) -> Iterator[None]:
    """Within the block, backward passes keep each layer's input alone and compute the rest again.

    Nothing in a layer may draw random numbers but by counters (rango.adapters.dropout): the frozen
    base is in eval mode. ConfigError if the model has no layers that transformers marks for it.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not recompute:
        layers = []
    elif not layers:
        raise ConfigError(
            f"gradient_checkpointing: {type(model).__name__} has no layers that transformers "
            "checkpoints; set it to false, or lower training.micro_tokens to save memory"
        )
    _switch(layers, True)
    try:
        yield
    finally:
        _switch(layers, False)


def _switch(layers: list[GradientCheckpointingLayer], recompute: bool) -> None:
    for layer in layers:
        if isinstance(layer, FusedLayer):
            layer.fused_recompute = recompute
        elif recompute:
            mix_in(layer, RecomputedLayer)
        else:
            take_out(layer, RecomputedLayer)
