"""Activations of MLPs, plain and gated: act(gate)·up (Shazeer 2020, arXiv 2002.05202).

    silu                x·σ(x)
    gelu                x·Φ(x), Φ the normal distribution function (through erf)
    gelu_pytorch_tanh   x·(1 + tanh(√(2/π)·(x + .044715·x³)))/2; gelu_new is another name of it
    relu                max(x, 0)

The names are transformers'. Every function here may write over its inputs: any of `out` may be any
of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rango.errors import ConfigError, nearest

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu")


def activate(x: Tensor, activation: str, *, out: Tensor | None = None) -> Tensor:
    """act(x), any shape; ConfigError if the activation is unknown."""
    known(activation)
    if activation == "silu":
        y = functional.silu(x)
    elif activation == "relu":
        y = functional.relu(x)
    else:
        y = functional.gelu(x, approximate=_approximation(activation))
    return y if out is None else out.copy_(y)


def activate_backward(
    grad: Tensor, x: Tensor, activation: str, *, out: Tensor | None = None
) -> Tensor:
    """dx from grad, the gradient of act(x), of the same shape as x."""
    known(activation)
    if activation == "silu":
        dx = torch.ops.aten.silu_backward(grad, x)
    elif activation == "relu":
        dx = torch.ops.aten.threshold_backward(grad, x, 0)
    else:
        dx = torch.ops.aten.gelu_backward(grad, x, approximate=_approximation(activation))
    return dx if out is None else out.copy_(dx)


def gated(gate: Tensor, up: Tensor, activation: str, *, out: Tensor | None = None) -> Tensor:
    """act(gate)·up, both of one shape."""
    y = activate(gate, activation) * up
    return y if out is None else out.copy_(y)


def gated_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    activation: str,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(d_gate, d_up) from grad, the gradient of act(gate)·up, all of one shape."""
    d_up = grad * activate(gate, activation)
    d_gate = activate_backward(grad * up, gate, activation)
    return (d_gate, d_up) if out is None else (out[0].copy_(d_gate), out[1].copy_(d_up))


def known(activation: str) -> None:
    """ConfigError if there is no such activation here."""
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}; found {activation!r}"
            f"{nearest(activation, ACTIVATIONS)}"
        )


def _approximation(activation: str) -> str:
    return "none" if activation == "gelu" else "tanh"
