"""Attention over packed sequences: numerics/attention.py, in blocks that stay in cache.

Blocks that the sequences' bounds, the causal mask or the window exclude are never computed. Each
row's output, lse and dq depend on its own sequence alone, bit for bit. So do dk and dv, but where
heads share keys: the order in which their gradients are added depends on how many sequences there
are. Nothing depends on the number of threads.

Besides the tensors named below, the backward pass holds at most twice the size of q, and on each
thread three times that of one part of it: a sequence's queries for the heads worked on together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rango.kernels.dispatch import PLAIN, native, written
from rango.numerics import attention as numerics
from rango.numerics.attention import check_shapes, reach

__all__ = ["attention", "attention_backward"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    key_bounds: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As numerics.attention.attention; tensors of any strides whose heads are contiguous are read
    and written in place. `out` may be q."""
    module = native()
    if module is None or not _served(q, k, v, out):
        return numerics.attention(
            q,
            k,
            v,
            bounds,
            scale=scale,
            causal=causal,
            window=window,
            softcap=softcap,
            key_bounds=key_bounds,
            out=out,
        )
    call = _Call(module, q, k, v, bounds, key_bounds, scale, reach(causal, window), softcap)
    if out is None:
        out = torch.empty_like(q)
    elif out.shape != q.shape:
        raise ValueError(f"attention: expected out {[*q.shape]}, found {[*out.shape]}")
    lse = torch.empty((q.shape[1], call.tokens), dtype=torch.float32, device="cpu")
    module.attention(
        call.native,
        _heads(module, q),
        _heads(module, k),
        _heads(module, v),
        _heads(module, out),
        lse.data_ptr(),
        torch.get_num_threads(),
    )
    written(out)
    return out, lse


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    key_bounds: Tensor | None = None,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As numerics.attention.attention_backward."""
    module = native(lse)
    if module is None or not _served(grad, q, k, v, out, *(into or ())):
        return numerics.attention_backward(
            grad,
            q,
            k,
            v,
            out,
            lse,
            bounds,
            scale=scale,
            causal=causal,
            window=window,
            softcap=softcap,
            key_bounds=key_bounds,
            into=into,
        )
    call = _Call(module, q, k, v, bounds, key_bounds, scale, reach(causal, window), softcap)
    found = into or (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    shapes = [tuple(x.shape) for x in (grad, out, *found, lse)]
    if shapes != [q.shape, q.shape, q.shape, k.shape, v.shape, (q.shape[1], call.tokens)]:
        raise ValueError(
            "attention: expected grad, out and dq like q, dk like k, dv like v and lse (heads, T); "
            f"found {shapes} for q {[*q.shape]}, k {[*k.shape]}"
        )
    module.attention_backward(
        call.native,
        *(_heads(module, x) for x in (grad, q, k, v, out)),
        lse.data_ptr(),
        *(_heads(module, x) for x in found),
        torch.get_num_threads(),
    )
    written(*found)
    return found


class _Call:
    """The compiled kernels' description of one call, and what it points to."""

    def __init__(
        self,
        module: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bounds: Tensor,
        key_bounds: Tensor | None,
        scale: float,
        reached: tuple[int, int],
        softcap: float | None,
    ) -> None:
        check_shapes(q, k, v)
        key_bounds = bounds if key_bounds is None else key_bounds
        sequences = len(bounds) - 1
        if sequences != len(key_bounds) - 1:
            raise ValueError(
                f"attention: bounds of {sequences} sequences, key_bounds of {len(key_bounds) - 1}"
            )
        self.tokens, row = _tokens(q)
        keys, key_row = _tokens(k)
        self._alive = _starts(bounds), _starts(key_bounds)
        self.native = module.Attention(
            q.shape[1],
            k.shape[1],
            q.shape[-1],
            self.tokens,
            keys,
            row,
            key_row,
            sequences,
            self._alive[0].data_ptr(),
            self._alive[1].data_ptr(),
            scale,
            *reached,
            abs(softcap or 0.0),  # tanh is odd
        )


def _tokens(x: Tensor) -> tuple[int, int]:
    """Tokens in all, and in a row of the batch."""
    if x.ndim == 3:
        return x.shape[0], x.shape[0]
    return x.shape[0] * x.shape[2], x.shape[2]


def _starts(bounds: Tensor) -> Tensor:
    if bounds.dtype == torch.int64 and bounds.device.type == "cpu" and bounds.is_contiguous():
        return bounds
    return bounds.to(device="cpu", dtype=torch.int64).contiguous()


def _heads(module: Any, x: Tensor) -> Any:
    """How the compiled kernels find each head of each token."""
    if x.ndim == 3:
        token, head, _ = x.stride()
        return module.Heads(x.data_ptr(), token, head, 0, x.shape[0])
    batch, head, token, _ = x.stride()
    return module.Heads(x.data_ptr(), token, head, batch, x.shape[2])


def _served(*tensors: Tensor | None) -> bool:
    """Plain, fp32 on the CPU with contiguous heads, and no gradient to trace."""
    traced = torch.is_grad_enabled()
    for x in tensors:  # a loop, for this runs once a layer and token in decoding
        if x is not None and (
            type(x) not in PLAIN
            or x.dtype != torch.float32
            or not x.is_cpu
            or x.stride(-1) != 1
            or (traced and x.requires_grad)
        ):
            return False
    return True
