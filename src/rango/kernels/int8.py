"""int8 rows quantized and unpacked by C++ kernels, with the bits of rango.numerics.int8."""

from __future__ import annotations

import torch
from torch import Tensor

from rango.kernels.dispatch import native, written
from rango.kernels.nf4 import KINDS
from rango.kernels.products import weight_handle
from rango.numerics import int8 as reference
from rango.numerics.int8 import Int8Tensor


def quantize_int8(weight: Tensor) -> Int8Tensor:
    """Quantize a weight (out, in) in fp32, bf16 or fp16. A row of zeros gives codes of zero.

    Raises CheckpointError if the weight is of another type or shape, empty, or holds NaN or
    infinity: one such value would spoil its whole row.
    """
    matrix = weight.detach()
    if matrix.ndim != 2 or matrix.numel() == 0 or matrix.dtype not in KINDS:
        return reference.quantize_int8(weight)  # which says what is wrong
    matrix = matrix.contiguous()
    module = native(matrix, dtype=matrix.dtype)
    if module is None:
        return reference.quantize_int8(weight)
    codes = torch.empty_like(matrix, dtype=torch.int8)
    scales = matrix.new_empty(len(matrix), dtype=torch.float32)
    if not module.quantize_int8(
        matrix.data_ptr(),
        KINDS[matrix.dtype],
        *matrix.shape,
        codes.data_ptr(),
        scales.data_ptr(),
        torch.get_num_threads(),
    ):
        return reference.quantize_int8(weight)
    return Int8Tensor(codes, scales, weight.dtype)


def dequantize_int8(
    q: Int8Tensor, dtype: torch.dtype | None = None, *, into: Tensor | None = None
) -> Tensor:
    """The weight (out, in) in `dtype` (default: the original). Products in fp32, then one cast.

    With `into`, a flat tensor of that dtype and at least out·in elements, the weight is written
    there, and what is returned is a view of it.
    """
    dtype = dtype or q.dtype
    total = q.codes.numel()
    module = native(into, dtype=dtype) if dtype in KINDS else None
    handle = None if module is None else weight_handle(module, q)
    if module is None or handle is None or (into is not None and into.numel() < total):
        return reference.dequantize_int8(q, dtype, into=into)
    weight = torch.empty(total, dtype=dtype, device="cpu") if into is None else into[:total]
    module.dequantize(handle, KINDS[dtype], weight.data_ptr(), torch.get_num_threads())
    written(into)
    return weight.view(q.shape)
