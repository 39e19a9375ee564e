"""Activations of MLPs, plain and gated: the fast twin of numerics/gated.py.

Tensors are contiguous, or two-dimensional with rows further apart (a part of a fused buffer). Every
function here may write over its inputs: any of `out` may be any of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rango.kernels.dispatch import native, written
from rango.kernels.rows import address_rows, native_rows
from rango.numerics import gated as reference

# csrc/gated.h's numbers
CODES = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2, "gelu_new": 2, "relu": 3}


def activate(x: Tensor, activation: str, *, out: Tensor | None = None) -> Tensor:
    """act(x), any shape; ConfigError if the activation is unknown."""
    module = _native(x, out)
    if module is None or activation not in CODES:
        return reference.activate(x, activation, out=out)
    y = x.new_empty(x.shape) if out is None else out
    _forward(module, y, x, None, activation)
    written(out)
    return y


def activate_backward(
    grad: Tensor, x: Tensor, activation: str, *, out: Tensor | None = None
) -> Tensor:
    """dx from grad, the gradient of act(x), of the same shape as x."""
    module = _native(x, grad, out)
    if module is None or activation not in CODES:
        return reference.activate_backward(grad, x, activation, out=out)
    dx = x.new_empty(x.shape) if out is None else out
    _backward(module, (dx, None), grad, x, None, activation)
    written(out)
    return dx


def gated(gate: Tensor, up: Tensor, activation: str, *, out: Tensor | None = None) -> Tensor:
    """act(gate)·up, both of one shape."""
    module = _native(gate, up, out)
    if module is None or activation not in CODES:
        return reference.gated(gate, up, activation, out=out)
    y = gate.new_empty(gate.shape) if out is None else out
    _forward(module, y, gate, up, activation)
    written(out)
    return y


def gated_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    activation: str,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(d_gate, d_up) from grad, the gradient of act(gate)·up, all of one shape."""
    module = _native(gate, up, grad, *(out or ()))
    if module is None or activation not in CODES:
        return reference.gated_backward(grad, gate, up, activation, out=out)
    pair = (gate.new_empty(gate.shape), up.new_empty(up.shape)) if out is None else out
    _backward(module, pair, grad, gate, up, activation)
    written(*(out or ()))
    return pair


def _native(first: Tensor, *others: Tensor | None) -> Any:
    """The compiled module if it can work on these: all of one shape, each row contiguous."""
    if any(t is not None and t.shape != first.shape for t in others):
        return None
    if first.ndim == 2:
        return native_rows(first, *others)
    return native(first, *others) if first.numel() else None


def _forward(module: Any, y: Tensor, gate: Tensor, up: Tensor | None, activation: str) -> None:
    module.gated(
        *(_rows(module, t) for t in (y, gate, up)),
        *_sizes(gate),
        CODES[activation],
        torch.get_num_threads(),
    )


def _backward(
    module: Any,
    out: tuple[Tensor, Tensor | None],
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    activation: str,
) -> None:
    module.gated_backward(
        *(_rows(module, t) for t in (*out, grad, gate, up)),
        *_sizes(gate),
        CODES[activation],
        torch.get_num_threads(),
    )


def _rows(module: Any, tensor: Tensor | None) -> Any:
    return address_rows(module, None if tensor is None else _two(tensor))


def _two(tensor: Tensor) -> Tensor:
    """As (rows, n); only a tensor of two dimensions need not be contiguous."""
    return tensor if tensor.ndim == 2 else tensor.view(-1, *tensor.shape[-1:] or (1,))


def _sizes(tensor: Tensor) -> tuple[int, int]:
    rows, n = _two(tensor).shape
    return rows, n
