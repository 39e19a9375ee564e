"""y = x · Wᵀ + b over a frozen weight, however it is held; W is never kept unpacked.

Forward and backward are one autograd function that keeps a reference to the weight as held, so no
copy of W lives between them. A quantized weight is unpacked whole into the workspace; one in 16
bits is widened a piece of its rows at a time, because an output head has a hundred thousand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from rango.base.workspace import workspace
from rango.kernels.dispatch import native
from rango.kernels.int8 import dequantize_int8
from rango.kernels.nf4 import dequantize_nf4
from rango.kernels.products import Term, sum_products
from rango.numerics.int8 import Int8Tensor
from rango.numerics.nf4 import NF4Tensor

Quantized = NF4Tensor | Int8Tensor
Held = Quantized | Tensor
"""A weight as it is held: quantized, (out, in); or in a type of its own."""

_PIECE = 1 << 20  # weights widened at a time


def dequantize(
    quantized: Quantized, dtype: torch.dtype | None = None, *, into: Tensor | None = None
) -> Tensor:
    """W (out, in) in `dtype` (default: that of the weight before), newly unpacked, or `into` flat
    memory that has room for it and an odd one."""
    if isinstance(quantized, NF4Tensor):
        return dequantize_nf4(quantized, dtype, into=into)
    return dequantize_int8(quantized, dtype, into=into)


class FrozenProduct(torch.autograd.Function):
    """x (..., in), bias (out,) or None, W frozen -> (..., out), computed in x's dtype.

    W is (out, in), or with `transposed`, as GPT-2's Conv1D holds it, (in, out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Held, transposed: bool) -> Tensor:
        """(..., out)."""
        ctx.weight, ctx.transposed = weight, transposed
        return times(x, weight, bias) if transposed else times_transposed(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of x and bias."""
        for_x, for_bias = None, None
        if ctx.needs_input_grad[0]:
            for_x = (times_transposed if ctx.transposed else times)(gradient, ctx.weight)
        if ctx.needs_input_grad[1]:
            for_bias = gradient.reshape(-1, gradient.shape[-1]).sum(dim=0)
        return for_x, for_bias, None, None


def times_transposed(x: Tensor, weight: Held, bias: Tensor | None = None) -> Tensor:
    """x (..., k) · Wᵀ + b for W (n, k): (..., n) in x's dtype."""
    if _by_kernels(x):
        return _summed(x, weight, bias, weight.shape[0], transposed=True)
    if not _in_pieces(weight):
        return nn.functional.linear(x, _unpacked(weight, x.dtype), bias)
    # y is no view, which a model could not change in place
    y = x.new_empty(*x.shape[:-1], len(weight))
    inputs, outputs = x.reshape(-1, x.shape[-1]), y.view(-1, len(weight))
    for rows, widened in _widened(weight, x.dtype):
        torch.mm(inputs, widened.T, out=outputs[:, rows])
    return y if bias is None else y.add_(bias)


def times(x: Tensor, weight: Held, bias: Tensor | None = None) -> Tensor:
    """x (..., n) · W + b for W (n, k): (..., k) in x's dtype."""
    if _by_kernels(x):
        return _summed(x, weight, bias, weight.shape[1], transposed=False)
    if not _in_pieces(weight):
        y = x @ _unpacked(weight, x.dtype)
        return y if bias is None else y + bias
    y = x.new_zeros(*x.shape[:-1], weight.shape[1])
    inputs, outputs = x.reshape(-1, x.shape[-1]), y.view(-1, weight.shape[1])
    for rows, widened in _widened(weight, x.dtype):
        outputs.addmm_(inputs[:, rows], widened)
    return y if bias is None else y.add_(bias)


def _by_kernels(x: Tensor) -> bool:
    """Whether W can be decoded within the product."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and not torch.is_grad_enabled() and native() is not None


def _summed(
    x: Tensor, weight: Held, bias: Tensor | None, columns: int, *, transposed: bool
) -> Tensor:
    # y is no view, which a model could not change in place
    y = x.new_empty(*x.shape[:-1], columns)
    term = Term(x.reshape(-1, x.shape[-1]), weight, transposed=transposed)
    sum_products([term], out=y.view(-1, columns), start=bias)
    return y


def _in_pieces(weight: Held) -> TypeGuard[Tensor]:
    """Whether a weight is worked through in pieces: not in a graph of gradients, which would keep
    them all."""
    return isinstance(weight, Tensor) and not torch.is_grad_enabled()


def _unpacked(weight: Held, dtype: torch.dtype) -> Tensor:
    """W for one product: the next call in this thread may overwrite it."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    packed = weight.packed if isinstance(weight, NF4Tensor) else weight.codes
    if packed.device.type != "cpu" or torch.is_grad_enabled():
        # other devices keep freed memory at hand; a graph of gradients would keep W
        return dequantize(weight, dtype)
    count = weight.shape[0] * weight.shape[1]
    return dequantize(weight, dtype, into=workspace.room(count + count % 2, dtype))


def _widened(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Pieces of rows of W in `dtype`, each in the memory of the one before."""
    count, width = weight.shape
    step = max(1, _PIECE // width)
    for start in range(0, count, step):
        piece = weight[start : start + step]
        if weight.device.type == "cpu":
            room = workspace.room(piece.numel(), dtype)[: piece.numel()].view(piece.shape)
            widened = room.copy_(piece)
        else:
            widened = piece.to(dtype)
        yield slice(start, start + len(piece)), widened
