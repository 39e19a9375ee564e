"""Which way each part of a base goes when it is computed on this machine, told without loading it.

What is said here is decided again, by a probe of equal output, when adapters are attached
(rango.adapters.fused.install), and the loss's path batch by batch (rango.evaluation.loss).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rango.adapters.fused.classes import layer_spec, norm_spec
from rango.base.architecture import architecture
from rango.base.checkpoint import open_checkpoint
from rango.base.roles import adaptable_modules
from rango.base.source import local_folder
from rango.evaluation.loss import head_rule
from rango.kernels import dispatch

FUSED = "fused"
"""Norm, projections with their adapters, attention or activation, residual: two steps a layer."""
ONE_STEP = "kernels: product and adapter in one step"
PLAIN = "plain: transformers and torch"


def base_paths(source: str | Path, revision: str | None = None) -> dict[str, str]:
    """By module name, the path that each layer, norm, remaining linear layer and the loss takes on
    the CPU in fp32. Raises CheckpointError as load_base does."""
    shape = architecture(open_checkpoint(local_folder(source, revision)))
    with torch.device("meta"):
        model: Any = shape.model_class(shape.config)
    if dispatch.native() is None:
        return {shape.model_class.__name__: PLAIN}
    paths: dict[str, str] = {}
    if model._can_set_attn_implementation():
        paths["attention"] = "kernel, if its probe passes"
    layers = [name for name, module in model.named_modules() if layer_spec(module) is not None]
    within = tuple(f"{name}." for name in layers)
    norms = [name for name, module in model.named_modules() if norm_spec(module) is not None]
    paths |= dict.fromkeys(layers, FUSED)
    paths |= {name: FUSED for name in norms if not name.startswith(within)}
    for name, adaptable in adaptable_modules(model).items():
        if adaptable.role not in ("embedding", "head") and not name.startswith(within):
            linear = type(model.get_submodule(name)) is torch.nn.Linear
            paths[name] = ONE_STEP if linear else PLAIN
    known = head_rule(model) is not None
    paths["head and loss"] = "kernel, logits never stored" if known else PLAIN
    return paths
