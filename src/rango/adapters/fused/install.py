"""Fuse what can be fused of a model, each kind of layer after a probe of equal output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rango.adapters.attention import NAME, use_rango_attention
from rango.adapters.fused.classes import layer_spec, norm_spec
from rango.adapters.fused.layer import FusedLayer, fuse_layer, linear_layers, unfuse_layer
from rango.adapters.fused.norm import FusedNorm, fuse_norm, unfuse_norm
from rango.adapters.fused.place import Places
from rango.adapters.mixin import plain_class
from rango.kernels import dispatch

_TOKENS = 7
_TOLERANCE = 1e-4
"""Relative: sums of a few thousand products in another order."""


class Fusion:
    """What was fused of a model, and how to undo it."""

    def __init__(self, model: nn.Module) -> None:
        """Fuse attention, decoder layers and norms of a frozen model where they are known and pass
        their probes; nothing at all where the kernels do not run."""
        self.paths: dict[str, str] = {}
        """Which way each of them goes, in words, by module name."""
        self._model = model
        self._attention: str | None = None
        if dispatch.native() is None or any(p.device.type != "cpu" for p in model.parameters()):
            return
        before = getattr(getattr(model, "config", None), "_attn_implementation", None)
        if before is not None and use_rango_attention(model):
            self._attention = before
            self.paths["attention"] = "fused"
        self._fuse_layers()
        self._fuse_norms()

    def undo(self) -> None:
        """Make the model what it was."""
        for module in self._model.modules():
            if isinstance(module, FusedLayer):
                unfuse_layer(module)
            elif isinstance(module, FusedNorm):
                unfuse_norm(module)
        config: Any = getattr(self._model, "config", None)
        if self._attention is not None and config._attn_implementation == NAME:
            self._model.set_attn_implementation(self._attention)  # type: ignore[operator]
        self.paths = {}

    def _fuse_layers(self) -> None:
        places = Places()
        probed: dict[type, float] = {}
        for name, module in self._model.named_modules():
            spec, kind = layer_spec(module), type(module)
            if spec is None or not _is_fp32_on_cpu(module):
                continue
            if linear_layers(module) is None:
                self.paths[name] = "plain: a projection is not just one linear layer"
                continue
            fuse_layer(module, spec, places)
            if kind not in probed:
                probed[kind] = _probe(module)
            if probed[kind] <= _TOLERANCE:
                self.paths[name] = "fused"
            else:
                unfuse_layer(module)
                self.paths[name] = f"plain: the fused layer differs by {probed[kind]:.1g}"
        places.forget()

    def _fuse_norms(self) -> None:
        within = tuple(f"{name}." for name, path in self.paths.items() if path == "fused")
        for name, module in self._model.named_modules():
            spec = norm_spec(module)
            if spec is not None and not name.startswith(within) and _is_fp32_on_cpu(module):
                fuse_norm(module, spec.norm)
                self.paths[name] = "fused"


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Within the block, a frozen model with nothing attached computes in fused layers too."""
    if any(isinstance(module, FusedLayer | FusedNorm) for module in model.modules()) or any(
        parameter.requires_grad for parameter in model.parameters()
    ):
        yield
        return
    fusion = Fusion(model)
    try:
        yield
    finally:
        fusion.undo()


@torch.no_grad()
def _probe(layer: Any) -> float:
    """Relative difference of a fused layer from the forward it inherits, on a few tokens."""
    generator = torch.Generator().manual_seed(0)
    hidden = layer.input_layernorm.weight.shape[0]
    x = torch.randn(1, _TOKENS, hidden, generator=generator)
    angles = torch.rand(1, _TOKENS, layer.self_attn.head_dim // 2, generator=generator)
    angles = torch.cat([angles, angles], dim=-1)
    arguments = {"position_embeddings": (angles.cos(), angles.sin())}
    found = layer(x, **arguments)
    plain: Any = plain_class(layer)
    # an explicit mask means the same to every attention function
    unseen = torch.ones(_TOKENS, _TOKENS, dtype=torch.bool).triu(1)
    mask = torch.zeros(_TOKENS, _TOKENS).masked_fill_(unseen, torch.finfo(torch.float32).min)
    expected = plain.forward(layer, x, attention_mask=mask[None, None], **arguments)
    return float((found - expected).norm() / expected.norm())


def _is_fp32_on_cpu(module: nn.Module) -> bool:
    """Whether what is computed here is fp32 on the CPU, judged by the norms' weights."""
    weights = [p for name, p in module.named_parameters() if "norm" in name] or list(
        module.parameters()
    )
    return all(p.dtype == torch.float32 and p.device.type == "cpu" for p in weights)
