"""Does a merged adapter compute what it computes unmerged? Layer by layer, and as a whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rango.adapters.attach import Adapted
from rango.adapters.merge import merged_module, merged_whole, module_delta
from rango.adapters.modules import AdaptedModule
from rango.adapters.routing import Routing
from rango.base.linear import QuantizedLinear
from rango.base.stored import Stored
from rango.evaluation.probe import activation_dtype, difference, model_dtype, observe, unit_of
from rango.generation.inference import inference
from rango.progress import Progress, silent

LAYER_LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest ‖merged − unmerged‖ / ‖unmerged‖ of a layer's output. In 16 bits the merged weight is
rounded once more: half a unit in the last place is 2^-9 of it in bf16."""
MODEL_LIMITS = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""The same of the model's outputs, through all layers."""
_TOKENS = 8


def layer_errors(adapted: Adapted, row: int = 0, progress: Progress = silent) -> dict[str, float]:
    """For each adapted module ‖merged − unmerged‖ / ‖unmerged‖ on the same random input.

    One layer is merged at a time, so one weight more is held than before.
    """
    errors: dict[str, float] = {}
    dtype, compute = model_dtype(adapted.model), activation_dtype(adapted.model)
    total = len(adapted.modules)
    with adapted.route(Routing.everywhere(row)), inference(adapted.model):
        for done, (name, module) in enumerate(adapted.modules.items(), start=1):
            delta = module_delta(module, row)
            if delta is not None:
                x = _input(module, compute, seed=done)
                factor = adapted.switch.factors.get(row, 1.0)
                merged = merged_module(module.base_layer, delta * factor, dtype)
                errors[name] = difference([merged(x)], [module(x)])
            progress("merged against unmerged", done, total, "layers")
        for name, layer in adapted.saved.items():
            if layer.saves[row]:
                weight = layer.base_layer.get_parameter("weight")
                generator = torch.Generator().manual_seed(1)
                x = torch.randn(_TOKENS, weight.shape[1], generator=generator)
                x = x.to(weight.device, compute)
                merged = merged_whole(layer, row, adapted.switch.factors.get(row, 1.0))
                errors[name] = difference([merged(x)], [layer(x)])
    return errors


def model_error(
    adapted: Adapted, samples: Sequence[Sequence[int]], row: int = 0
) -> tuple[float, float]:
    """Relative differences of the outputs: merged from unmerged, and unmerged again from before.

    The second is zero where unmerging restores every bit.
    """
    with adapted.route(Routing.everywhere(row)):
        before = observe(adapted.model, samples)
        adapted.merge(row)
        try:
            merged = observe(adapted.model, samples)
        finally:
            adapted.unmerge()
        after = observe(adapted.model, samples)
    unit = unit_of(adapted.model)
    return difference(merged, before, unit), difference(after, before, unit)


def merged_bytes(adapted: Adapted, row: int = 0) -> int:
    """Memory that merging takes while the base's own weights are kept."""
    itemsize = model_dtype(adapted.model).itemsize
    return sum(
        _elements(module) * itemsize
        for module in adapted.modules.values()
        if any(site.ranks[row] for site in module.sites)
    ) + sum(
        layer.base_layer.get_parameter("weight").nbytes
        for layer in adapted.saved.values()
        if layer.saves[row]
    )


def available_memory(device: torch.device) -> int | None:
    """Bytes free on the device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _elements(module: AdaptedModule) -> int:
    layer = module.base_layer
    if isinstance(layer, QuantizedLinear):
        return layer.out_features * layer.in_features
    weight = layer.weight
    return weight.numel() if isinstance(weight, Tensor) else 0


def _input(module: AdaptedModule, dtype: torch.dtype, seed: int) -> Tensor:
    """(tokens, in) of N(0, 1), or (tokens,) ids."""
    generator = torch.Generator().manual_seed(seed)
    layer = module.base_layer
    device = next(iter(module.sites)).A.device
    if isinstance(layer, nn.Embedding):
        ids = torch.randint(layer.num_embeddings, (_TOKENS,), generator=generator)
        return ids.to(device)
    if isinstance(layer, nn.Linear | Conv1D) and not isinstance(layer, Stored):
        dtype = layer.weight.dtype
    in_features = next(iter(module.sites)).A.shape[2]
    return torch.randn(_TOKENS, in_features, generator=generator).to(device, dtype)
