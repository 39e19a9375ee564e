"""A decoder layer that runs its two halves over the kernels, where they compute the same.

Whatever the fused way does not cover is the forward of the layer's own class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rango.adapters.attention import not_implemented
from rango.adapters.checkpointed import recomputed
from rango.adapters.fused.attention import Attend, SelfAttention
from rango.adapters.fused.classes import LayerSpec, matches
from rango.adapters.fused.infer import MOST_TOKENS, Inference, linear_modules, projection_of
from rango.adapters.fused.mlp import GatedMlp
from rango.adapters.fused.place import Places
from rango.adapters.fused.watch import is_watched
from rango.adapters.mixin import mix_in, take_out
from rango.adapters.modules import AdaptedModule
from rango.adapters.projection import Projection


class FusedLayer(nn.Module):
    """Mixed into the class of a decoder layer by `fuse_layer`."""

    fused_spec: LayerSpec
    fused_places: Places
    fused_inference: Inference
    fused_recompute: bool
    """Keep only what goes into each half, and compute its insides again."""
    self_attn: Any
    mlp: Any
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(batch, length, hidden) -> the same."""
        y = self._fused(hidden_states, attention_mask, past_key_values, position_embeddings, kwargs)
        if y is None:
            arguments = kwargs | {
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "past_key_values": past_key_values,
                "use_cache": use_cache,
                "position_embeddings": position_embeddings,
            }
            plain = super().forward
            if self.fused_recompute:
                y = recomputed(self, plain, (hidden_states,), arguments)
            else:
                y = plain(hidden_states, **arguments)
        return y

    def _fused(
        self,
        x: Tensor,
        attention_mask: Any,
        past_key_values: Any,
        position_embeddings: tuple[Tensor, Tensor] | None,
        others: dict[str, Any],
    ) -> Tensor | None:
        """The layer's output, or None where only the inherited forward has it."""
        if (
            position_embeddings is None
            or x.dtype != torch.float32
            or x.device.type != "cpu"
            or torch.is_autocast_enabled("cpu")
            or not matches(self, self.fused_spec)
            or not_implemented(others)
        ):
            return None
        x = x.contiguous()
        place = self.fused_places.of(x, position_embeddings, attention_mask)
        if past_key_values is not None and x.shape[0] * x.shape[1] <= MOST_TOKENS:
            attend = self._over_cache(x, past_key_values, attention_mask, others)
            y = self.fused_inference(self, x, place, past_key_values, attend)
            if y is not None:
                return y
        else:
            self.fused_inference.forget()
        if any(is_watched(module) or _is_trained(module) for module in _working(self)):
            return None
        halves = self._halves()
        if halves is None:
            return None
        attention, mlp = halves
        if past_key_values is None:
            if place.table is None:
                return None
            recompute = self.fused_recompute
            return mlp(attention(x, place, recompute), recompute)
        leaves = [leaf for half in (attention, mlp) for leaf in half.leaves]
        if torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (x, *leaves)
        ):
            return None
        with torch.no_grad():
            attend = self._over_cache(x, past_key_values, attention_mask, others)
            return mlp(attention.infer(x, place, attend))

    def _halves(self) -> tuple[SelfAttention, GatedMlp] | None:
        spec, attn, mlp = self.fused_spec, self.self_attn, self.mlp
        linears = linear_layers(self)
        if linears is None:
            return None
        q, k, v, o, gate, up, down = linears
        attention = SelfAttention(
            norm=spec.norm(self.input_layernorm),
            q=q,
            k=k,
            v=v,
            o=o,
            head_dim=attn.head_dim,
            scale=attn.scaling,
            q_norm=spec.norm(attn.q_norm) if spec.head_norms else None,
            k_norm=spec.norm(attn.k_norm) if spec.head_norms else None,
        )
        gated = GatedMlp(
            norm=spec.norm(self.post_attention_layernorm),
            gate=gate,
            up=up,
            down=down,
            activation=mlp.config.hidden_act,
        )
        return attention, gated

    def _over_cache(
        self, x: Tensor, past_key_values: Any, attention_mask: Any, others: dict[str, Any]
    ) -> Attend:
        """Attention as the model's configuration names it, over the cache and these tokens."""
        attn = self.self_attn

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            chosen = ALL_ATTENTION_FUNCTIONS.get_interface(attn.config._attn_implementation, None)
            windowed = self.fused_spec.windowed(attn)
            q, k, v = (
                heads.view(*x.shape[:2], -1, attn.head_dim).transpose(1, 2) for heads in (q, k, v)
            )
            k, v = past_key_values.update(k, v, attn.layer_idx)
            out, _ = chosen(
                attn,
                q,
                k,
                v,
                attention_mask,
                dropout=0.0,
                scaling=attn.scaling,
                **windowed,
                **others,
            )
            return out.reshape(x.shape[0] * x.shape[1], -1)

        return attend


def fuse_layer(layer: nn.Module, spec: LayerSpec, places: Places) -> None:
    """Let a decoder layer run fused."""
    mix_in(layer, FusedLayer)
    layer.fused_spec, layer.fused_places = spec, places  # type: ignore[assignment]
    layer.fused_inference = Inference()  # type: ignore[assignment]
    layer.fused_recompute = False  # type: ignore[assignment]


def unfuse_layer(layer: FusedLayer) -> None:
    """Make a fused layer what it was."""
    del layer.fused_spec, layer.fused_places, layer.fused_inference, layer.fused_recompute
    take_out(layer, FusedLayer)


def linear_layers(layer: Any) -> list[Projection] | None:
    """q, k, v, o, gate, up and down; None if one of them is not just a linear layer."""
    found = [projection_of(module) for module in linear_modules(layer)]
    known = [projection for projection in found if projection is not None]
    return known if len(known) == len(found) else None


def _working(layer: Any) -> Iterator[nn.Module]:
    """The submodules whose work is done without calling them."""
    attn, mlp = layer.self_attn, layer.mlp
    yield from (attn, mlp, layer.input_layernorm, layer.post_attention_layernorm)
    for module in (*attn._modules.values(), *mlp._modules.values()):
        if module is not None:
            yield module
            if isinstance(module, AdaptedModule):
                yield module.base_layer


def _is_trained(module: nn.Module) -> bool:
    return any(p is not None and p.requires_grad for p in module._parameters.values())
