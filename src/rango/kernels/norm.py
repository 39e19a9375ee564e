"""RMSNorm and LayerNorm: the fast twin of numerics/norm.py.

Results do not depend on the number of threads, nor a row's on the rows beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rango.kernels.dispatch import native, written
from rango.numerics import norm as reference


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """RMSNorm of x (..., n) with weight (n,), written into `out` if given (which may be x)."""
    module = native(x, weight, out)
    if module is None or not _fit(x, (weight,), (out,)):
        return reference.rms_norm(x, weight, eps, offset=offset, out=out)
    y = torch.empty_like(x) if out is None else out
    module.rms_norm(
        *(t.data_ptr() for t in (y, x, weight)), *_sizes(x), eps, offset, torch.get_num_threads()
    )
    written(out)
    return y


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
    module = native(grad, x, weight, out, add_to)
    if module is None or not _fit(x, (weight,), (grad, out, add_to)):
        return reference.rms_norm_backward(
            grad, x, weight, eps, offset=offset, out=out, add_to=add_to
        )
    dx = _target(x, out, add_to)
    module.rms_norm_backward(
        *(t.data_ptr() for t in (dx, grad, x, weight)),
        *_sizes(x),
        eps,
        offset,
        add_to is not None,
        torch.get_num_threads(),
    )
    written(out if add_to is None else add_to)
    return dx


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
    module = native(x, weight, bias, out)
    if module is None or not _fit(x, (weight, bias), (out,)):
        return reference.layer_norm(x, weight, bias, eps, out=out)
    y = torch.empty_like(x) if out is None else out
    module.layer_norm(
        y.data_ptr(),
        x.data_ptr(),
        _address(weight),
        _address(bias),
        *_sizes(x),
        eps,
        torch.get_num_threads(),
    )
    written(out)
    return y


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
    module = native(grad, x, weight, out, add_to)
    if module is None or not _fit(x, (weight,), (grad, out, add_to)):
        return reference.layer_norm_backward(grad, x, weight, eps, out=out, add_to=add_to)
    dx = _target(x, out, add_to)
    module.layer_norm_backward(
        dx.data_ptr(),
        grad.data_ptr(),
        x.data_ptr(),
        _address(weight),
        *_sizes(x),
        eps,
        add_to is not None,
        torch.get_num_threads(),
    )
    written(out if add_to is None else add_to)
    return dx


def _fit(x: Tensor, vectors: tuple[Tensor | None, ...], others: tuple[Tensor | None, ...]) -> bool:
    """Whether each vector is as long as a row of x, and the others are shaped as x."""
    return (
        x.ndim > 0
        and all(v is None or v.shape == x.shape[-1:] for v in vectors)
        and all(t is None or t.shape == x.shape for t in others)
    )


def _sizes(x: Tensor) -> tuple[int, int]:
    n = x.shape[-1]
    return (x.numel() // n if n else 0), n


def _target(x: Tensor, out: Tensor | None, add_to: Tensor | None) -> Tensor:
    if add_to is not None:
        return add_to
    return torch.empty_like(x) if out is None else out


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
