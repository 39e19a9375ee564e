"""The full-rank update of a linear layer with its gradients, for tokens of several rows at once.

    y = W·x + b + s·(ΔW·x + Δb)          over the segments of the batch, each with its own row
    dΔW = (s·g)ᵀ·x     dΔb = Σ s·g     dx = s·g·ΔW

It is what a classifier's head needs, whose W may be zero in the base: no low-rank factor of a
matrix with as many rows as labels is smaller than the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rango.adapters.bank import Bank
from rango.adapters.layout import Key
from rango.adapters.update import Part, RowGradients


class DenseUpdate(torch.autograd.Function):
    """y += scale · (ΔW · x + Δb), in place."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,  # (..., out), contiguous; changed in place
        x: Tensor,  # (..., in)
        weight: Tensor,  # (rows, out, in)
        bias: Tensor | None,  # (rows, out)
        bank: Bank,
        keys: Sequence[Key],
        parts: Sequence[Part],
    ) -> Tensor:
        """(..., out)."""
        tokens = x.reshape(-1, x.shape[-1])  # (N, in)
        outputs = y.view(-1, y.shape[-1])  # (N, out)
        with torch.autocast(y.device.type, enabled=False):  # adapters compute in their own type
            for part in parts:
                change = part.take(tokens).to(weight.dtype) @ weight[part.row].T  # (n, out)
                if bias is not None:
                    change += bias[part.row]
                part.add_to(outputs, change * part.scale)
        ctx.save_for_backward(x, weight)
        ctx.bank, ctx.keys, ctx.parts = bank, keys, parts
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y (the same), x, and of ΔW and Δb where the bank has one row."""
        x, weight = ctx.saved_tensors
        _, needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        tokens = x.reshape(-1, x.shape[-1])
        grads = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x = torch.zeros_like(tokens, dtype=weight.dtype) if needs_x else None
        sums = [RowGradients(ctx.bank, key) for key in ctx.keys]
        for part in ctx.parts:
            g = part.take(grads).to(weight.dtype) * part.scale  # (n, out)
            if needs_weight:
                sums[0].add(part.row, g.T @ part.take(tokens).to(weight.dtype))
            if needs_bias:
                sums[1].add(part.row, g.sum(dim=0))
            if grad_x is not None:
                part.add_to(grad_x, g @ weight[part.row])
        return (
            grad_y,
            None if grad_x is None else grad_x.to(x.dtype).view_as(x),
            sums[0].for_autograd() if needs_weight else None,
            sums[1].for_autograd() if needs_bias else None,
            *(None,) * 3,
        )
