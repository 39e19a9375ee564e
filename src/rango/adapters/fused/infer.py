"""A fused layer's few tokens of decoding: one call of the kernels a layer.

What the call needs (addresses of weights, norms and adapters) is gathered once. Whether it still
holds is asked before each use: modules, hooks, tensors, routing or scales may have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from rango.adapters.attention import NAME
from rango.adapters.fused.cache import RoomyLayer
from rango.adapters.fused.norm import Norm
from rango.adapters.fused.place import Place
from rango.adapters.fused.watch import Watch
from rango.adapters.modules import AdaptedModule
from rango.adapters.projection import Projection
from rango.adapters.routing import Routing
from rango.adapters.site import Site
from rango.kernels import dispatch
from rango.kernels.decoder_layer import decoder_layer
from rango.numerics.attention import reach
from rango.numerics.nf4 import NF4Tensor

MOST_TOKENS = 16
"""Of a batch, for which the kernels read each weight once."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (T, heads, dim), k and v (T, kv_heads, dim) -> (T, heads · dim)."""

_TRAINING = attrgetter("training")
_TRAINED = attrgetter("requires_grad")


class Inference:
    """What is gathered of one layer. A copy of the layer gathers its own."""

    def __init__(self) -> None:
        self._gathered: _Gathered | None = None

    def __call__(
        self, layer: Any, x: Tensor, place: Place, past_key_values: Any, attend: Attend
    ) -> Tensor | None:
        """The layer's output for x (batch, length, hidden), fp32 and contiguous on the CPU, with
        its keys and values in the cache; None, and nothing done, where the kernels cannot.

        attend: appends to the cache and attends over it, for caches other than ours.
        """
        module = dispatch.native()
        if module is None:
            return None
        gathered = self._gathered
        if gathered is None or gathered.module is not module or not gathered.holds():
            gathered = self._gathered = _gather(module, layer)
        if gathered is None:
            return None
        if torch.is_grad_enabled() and (x.requires_grad or gathered.trained()):
            return None
        updates = gathered.updates(x.shape[:2])
        if updates is None:
            return None
        cached = _ours(past_key_values, layer.self_attn)
        if cached is not None:
            y = gathered.step(updates, x, place, cached)
            if y is not None:
                return y
        q, k, v = gathered.heads(updates, x, place)
        return gathered.rest(updates, x, attend(q, k, v).contiguous())

    def forget(self) -> None:
        """Let go of what was gathered, and so of weights that may have been replaced."""
        self._gathered = None

    def __reduce__(self) -> tuple[type[Inference], tuple[()]]:
        return Inference, ()


