"""Merge a row into the base's weights and take it out again, bit for bit.

W' = W + Σ ΔW, summed in fp32 and cast once, to the type that W is kept in. What is kept is the
base's own module; unmerging puts it back and never subtracts. A quantized module is merged as a
dense one: requantizing would lose most of a small update.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rango.adapters.modules import AdaptedModule
from rango.adapters.saved import SavedLinear
from rango.adapters.site import Site
from rango.base.linear import QuantizedLinear
from rango.base.roles import base_weight_shape
from rango.base.stored import NARROW, StoredLinear
from rango.errors import AdapterError
from rango.numerics.lowrank import delta_weight, merged_weight


@dataclass(frozen=True)
class Merged:
    """What unmerging needs: the stand-ins that keep the module they had."""

    stand_ins: list[AdaptedModule | SavedLinear]

    def restore(self) -> None:
        """Put the kept modules back."""
        for stand_in in self.stand_ins:
            stand_in.base_layer = stand_in.kept.pop()


@torch.no_grad()
def merge_row(
    modules: Mapping[str, AdaptedModule],
    saved: Mapping[str, SavedLinear],
    row: int,
    factor: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Merged:
    """Give each stand-in a base layer with the row merged in; see merged_module for dtype."""
    # all are made before the first takes its place: what fails midway has changed nothing
    made: list[tuple[AdaptedModule | SavedLinear, nn.Module]] = [
        (stand_in, merged_module(stand_in.base_layer, delta * factor, dtype))
        for stand_in in modules.values()
        if (delta := module_delta(stand_in, row)) is not None
    ]
    made += [
        (layer, merged_whole(layer, row, factor)) for layer in saved.values() if layer.saves[row]
    ]
    for stand_in, merged in made:
        stand_in.kept.append(stand_in.base_layer)
        stand_in.base_layer = merged
    return Merged([stand_in for stand_in, _ in made])


@torch.no_grad()
def merged_whole(layer: SavedLinear, row: int, factor: float = 1.0) -> nn.Module:
    """A plain linear layer with a row's ΔW and Δb added; the base's is left alone."""
    plain, delta = layer.base_layer, layer.delta(row)
    merged = merged_module(plain, delta["weight"] * factor)
    if "bias" in delta:
        bias = merged_weight(plain.get_parameter("bias"), delta["bias"] * factor)
        merged.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
    return merged


def module_delta(stand_in: AdaptedModule, row: int) -> Tensor | None:
    """ΔW (out, in) in fp32 of one row at a module, its parts put in place (at an embedding:
    (vocabulary, dim)); None where the row leaves it alone."""
    sites = [site for site in stand_in.sites if site.ranks[row]]
    if not sites:
        return None
    if sites[0].part is None:
        return site_delta(sites[0], row)
    out_features, in_features = base_weight_shape(stand_in.base_layer)
    delta = sites[0].A.new_zeros(out_features, in_features)
    for site in sites:
        delta[site.columns] = site_delta(site, row)
    return delta


def site_delta(site: Site, row: int) -> Tensor:
    """ΔW (out, in) in fp32 of one row at one site."""
    lora_A, lora_B = site.factors(row)
    delta = delta_weight(lora_A, lora_B, site.scalings[row])
    return delta.T if site.embedding else delta


def base_weight(module: nn.Module) -> Tensor:
    """The frozen weight in the layout of ΔW: (out, in); dequantized where it is quantized."""
    if isinstance(module, QuantizedLinear):
        return module.dequantize()
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise AdapterError(f"{type(module).__name__} has no weight to merge into")
    return weight.T if isinstance(module, Conv1D) else weight


def merged_module(module: nn.Module, delta: Tensor, dtype: torch.dtype | None = None) -> nn.Module:
    """A module like `module` whose weight has ΔW added; `module` itself is left alone.

    dtype: of the weight of the dense layer that a quantized one becomes; by default that of the
    weight before it was quantized.
    """
    if isinstance(module, QuantizedLinear):
        weight = (module.dequantize(torch.float32) + delta).to(dtype or module.weight_dtype)
        if weight.dtype in NARROW:  # whatever the arithmetic's type
            frozen = nn.Parameter(weight, requires_grad=False)
            return StoredLinear(frozen, module.bias).train(module.training)
        dense = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        dense.weight = nn.Parameter(weight, requires_grad=False)
        dense.register_parameter("bias", module.bias)
        return dense.train(module.training)
    weight = merged_weight(base_weight(module), delta)
    if isinstance(module, Conv1D):
        weight = weight.T.contiguous()
    merged = copy.copy(module)
    # a shallow copy shares the table of parameters, which must differ from here on
    merged._parameters = dict(module._parameters)
    merged.weight = nn.Parameter(weight, requires_grad=False)
    return merged
