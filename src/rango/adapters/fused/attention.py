"""The attending half of a decoder layer: y = x + o(attention(rotate(q, k), v)), over norm(x).

Saved for the backward pass: x, the rotated q and k, v, attention's output and its log-sum-exp. The
norm is computed again there, and so is attention's output where sequences are so short that it
costs next to nothing beside the projections. With `recompute` only x is saved, and all of them are
computed again; o's product never is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rango.adapters.fused import shared
from rango.adapters.fused.norm import Norm
from rango.adapters.fused.place import Place
from rango.adapters.projection import Gradients, Narrow, Projection, sum_gradients, wanted_of
from rango.adapters.update import Part
from rango.kernels.attention import attention, attention_backward
from rango.kernels.rotary import rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (T, heads, dim), k and v (T, kv_heads, dim) -> (T, heads · dim)."""


_CHEAP = 16
"""Attention is computed again where it takes at most this part of the projections' operations."""


@dataclass(frozen=True)
class SelfAttention:
    """The half's parts. q_norm and k_norm, over each head, are Qwen3's."""

    norm: Norm
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    head_dim: int
    scale: float
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """In the order of their leaves."""
        return (self.q, self.k, self.v, self.o)

    @property
    def leaves(self) -> list[Tensor | None]:
        """A and B of each projection, as autograd knows them."""
        return [leaf for projection in self.projections for leaf in projection.leaves]

    def __call__(self, x: Tensor, place: Place, recompute: bool = False) -> Tensor:
        """(batch, length, hidden) -> the same, each sequence of the place attending to itself."""
        y: Tensor = _SelfAttention.apply(x, self, place, recompute, *self.leaves)
        return y

    def attend(
        self, normed: Tensor, parts: list[list[Part]], place: Place, passing: bool = False
    ) -> tuple[list[Tensor], list[list[Narrow]]]:
        """q, k, v, attention's output, its log-sum-exp, and q and k before their norms if they
        have any; and what the adapters of q, k and v keep. The output is `passing` if it lies
        where the next call's does."""
        heads, kept = self._heads(normed, parts)
        q, k, v = self._rotated(heads, place)
        out, lse = self._attended(q, k, v, place, passing)
        return [q, k, v, out, lse, *(heads[:2] if self.q_norm is not None else [])], kept

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, place: Place, passing: bool
    ) -> tuple[Tensor, Tensor]:
        out = shared.inner.like(q, q[0].numel()).view_as(q) if passing else None
        return attention(q, k, v, **_reach(place), scale=self.scale, out=out)

    def is_cheap(self, place: Place, tokens: int) -> bool:
        """Whether attending costs so little beside the projections of `tokens` tokens that it is
        done again rather than kept."""
        assert place.table is not None  # noqa: S101 - no backward pass without one
        lengths = place.table.bounds.diff().double()
        seen = float((lengths * lengths).sum()) / (2 if place.table.causal else 1)
        products = sum(math.prod(projection.weight.shape) for projection in self.projections)
        return seen * self.q.out_features * _CHEAP < tokens * products

    def infer(self, x: Tensor, place: Place, attend: Attend) -> Tensor:
        """The same without gradients, attending as `attend` does (over a cache, say)."""
        flat = x.view(-1, x.shape[-1])
        parts = [projection.parts(x.shape[:-1]) for projection in self.projections]
        heads, _ = self._heads(self.norm.forward(flat), parts)
        q, k, v = self._rotated(heads, place)
        y = torch.empty_like(x)
        self.o.forward(attend(q, k, v), parts[3], y.view_as(flat), start=flat)
        return y

    def _heads(
        self, normed: Tensor, parts: list[list[Part]]
    ) -> tuple[list[Tensor], list[list[Narrow]]]:
        """q, k and v as they leave their projections, (T, heads, dim) each."""
        outputs, kept = [], []
        for projection, segments in zip(self.projections[:3], parts, strict=False):
            out = normed.new_empty(len(normed), projection.out_features)
            kept.append(projection.forward(normed, segments, out))
            outputs.append(out.view(len(normed), -1, self.head_dim))
        return outputs, kept

    def _rotated(self, heads: list[Tensor], place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """q and k after their norms, if they have them, and rotation: in place without norms."""
        q, k, v = heads
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.forward(q), self.k_norm.forward(k)
        rotate(q, place.cos, place.sin, out=q)
        rotate(k, place.cos, place.sin, out=k)
        return q, k, v


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        half: SelfAttention,
        place: Place,
        recompute: bool,
        *leaves: Tensor | None,
    ) -> Tensor:
        flat = x.view(-1, x.shape[-1])  # (T, hidden)
        parts = [projection.parts(x.shape[:-1]) for projection in half.projections]
        normed = half.norm.forward(flat, out=shared.narrow.like(flat, flat.shape[1]))
        ctx.attends_again = not recompute and half.is_cheap(place, len(flat))
        inside, kept = half.attend(normed, parts, place, passing=ctx.attends_again)
        out = inside[3].flatten(1)
        y = torch.empty_like(x)
        kept.append(half.o.forward(out, parts[3], y.view_as(flat), start=flat))
        if ctx.attends_again:
            del inside[3:5]
        ctx.save_for_backward(x, *leaves, *([] if recompute else inside))
        ctx.half, ctx.place, ctx.parts, ctx.kept = half, place, parts, kept
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        half: SelfAttention = ctx.half
        place: Place = ctx.place
        x, *inside = ctx.saved_tensors
        inside = inside[len(half.leaves) :]  # the leaves, so that autograd sees if they change
        flat = x.view(-1, x.shape[-1])
        if not inside:
            inside, _ = half.attend(half.norm.forward(flat), ctx.parts, place)
        elif ctx.attends_again:
            q, k, v = inside[:3]
            inside[3:3] = half._attended(q, k, v, place, passing=True)
        q, k, v, out, lse, *before_norms = inside
        grad = grad_y.reshape(flat.shape).contiguous()
        gradients = Gradients()
        needs_x = ctx.needs_input_grad[0]
        # nothing below the lowest adapted layer: its own q, k and v may need no gradient either
        wanted = wanted_of(ctx.needs_input_grad, 4)
        needs_heads = needs_x or any(map(any, wanted[:3]))

        attended = out.flatten(1)
        for_out = half.o.backward(grad, attended, ctx.kept[3], gradients, wanted[3], needs_heads)
        grad_x = None
        if needs_heads:
            grad_out = sum_gradients(
                [for_out], shared.other.like(attended, attended.shape[1])
            ).view_as(out)
            grads = list(
                attention_backward(grad_out, q, k, v, out, lse, **_reach(place), scale=half.scale)
            )
            for i, norm in enumerate((half.q_norm, half.k_norm)):
                grads[i] = rotate(grads[i], place.cos, place.sin, inverse=True, out=grads[i])
                if norm is not None:
                    grads[i] = norm.backward(grads[i], before_norms[i])
            normed = half.norm.forward(flat, out=shared.narrow.like(flat, flat.shape[1]))
            shares = [
                projection.backward(
                    grads[i].flatten(1), normed, ctx.kept[i], gradients, wanted[i], needs_x
                )
                for i, projection in enumerate(half.projections[:3])
            ]
            if needs_x:
                grad_x = half.norm.backward(sum_gradients(shares, normed), flat, grad.clone())
                grad_x = grad_x.view_as(x)
        return (grad_x, None, None, None, *gradients.for_autograd(half.projections))


def _reach(place: Place) -> dict[str, Any]:
    """Who attends to whom, as kernels.attention takes it."""
    table = place.table
    if table is None:
        raise ValueError("the mask of this batch is not one of boundaries")
    return {
        "bounds": table.bounds,
        "key_bounds": table.key_bounds,
        "causal": table.causal,
        "window": table.window,
    }
