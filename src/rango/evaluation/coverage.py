"""Which modules an adapter reaches, and what share of the base's weights that is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rango.adapters.attach import Adapted
from rango.base.linear import QuantizedLinear
from rango.base.roles import adaptable_modules


@dataclass(frozen=True)
class Census:
    """Numbers of weights in a base without adapters, shared ones once."""

    weights: int
    """All, biases and norms too."""
    linear: int
    """Of linear layers, the output head left out."""


@dataclass(frozen=True)
class Coverage:
    """What one row of the bank adapts."""

    modules: dict[str, int]
    """Name (with the part of a fused projection) -> weights of the base that it adapts."""
    census: Census
    linear_covered: int
    """Of the weights in `modules`, those that the census counts as linear."""

    @property
    def share(self) -> float:
        """Adapted weights / all weights."""
        return sum(self.modules.values()) / self.census.weights

    @property
    def linear_share(self) -> float:
        """Adapted linear weights / linear weights."""
        return self.linear_covered / self.census.linear if self.census.linear else 0.0


def count_weights(model: nn.Module) -> Census:
    """Count a base's weights; call it before adapters are attached."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, QuantizedLinear):  # packed, so not among the parameters
            weights += module.out_features * module.in_features
    linear = sum(
        found.in_features * found.out_features
        for found in adaptable_modules(model).values()
        if found.role not in ("embedding", "head")
    )
    return Census(weights, linear)


def cover(adapted: Adapted, census: Census, row: int = 0) -> Coverage:
    """What `row` adapts of the base that was counted."""
    output = getattr(adapted.model, "get_output_embeddings", lambda: None)()
    modules, linear = {}, 0
    for name, site in adapted.sites.items():
        if not site.ranks[row]:
            continue
        count = site.A.shape[2] * site.B.shape[1]
        modules[name] = count
        if not site.embedding and adapted.modules[site.module_name] is not output:
            linear += count
    for name, layer in adapted.saved.items():
        if layer.saves[row]:
            modules[name] = layer.base_layer.get_parameter("weight").numel()
    return Coverage(modules, census, linear)
