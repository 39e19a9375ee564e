"""Parts of fused projections and the whole modules that PEFT's format knows.

Rango adapts q and v of a fused qkv as two updates with an A each. On disk they are one update of
the whole module, exactly: A stacked along r, and B with each part's block in its own outputs.
rango.json names the parts, so that reading gives them back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rango.adapters.config import LoraConfig
from rango.adapters.modules import AdaptedModule
from rango.adapters.site import Site
from rango.adapters.targets import Target
from rango.base.roles import adaptable_modules, base_weight_shape, fused_parts
from rango.errors import AdapterError
from rango.numerics.lowrank import alpha_for, scaling


@dataclass(frozen=True)
class ModuleTensors:
    """One module's update: A (r, in) and B (out, r), and its lora_alpha."""

    module: str
    embedding: bool
    lora_A: Tensor
    lora_B: Tensor
    lora_alpha: float

    @property
    def r(self) -> int:
        """Rank."""
        return self.lora_A.shape[0]


@dataclass(frozen=True)
class Update:
    """A target with the tensors it gets: A (r, in), B (out, r)."""

    target: Target
    lora_A: Tensor
    lora_B: Tensor


def part_ranks(modules: Mapping[str, AdaptedModule], row: int) -> dict[str, dict[str, int]]:
    """For each fused module of which only parts are adapted: their ranks, in order."""
    ranks: dict[str, dict[str, int]] = {}
    for name, stand_in in modules.items():
        for site in stand_in.sites:
            if site.part is not None and site.ranks[row]:
                ranks.setdefault(name, {})[site.part] = site.ranks[row]
    return ranks


def join(stand_in: AdaptedModule, sites: Sequence[Site], row: int, rslora: bool) -> ModuleTensors:
    """The sites of one module as one update."""
    first = sites[0]
    if first.part is None:
        return ModuleTensors(
            first.module_name, first.embedding, *first.factors(row), first.alphas[row]
        )
    scale = first.scalings[row]
    r = sum(site.ranks[row] for site in sites)
    factors = [site.factors(row) for site in sites]
    lora_A = factors[0][0].new_zeros(r, factors[0][0].shape[1])
    lora_B = factors[0][1].new_zeros(base_weight_shape(stand_in.base_layer)[0], r)
    start = 0
    for site, (part_A, part_B) in zip(sites, factors, strict=True):
        end = start + len(part_A)
        lora_A[start:end] = part_A
        # one scaling serves the whole module, so what differs between parts goes into B
        lora_B[site.columns, start:end] = part_B * (site.scalings[row] / scale)
        start = end
    return ModuleTensors(first.module_name, False, lora_A, lora_B, alpha_for(scale, r, rslora))


def split(
    model: nn.Module, modules: Sequence[ModuleTensors], parts: Any, config: LoraConfig
) -> list[Update]:
    """Whole modules, or the parts that `parts` (rango.json) names, with their targets.

    Raises AdapterError where the tensors contradict it.
    """
    if not isinstance(parts, dict):
        raise AdapterError(f"rango.json: parts: expected an object, found {parts!r}")
    shapes = adaptable_modules(model)
    updates = []
    for tensors in modules:
        ranks = parts.get(tensors.module)
        if ranks is None:
            shape = shapes[tensors.module]
            target = Target(
                name=tensors.module,
                module=tensors.module,
                part=None,
                columns=None,
                in_features=shape.in_features,
                out_features=shape.out_features,
                embedding=tensors.embedding,
                r=tensors.r,
                lora_alpha=tensors.lora_alpha,
            )
            updates.append(Update(target, tensors.lora_A, tensors.lora_B))
        else:
            updates += _split_module(model, tensors, ranks, config.use_rslora)
    return updates


def _split_module(
    model: nn.Module, tensors: ModuleTensors, ranks: Any, rslora: bool
) -> list[Update]:
    known = fused_parts(model, tensors.module)
    if (
        not isinstance(ranks, dict)
        or not set(ranks) <= set(known)
        or not all(isinstance(r, int) and r > 0 for r in ranks.values())
        or sum(ranks.values()) != tensors.r
    ):
        raise AdapterError(
            f"rango.json: parts of {tensors.module}: expected ranks of {', '.join(known)} that "
            f"add up to {tensors.r}, found {ranks!r}"
        )
    scale = scaling(tensors.lora_alpha, tensors.r, rslora)
    updates, start = [], 0
    for part, r in ranks.items():
        columns = known[part]
        block = tensors.lora_B[:, start : start + r]
        inside = block[columns]
        if block.count_nonzero() != inside.count_nonzero():
            raise AdapterError(
                f"{tensors.module}.lora_B: rango.json says ranks {start} to {start + r - 1} act on "
                f"{part} alone, but they have values elsewhere"
            )
        target = Target(
            name=f"{tensors.module}[{part}]",
            module=tensors.module,
            part=part,
            columns=columns,
            in_features=tensors.lora_A.shape[1],
            out_features=len(inside),
            embedding=False,
            r=r,
            lora_alpha=alpha_for(scale, r, rslora),
        )
        updates.append(Update(target, tensors.lora_A[start : start + r], inside))
        start += r
    return updates
