"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) and LayerNorm (Ba et al. 2016, arXiv
1607.06450) over the last dimension, with frozen weights.

    RMSNorm     y = x/√(mean(x²) + ε) · (offset + w)            offset 1 is Gemma's
    LayerNorm   y = (x - mean(x))/√(var(x) + ε) · w + b

The backward functions need only x: the scale of a row costs nearly nothing to compute again.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """RMSNorm of x (..., n) with weight (n,), written into `out` if given (which may be x)."""
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (offset + weight)
    return y if out is None else out.copy_(y)


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: Tensor | None = None,
    add_to: Tensor | None = None,
) -> Tensor:
    """dx (..., n) from grad, the gradient of y, and x, both (..., n).

    With `add_to` (..., n), the gradient of the residual stream, dx is added to it in place and it
    is returned; else dx is written into `out` if given, which may be grad.
    """
    rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    scaled, unit = grad * (offset + weight), x * rstd
    dx = rstd * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    return _deliver(dx, out, add_to)


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """LayerNorm of x (..., n) with weight and bias (n,) or None for 1 and 0, written into `out`
    if given (which may be x)."""
    y = _unit(x, eps)[0]
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y if out is None else out.copy_(y)


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    out: Tensor | None = None,
    add_to: Tensor | None = None,
) -> Tensor:
    """dx (..., n) from grad, the gradient of y, and x, both (..., n); the bias has no part in it.

    `out` and `add_to` as in `rms_norm_backward`.
    """
    unit, rstd = _unit(x, eps)
    scaled = grad if weight is None else grad * weight
    along = unit * (scaled * unit).mean(-1, keepdim=True)
    dx = rstd * (scaled - scaled.mean(-1, keepdim=True) - along)
    return _deliver(dx, out, add_to)


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x with mean 0 and variance 1 along its rows (..., n), and what it was scaled by (..., 1)."""
    centred = x - x.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return centred * rstd, rstd


def _deliver(dx: Tensor, out: Tensor | None, add_to: Tensor | None) -> Tensor:
    if add_to is not None:
        return add_to.add_(dx)
    return dx if out is None else out.copy_(dx)
