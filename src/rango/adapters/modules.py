"""The modules that stand in for adapted ones: the base's module, plus what the rows add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rango.adapters.fused.watch import is_watched
from rango.adapters.projection import Projection, project
from rango.adapters.site import Site
from rango.adapters.switch import Switch
from rango.base.stored import StoredEmbedding


def _as_multiplied(embedding: nn.Module, scale: Tensor) -> Tensor:
    """An embedding's scale in the type that it multiplies in."""
    if isinstance(embedding, StoredEmbedding):
        return scale
    weight = embedding.weight
    return scale.to(weight.dtype) if isinstance(weight, Tensor) else scale


class AdaptedModule(nn.Module):
    """Stands in for `base_layer`: Linear, the quantized linear, transformers' Conv1D, Embedding."""

    def __init__(self, base_layer: nn.Module, sites: Sequence[Site], switch: Switch) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.updates = nn.ModuleList(sites)
        self.switch = switch
        self.kept: list[nn.Module] = []
        """The base's own module while a merged one is in its place; off the module tree."""
        scale = getattr(base_layer, "embed_scale", None)
        if scale is not None and not torch.as_tensor(scale).is_meta:
            for site in sites:
                site.output_scale = float(_as_multiplied(base_layer, torch.as_tensor(scale)))
        self.train(base_layer.training)

    @property
    def sites(self) -> list[Site]:
        """One for the whole module, or one a part of a fused projection."""
        return cast(list[Site], list(self.updates))

    def forward(self, x: Tensor) -> Tensor:
        """The base's output plus what the routed rows add."""
        projection = None if self.switch.merged else self.projection()
        found = None if projection is None else project(projection, x)
        if found is not None:
            return found
        y: Tensor = self.base_layer(x)
        if self.switch.acts:
            for site in self.sites:
                y = site.add_to(y, x)
        return y

    def projection(self) -> Projection | None:
        """This module as sums of products over its weight as held; None where it is more than one
        linear layer with one site over all of its output."""
        sites = self.sites
        if len(sites) != 1 or sites[0].columns is not None or is_watched(self.base_layer):
            return None
        return Projection.over(self.base_layer, sites[0])

    @property
    def weight(self) -> Tensor:
        """The base's weight: models look at its dtype and device."""
        return cast(Tensor, self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        bias: Tensor | None = getattr(self.base_layer, "bias", None)
        return bias

    def __getattr__(self, name: str) -> Any:
        # what the model reads off the module it thinks it has: in_features, nf, padding_idx, …
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedModule:
        # .to(), .half(), .cuda(): the bank moves whole, never a leaf alone
        for module in (self.base_layer, *self.kept):
            module._apply(fn, recurse)
        for site in self.sites:
            bank = site.bank
            moved = fn(bank.parameters.new_empty(0))
            bank.move(moved.device, moved.dtype)
        return self
