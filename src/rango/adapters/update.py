"""The low-rank contribution with its gradients, for tokens of several rows in one call.

Forward and backward are one autograd function a site: x is saved once, the tokens of each segment
meet only their own row (so a NaN in one adapter cannot reach another's tokens), and in a bank of
several rows the gradients go straight into the bank's table. Autograd sees the leaves as inputs,
or it would drop the function where x needs no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rango.adapters.bank import Bank
from rango.adapters.layout import Key
from rango.adapters.routing import Segment


@dataclass(frozen=True)
class Part:
    """One segment at one site.

    scale: everything that multiplies B·A: the adapter's scaling, the routing's and the run-time
        factor; one, or fp32 (n, 1).
    runs: the tokens as half-open ranges.
    keep: bool (n, in), the elements of x that dropout keeps, or None.
    """

    row: int
    tokens: Tensor | None
    scale: float | Tensor
    runs: tuple[tuple[int, int], ...]
    keep: Tensor | None = None
    drop: float = 0.0

    @staticmethod
    def of(segment: Segment, factor: float) -> Part:
        """A segment at a site whose row scales by `factor`."""
        return Part(segment.row, segment.tokens, segment.scale * factor, segment.runs)

    def take(self, values: Tensor) -> Tensor:
        """(N, …) -> (n, …): the segment's tokens."""
        return values if self.tokens is None else values[self.tokens]

    def add_to(self, total: Tensor, values: Tensor) -> None:
        """total[tokens] += values, in total's dtype with one rounding."""
        if self.tokens is None:
            total.add_(values)
        else:
            total[self.tokens] = (total[self.tokens] + values).to(total.dtype)

    def dropped(self, x: Tensor, own: slice = slice(None)) -> Tensor:
        """x ⊙ keep / (1 - drop), of the segment's tokens or those in `own`."""
        if self.keep is None:
            return x
        return x.masked_fill(~self.keep[own], 0.0) / (1.0 - self.drop)

    def pieces(self) -> Iterator[tuple[slice, slice]]:
        """Of each run: its place among all tokens, and among the segment's own."""
        done = 0
        for first, last in self.runs:
            yield slice(first, last), slice(done, done + last - first)
            done += last - first


Columns = slice | Tensor | None
"""The output features that a site adapts: a part of a fused projection, or all."""


class LinearUpdate(torch.autograd.Function):
    """y[..., columns] += scale · B · A · x, in place."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,  # (..., out), contiguous; changed in place
        x: Tensor,  # (..., in)
        lora_A: Tensor,  # (rows, r, in)
        lora_B: Tensor,  # (rows, columns, r)
        bank: Bank,
        keys: tuple[Key, Key],
        parts: Sequence[Part],
        columns: Columns,
    ) -> Tensor:
        """(..., out)."""
        tokens = x.reshape(-1, x.shape[-1])  # (N, in)
        outputs = y.view(-1, y.shape[-1])  # (N, out)
        inner = []
        with torch.autocast(y.device.type, enabled=False):  # adapters compute in their own type
            for part in parts:
                h = part.dropped(part.take(tokens).to(lora_A.dtype)) @ lora_A[part.row].T  # (n, r)
                _add_product(part, outputs, columns, h * part.scale, lora_B[part.row].T)
                inner.append(h)
        ctx.save_for_backward(x, lora_A, lora_B, *inner)
        ctx.bank, ctx.keys, ctx.parts, ctx.columns = bank, keys, parts, columns
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y (the same), x, and of A and B where the bank has one row."""
        x, lora_A, lora_B, *inner = ctx.saved_tensors
        _, needs_x, needs_A, needs_B, *_ = ctx.needs_input_grad
        tokens = x.reshape(-1, x.shape[-1])
        grads = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x: Tensor | None = None
        grad_A, grad_B = RowGradients(ctx.bank, ctx.keys[0]), RowGradients(ctx.bank, ctx.keys[1])
        for part, h in zip(ctx.parts, inner, strict=True):
            g = part.take(grads if ctx.columns is None else grads[:, ctx.columns])
            g = g.to(lora_B.dtype)  # (n, columns)
            # scaled where it is narrow: diag(s)·g·B = diag(s)·(g·B), (diag(s)·g)ᵀ·h = gᵀ·diag(s)·h
            gh = (g @ lora_B[part.row]) * part.scale  # (n, r)
            if needs_B:
                grad_B.add(part.row, g.T @ (h * part.scale))
            if needs_A:
                grad_A.add(part.row, gh.T @ part.dropped(part.take(tokens).to(lora_A.dtype)))
            if needs_x:
                change = part.dropped(gh @ lora_A[part.row])
                if grad_x is None and part.tokens is None:
                    grad_x = change  # the usual case: there is nothing yet to add to
                else:
                    if grad_x is None:
                        grad_x = torch.zeros_like(tokens, dtype=lora_A.dtype)
                    part.add_to(grad_x, change)
        return (
            grad_y,
            None if grad_x is None else grad_x.to(x.dtype).view_as(x),
            grad_A.for_autograd() if needs_A else None,
            grad_B.for_autograd() if needs_B else None,
            *(None,) * 4,
        )