class _Gathered:
    """A layer as the kernels take it, and what it was made of."""

    def __init__(
        self, module: Any, native: Any, projections: list[Projection], watch: Watch, dim: int
    ) -> None:
        self.module = module
        self._native = native
        self._watch = watch
        self._dim = dim
        self._widths = [projection.out_features for projection in projections[:3]]
        self._offsets = _nested_offsets(projections)
        self._offset_values = list(map(float, self._offsets))
        self._sites = [projection.site for projection in projections]
        self._acting: list[Site] = [site for site in self._sites if site is not None]
        self._leaves = [leaf for site in self._acting for leaf in (site.A, site.B)]
        self._nothing = module.Updates()
        self._updates: Any = None
        self._routing: Routing | None = None
        self._state: tuple[Any, ...] = ()

    def holds(self) -> bool:
        """Whether the layer's modules are what they were."""
        return self._watch.holds() and list(map(float, self._offsets)) == self._offset_values

    def trained(self) -> bool:
        """Whether any weight or adapter requires a gradient."""
        return any(map(_TRAINED, self._leaves)) or self._watch.trained()

    def updates(self, leading: torch.Size) -> Any:
        """What the adapters add for tokens (batch, length), as the kernels take it; None where
        they cannot."""
        sites = self._acting
        if not sites or not sites[0].switch.acts:
            return self._nothing
        if any(map(_TRAINING, sites)) and any(any(site.dropouts) for site in sites):
            return None
        switch = sites[0].switch
        state = (
            leading,
            dict(switch.factors),
            [(list(site.ranks), list(site.scalings)) for site in sites],
            list(map(Tensor.data_ptr, self._leaves)),
            self._leaves[0].dtype,
        )
        if switch.routing is not self._routing or state != self._state:
            self._updates = self._route(leading)
            self._routing, self._state = switch.routing, state
        return self._updates

    def step(self, updates: Any, x: Tensor, place: Place, cached: RoomyLayer) -> Tensor | None:
        """The whole layer, over a cache of ours."""
        batch, length, _ = x.shape
        past = cached.get_seq_length()
        seen = _seen(self.module, place, batch * length, batch * (past + length))
        room = None if seen is None else cached.room_for(x, self._widths[1] // self._dim, self._dim)
        if room is None:
            return None
        keys, values = room
        y = torch.empty_like(x)
        self._native.step(
            updates,
            x.data_ptr(),
            y.data_ptr(),
            batch * length,
            _angles(self.module, place),
            keys.data_ptr(),
            values.data_ptr(),
            keys.stride(0),
            keys.stride(1),
            past,
            length,
            seen,
            torch.get_num_threads(),
        )
        return y

    def heads(self, updates: Any, x: Tensor, place: Place) -> list[Tensor]:
        """q (T, heads, dim), k and v (T, kv_heads, dim), rotated."""
        tokens = x.shape[0] * x.shape[1]
        outputs = [x.new_empty(tokens, width // self._dim, self._dim) for width in self._widths]
        self._native.heads(
            updates,
            x.data_ptr(),
            tokens,
            _angles(self.module, place),
            *(output.data_ptr() for output in outputs),
            torch.get_num_threads(),
        )
        return outputs

    def rest(self, updates: Any, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output from what its attention gave, (T, heads · dim)."""
        y = torch.empty_like(x)
        self._native.rest(
            updates,
            x.data_ptr(),
            attended.data_ptr(),
            x.shape[0] * x.shape[1],
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    def _route(self, leading: torch.Size) -> Any:
        updates = self.module.Updates()
        for which, site in enumerate(self._sites):
            for part in site.parts(leading, site.A.device) if site is not None else ():
                assert site is not None  # noqa: S101 - it has parts
                factors = site.A.detach()[part.row], site.B.detach()[part.row]
                if any(dispatch.native(factor) is not self.module for factor in factors):
                    return None
                addresses = [factor.data_ptr() for factor in factors]
                for rows, own in part.pieces():
                    # one scale for all, or one for each
                    runs = (
                        [(part.scale, rows.start, rows.stop)]
                        if isinstance(part.scale, float)
                        else [
                            (scale, row, row + 1)
                            for row, scale in enumerate(part.scale[own, 0].tolist(), rows.start)
                        ]
                    )
                    for scale, first, last in runs:
                        updates.add(which, *addresses, site.A.shape[1], scale, first, last)
        return updates


def linear_modules(layer: Any) -> list[nn.Module]:
    """q, k, v, o, gate, up and down, adapted or not."""
    attn, mlp = layer.self_attn, layer.mlp
    return [
        *(attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    ]


def projection_of(module: nn.Module) -> Projection | None:
    """A linear layer of the base, adapted or not; None if it is more than that."""
    if isinstance(module, AdaptedModule):
        return module.projection()
    return Projection.over(module)


def _gather(module: Any, layer: Any) -> _Gathered | None:
    """None where the layer is not just what the kernels know."""
    attn, mlp, spec = layer.self_attn, layer.mlp, layer.fused_spec
    modules = linear_modules(layer)
    projections = [found for m in modules if (found := projection_of(m)) is not None]
    sites = [projection.site for projection in projections if projection.site is not None]
    if len(projections) < len(modules) or any(s.switch is not sites[0].switch for s in sites):
        return None
    own = [layer.input_layernorm, layer.post_attention_layernorm]
    of_heads = [attn.q_norm, attn.k_norm] if spec.head_norms else []
    norms: list[Norm] = [spec.norm(norm) for norm in (*own, *of_heads)]
    bases = [m.base_layer for m in modules if isinstance(m, AdaptedModule)]
    with torch.no_grad():
        native = decoder_layer(
            [(projection.weight, projection.bias) for projection in projections],
            [*((norm.weight, norm.eps) for norm in norms), *([None] * (4 - len(norms)))],
            head_dim=attn.head_dim,
            scale=attn.scaling,
            activation=mlp.config.hidden_act,
            offset=spec.offset,
        )
    if native is None:
        return None
    children = [child for m in (attn, mlp) for child in m.children()]
    watch = Watch([attn, mlp, *own, *children, *bases])
    gathered = _Gathered(module, native, projections, watch, attn.head_dim)
    return gathered if gathered.holds() else None


def _nested_offsets(projections: list[Projection]) -> list[Tensor]:
    """Of NF4 weights with quantized constants: these are copied, not pointed to."""
    weights = [projection.weight for projection in projections]
    offsets = [weight.nested_offset for weight in weights if isinstance(weight, NF4Tensor)]
    return [offset for offset in offsets if offset is not None]


def _ours(past_key_values: Any, attn: Any) -> RoomyLayer | None:
    """The layer's cache if it is ours and our attention would read it."""
    layers = getattr(past_key_values, "layers", ())
    index = attn.layer_idx
    if index >= len(layers) or attn.config._attn_implementation != NAME:
        return None
    cached = layers[index]
    return cached if type(cached) is RoomyLayer and not past_key_values.offloading else None


def _angles(module: Any, place: Place) -> Any:
    """Made once for all layers."""
    found = place.memo.get("angles")
    if found is None:
        found = module.Angles(
            place.cos.data_ptr(), place.sin.data_ptr(), place.cos.shape[1], len(place.cos)
        )
        place.memo["angles"] = found
    return found


def _seen(module: Any, place: Place, tokens: int, keys: int) -> Any:
    """Who attends to whom, made once for all layers; None where the place does not say it of so
    many tokens and keys."""
    found = place.memo.get(keys)
    if found is None and place.table is not None:
        table = place.table
        bounds, key_bounds = table.bounds.contiguous(), table.key_bounds.contiguous()
        if int(bounds[-1]) != tokens or int(key_bounds[-1]) != keys:
            return None
        found = (
            module.Reach(
                bounds.data_ptr(),
                key_bounds.data_ptr(),
                len(bounds) - 1,
                tokens,
                keys,
                *reach(table.causal, table.window),
            ),
            (bounds, key_bounds),
        )
        place.memo[keys] = found
    return None if found is None else found[0]
