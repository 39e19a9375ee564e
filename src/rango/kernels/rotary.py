"""Rotary position embedding: the fast twin of numerics/rotary.py, equal in every bit."""

from __future__ import annotations

import torch
from torch import Tensor

from rango.kernels.dispatch import native, written
from rango.kernels.rows import address_rows, native_rows
from rango.numerics import rotary as reference


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False, out: Tensor | None = None
) -> Tensor:
    """Rotate each head's pairs by its token's angles.

    x: (tokens, heads, dim), the last two dimensions contiguous; rows may lie further apart (a part
        of a fused buffer).
    cos, sin: (tokens, rotated), rotated ≤ dim and even; columns past it stay as they are.
    inverse: the transpose, which takes a gradient back; with cos² + sin² = 1 it turns back.
    out: laid out as x, and may be x itself.
    """
    module = native_rows(x, out)
    if module is None or native(cos, sin) is None or not _fit(x, cos, sin, out):
        return reference.rotate(x, cos, sin, inverse=inverse, out=out)
    y = x.new_empty(x.shape) if out is None else out
    module.rotate(
        address_rows(module, y),
        address_rows(module, x),
        cos.data_ptr(),
        sin.data_ptr(),
        *x.shape,
        cos.shape[-1],
        inverse,
        torch.get_num_threads(),
    )
    written(out)
    return y


def _fit(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None) -> bool:
    return (
        x.ndim == 3
        and cos.ndim == 2
        and cos.shape == sin.shape
        and cos.shape[0] == x.shape[0]
        and cos.shape[1] % 2 == 0
        and cos.shape[1] <= x.shape[2]
        and (out is None or out.shape == x.shape)
    )