class EmbeddingUpdate(torch.autograd.Function):
    """y += scale · B · A[:, ids], in place; A (rows, r, vocabulary), B (rows, dim, r)."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,  # (..., dim), contiguous; changed in place
        ids: Tensor,  # (...)
        lora_A: Tensor,
        lora_B: Tensor,
        bank: Bank,
        keys: tuple[Key, Key],
        parts: Sequence[Part],
    ) -> Tensor:
        """(..., dim)."""
        outputs = y.view(-1, y.shape[-1])
        with torch.autocast(y.device.type, enabled=False):
            for part in parts:
                h = lora_A[part.row][:, part.take(ids.flatten())].T  # (n, r)
                part.add_to(outputs, (h * part.scale) @ lora_B[part.row].T)
        ctx.save_for_backward(ids, lora_A, lora_B)
        ctx.bank, ctx.keys, ctx.parts = bank, keys, parts
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y (the same), and of A and B where the bank has one row."""
        ids, lora_A, lora_B = ctx.saved_tensors
        _, _, needs_A, needs_B, *_ = ctx.needs_input_grad
        grads = grad_y.reshape(-1, grad_y.shape[-1])
        grad_A, grad_B = RowGradients(ctx.bank, ctx.keys[0]), RowGradients(ctx.bank, ctx.keys[1])
        for part in ctx.parts:
            used = part.take(ids.flatten())
            g = part.take(grads).to(lora_B.dtype) * part.scale  # (n, dim)
            if needs_B:
                grad_B.add(part.row, g.T @ lora_A[part.row][:, used].T)
            if needs_A:
                gh = g @ lora_B[part.row]  # (n, r)
                grad_A.add(part.row, torch.zeros_like(lora_A[0]).index_add_(1, used, gh.T))
        return (
            grad_y,
            None,
            grad_A.for_autograd() if needs_A else None,
            grad_B.for_autograd() if needs_B else None,
            *(None,) * 3,
        )


class RowGradients:
    """Where a site's gradient of one tensor goes: the bank's table; in a bank of one row, the
    ordinary way through autograd, so that hooks, torch.autograd.grad and data-parallel wrappers
    of a caller's own loop work (it accumulates into the preset `.grad`, which is the table)."""

    def __init__(self, bank: Bank, key: Key) -> None:
        self.bank, self.key = bank, key
        self.single: Tensor | None = None

    def add(self, row: int, gradient: Tensor) -> None:
        """Add to the gradient of a row's tensor."""
        if self.bank.rows > 1:
            self.bank.accumulated(self.key)[row] += gradient
        else:
            self.single = gradient if self.single is None else self.single + gradient

    def for_autograd(self) -> Tensor | None:
        """(1, *shape); None where it is in the table."""
        return None if self.single is None else self.single[None]


def _add_product(
    part: Part, outputs: Tensor, columns: Columns, left: Tensor, right: Tensor
) -> None:
    """outputs[tokens, columns] += left · right, without a copy of the product where it can be."""
    if part.tokens is None and not isinstance(columns, Tensor) and outputs.dtype == left.dtype:
        (outputs if columns is None else outputs[:, columns]).addmm_(left, right)
    else:
        _add(part, outputs, columns, left @ right)


def _add(part: Part, outputs: Tensor, columns: Columns, values: Tensor) -> None:
    if columns is None:
        part.add_to(outputs, values)
    elif isinstance(columns, slice):
        part.add_to(outputs[:, columns], values)
    else:
        whole = values.new_zeros(len(values), outputs.shape[1])
        part.add_to(outputs, whole.index_copy_(1, columns.to(values.device), values))
