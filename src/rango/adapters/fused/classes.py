"""Which classes of transformers are fused, and how each differs from Llama's.

By exact class: a subclass may change anything. All have two halves, each over an RMS norm with a
residual around it: attention with rotary embeddings, and a gated MLP.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.activations import ACT2FN

from rango.adapters.fused.norm import Norm
from rango.numerics.gated import ACTIVATIONS


@dataclass(frozen=True)
class LayerSpec:
    """One architecture.

    offset: of its RMS norms. head_norms: q and k are normed head by head before their rotation.
    window_in: where its sliding window is written, ``attention``, ``config`` or nowhere.
    """

    prefix: str
    offset: float = 0.0
    head_norms: bool = False
    window_in: str = ""

    def norm(self, module: Any) -> Norm:
        """The norm that a module of this architecture computes."""
        # Llama's modules call it variance_epsilon, Gemma's eps
        eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        return Norm(module.weight, eps, self.offset)

    def windowed(self, attention: Any) -> dict[str, Any]:
        """What is said of a sliding window to the attention function."""
        if not self.window_in:
            return {}
        holder = attention.config if self.window_in == "config" else attention
        return {"sliding_window": getattr(holder, "sliding_window", None)}


_SPECS = {
    "llama": LayerSpec("Llama"),
    "mistral": LayerSpec("Mistral", window_in="config"),
    "qwen2": LayerSpec("Qwen2", window_in="attention"),
    "qwen3": LayerSpec("Qwen3", head_norms=True, window_in="attention"),
    "gemma": LayerSpec("Gemma", offset=1.0),
}


def layer_spec(layer: Any) -> LayerSpec | None:
    """How to fuse a decoder layer; None if its class or its activation is not known."""
    spec = _spec_of(layer, "DecoderLayer")
    if spec is None or layer.mlp.config.hidden_act not in ACTIVATIONS:
        return None
    return spec if matches(layer, spec) else None


def matches(layer: Any, spec: LayerSpec) -> bool:
    """Whether what a layer consists of is its architecture's own, and acts as in inference."""
    attn, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    if spec.head_norms:
        norms += [attn.q_norm, attn.k_norm]
    home = sys.modules[type(attn).__module__]
    return (
        type(attn) is getattr(home, f"{spec.prefix}Attention", None)
        and type(mlp) is getattr(home, f"{spec.prefix}MLP", None)
        and all(type(norm) is getattr(home, f"{spec.prefix}RMSNorm", None) for norm in norms)
        and type(mlp.act_fn) is type(ACT2FN[mlp.config.hidden_act])
        and attn.is_causal
        and not (attn.training and attn.attention_dropout)
    )


def norm_spec(module: nn.Module) -> LayerSpec | None:
    """How to fuse an RMS norm that stands alone; None if its class is not known."""
    return _spec_of(module, "RMSNorm")


def _spec_of(module: nn.Module, kind: str) -> LayerSpec | None:
    for name, spec in _SPECS.items():
        # only looked up, never imported: a model of another architecture is not of its classes
        home = sys.modules.get(f"transformers.models.{name}.modeling_{name}")
        if home is not None and type(module) is getattr(home, f"{spec.prefix}{kind}", None):
            return spec
    return None
