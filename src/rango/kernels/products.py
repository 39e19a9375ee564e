"""Sums of matrix products over frozen weights: numerics/products.py, without unpacking a weight.

A weight is decoded panel by panel into cache, multiplied at once, and never whole in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from rango.kernels.dispatch import PLAIN, native, written
from rango.numerics import products
from rango.numerics.int8 import Int8Tensor
from rango.numerics.nf4 import NF4Tensor
from rango.numerics.products import FrozenWeight, Term

__all__ = ["FrozenWeight", "Term", "sum_products", "weight_handle"]

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # Kind in csrc/weight.h
_readable: WeakSet[NF4Tensor | Int8Tensor] = WeakSet()  # found to be what the kernels can read


def sum_products(terms: Sequence[Term], *, out: Tensor, start: Tensor | None = None) -> Tensor:
    """As numerics.products.sum_products; the terms' `a` must not overlap `out`.

    Each element is summed in an order that depends on its term's depth alone within each of two
    kernels: csrc/narrow.cpp for at most 16 rows where every term is transposed, csrc/products.cpp
    for the rest. The result is the same on any number of threads.
    """
    module = native()
    if module is None or not _addressable(out, start):
        return products.sum_products(terms, out=out, start=start)
    rows, columns = out.shape
    native_terms = []
    for term in terms:
        a, b = term.a, term.b
        first, last = term.rows or (0, rows)
        depth = a.shape[-1]
        if (
            not _is_plain_fp32(a)
            or not 0 <= first <= last <= rows
            or a.shape != (last - first, depth)
            or tuple(b.shape) != ((columns, depth) if term.transposed else (depth, columns))
            or (handle := weight_handle(module, b)) is None
        ):
            return products.sum_products(terms, out=out, start=start)
        native_terms.append(
            module.Term(a.data_ptr(), *a.stride(), depth, handle, term.transposed, first, last)
        )
    module.sum_products(
        out.data_ptr(),
        out.stride(0),
        rows,
        columns,
        native_terms,
        0 if start is None else start.data_ptr(),
        0 if start is None or start.ndim == 1 else start.stride(0),
        torch.get_num_threads(),
    )
    written(out)
    return out


def weight_handle(module: Any, weight: FrozenWeight) -> Any:
    """What the compiled kernels read a weight through, valid while the weight lives; None if they
    cannot: its tensors must be plain ones on the CPU, of the types and sizes that its shape asks
    for."""
    if isinstance(weight, NF4Tensor):
        if weight not in _readable:
            if not _is_readable_nf4(weight):
                return None
            _readable.add(weight)
        constants: tuple[int, int, int, float] = (0, 0, weight.nested_blocksize, 0.0)
        if weight.nested_absmax is not None:
            nested = (weight.nested_absmax, weight.nested_code, weight.nested_offset)
            absmax, code, offset = (part for part in nested if part is not None)
            constants = (absmax.data_ptr(), code.data_ptr(), weight.nested_blocksize, float(offset))
        return module.Weight.nf4(
            weight.packed.data_ptr(),
            *weight.shape,
            weight.code.data_ptr(),
            weight.blocksize,
            weight.absmax.data_ptr(),
            *constants,
        )
    if isinstance(weight, Int8Tensor):
        if weight not in _readable:
            codes, scales = weight.codes, weight.scales
            if codes.ndim != 2 or not (
                _is_array(codes, torch.int8, codes.numel())
                and _is_array(scales, torch.float32, len(codes))
            ):
                return None
            _readable.add(weight)
        return module.Weight.int8(weight.codes.data_ptr(), *weight.shape, weight.scales.data_ptr())
    kind = _KINDS.get(weight.dtype)
    if (
        kind is None
        or type(weight) not in PLAIN
        or not weight.is_cpu
        or weight.ndim != 2
        or weight.stride(1) != 1
    ):
        return None
    return module.Weight.floating(kind, weight.data_ptr(), *weight.shape, weight.stride(0))


def _is_readable_nf4(q: NF4Tensor) -> bool:
    """Whether every weight has its nibble and its constant where the kernels look for them."""
    total = math.prod(q.shape)
    if len(q.shape) != 2 or q.blocksize < 2 or q.blocksize % 2:
        return False
    blocks = -(-total // q.blocksize)
    if not (
        _is_array(q.packed, torch.uint8, (total + 1) // 2)
        and _is_array(q.absmax, torch.uint8 if q.nested else torch.float32, blocks)
        and _is_array(q.code, torch.float32, 16)
    ):
        return False
    return not q.nested or (
        q.nested_blocksize > 0
        and _is_array(q.nested_absmax, torch.float32, -(-blocks // q.nested_blocksize))
        and _is_array(q.nested_code, torch.float32, 256)
        and _is_array(q.nested_offset, torch.float32, 1)
    )


def _is_array(tensor: Tensor | None, dtype: torch.dtype, count: int) -> bool:
    """Whether at least so many elements of this type lie one after the other at its address."""
    return (
        type(tensor) in PLAIN
        and tensor is not None
        and tensor.dtype == dtype
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and tensor.numel() >= count
    )


def _addressable(out: Tensor, start: Tensor | None) -> bool:
    """Whether `out` is a matrix, and `start` one like it or a row of it, with elements in a row
    contiguous: other starts may still be broadcast by the reference."""
    if not _is_plain_fp32(out) or out.ndim != 2 or out.stride(1) != 1:
        return False
    return start is None or (
        _is_plain_fp32(start)
        and (start.shape == out.shape or start.shape == out.shape[1:])
        and start.stride(-1) == 1
    )


def _is_plain_fp32(tensor: Tensor) -> bool:
    """Whether its elements are fp32 at its address, with no gradient to trace."""
    return (
        tensor.dtype == torch.float32
        and tensor.is_cpu
        and type(tensor) in PLAIN
        and not (torch.is_grad_enabled() and tensor.requires_grad)
    )
