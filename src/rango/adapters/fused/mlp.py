"""The gated half of a decoder layer: y = x + down(act(gate(norm(x))) ⊙ up(norm(x))).

Saved for the backward pass: x, gate and up. The norm and the activation are computed again there:
they cost little, and their outputs are half of what would otherwise be kept. With `recompute` only
x is saved, and gate and up are computed again too; down's product never is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rango.adapters.fused import shared
from rango.adapters.fused.norm import Norm
from rango.adapters.projection import Gradients, Narrow, Projection, sum_gradients, wanted_of
from rango.adapters.update import Part
from rango.kernels.gated import gated, gated_backward


@dataclass(frozen=True)
class GatedMlp:
    """The half's parts; `activation` is one that kernels.gated knows."""

    norm: Norm
    gate: Projection
    up: Projection
    down: Projection
    activation: str

    @property
    def projections(self) -> tuple[Projection, ...]:
        """In the order of their leaves."""
        return (self.gate, self.up, self.down)

    @property
    def leaves(self) -> list[Tensor | None]:
        """A and B of each projection, as autograd knows them."""
        return [leaf for projection in self.projections for leaf in projection.leaves]

    def __call__(self, x: Tensor, recompute: bool = False) -> Tensor:
        """(batch, length, hidden) -> the same."""
        y: Tensor = _GatedMlp.apply(x, self, recompute, *self.leaves)
        return y

    def widen(
        self, normed: Tensor, parts: Sequence[Sequence[Part]]
    ) -> tuple[Tensor, Tensor, list[list[Narrow]]]:
        """gate and up, (T, inner) each, and what their adapters keep."""
        gate = normed.new_empty(len(normed), self.gate.out_features)
        up = normed.new_empty(len(normed), self.up.out_features)
        kept = [self.gate.forward(normed, parts[0], gate), self.up.forward(normed, parts[1], up)]
        return gate, up, kept


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, half: GatedMlp, recompute: bool, *leaves: Tensor | None
    ) -> Tensor:
        flat = x.view(-1, x.shape[-1])  # (T, hidden)
        parts = [projection.parts(x.shape[:-1]) for projection in half.projections]
        normed = half.norm.forward(flat, out=shared.narrow.like(flat, flat.shape[1]))
        gate, up, kept = half.widen(normed, parts)
        inner = gated(gate, up, half.activation, out=shared.inner.like(gate, gate.shape[1]))
        y = torch.empty_like(x)
        kept.append(half.down.forward(inner, parts[2], y.view_as(flat), start=flat))
        ctx.save_for_backward(x, *leaves, *([] if recompute else [gate, up]))
        ctx.half, ctx.parts, ctx.kept = half, parts, kept
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        half: GatedMlp = ctx.half
        x, *saved = ctx.saved_tensors
        saved = saved[len(half.leaves) :]  # the leaves, so that autograd sees if they change
        flat = x.view(-1, x.shape[-1])
        gate, up = saved or half.widen(half.norm.forward(flat), ctx.parts)[:2]
        grad = grad_y.reshape(flat.shape).contiguous()
        gradients = Gradients()

        needs_x = ctx.needs_input_grad[0]
        wanted = wanted_of(ctx.needs_input_grad, 3)
        # nothing below the lowest adapted layer: gate and up may need no gradient either
        needs_inner = needs_x or any(map(any, wanted[:2]))

        inner = gated(gate, up, half.activation, out=shared.inner.like(gate, gate.shape[1]))
        for_inner = half.down.backward(grad, inner, ctx.kept[2], gradients, wanted[2], needs_inner)
        grad_x = None
        if needs_inner:
            grad_inner = sum_gradients([for_inner], shared.other.like(inner, inner.shape[1]))
            # elementwise, so each gradient takes the place of a tensor that is read before
            grad_gate, grad_up = gated_backward(
                grad_inner, gate, up, half.activation, out=(inner, grad_inner)
            )
            normed = half.norm.forward(flat, out=shared.narrow.like(flat, flat.shape[1]))
            shares = [
                half.gate.backward(grad_gate, normed, ctx.kept[0], gradients, wanted[0], needs_x),
                half.up.backward(grad_up, normed, ctx.kept[1], gradients, wanted[1], needs_x),
            ]
            if needs_x:
                grad_x = half.norm.backward(sum_gradients(shares, normed), flat, grad.clone())
                grad_x = grad_x.view_as(x)
        return (grad_x, None, None, *gradients.for_autograd(half.projections))
