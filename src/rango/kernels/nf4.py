"""NF4 quantized and unpacked by C++ kernels, with the bits of rango.numerics.nf4."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from rango.kernels.dispatch import native, written
from rango.kernels.products import weight_handle
from rango.numerics import nf4 as reference
from rango.numerics.dynamic8 import CONSTANTS_BLOCK, dynamic_map, nearest_codes
from rango.numerics.nf4 import BLOCK, NF4_CODE, NF4Tensor

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""How the kernels know the floating types."""


def quantize_nf4(weight: Tensor, *, double_quant: bool = True) -> NF4Tensor:
    """Quantize a weight of any shape in fp32, bf16 or fp16.

    Raises CheckpointError if the weight is of another type, empty, or holds NaN or infinity.
    The mean of the constants is torch's, whose last bit may depend on the number of threads.
    """
    flat = weight.detach().reshape(-1)
    module = native(flat, dtype=flat.dtype) if flat.dtype in KINDS and flat.numel() else None
    if module is None:
        return reference.quantize_nf4(weight, double_quant=double_quant)
    count, threads = flat.numel(), torch.get_num_threads()
    packed = torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device="cpu")
    absmax = torch.empty(-(-count // BLOCK), dtype=torch.float32, device="cpu")
    if not module.quantize_nf4(
        flat.data_ptr(), KINDS[flat.dtype], count, packed.data_ptr(), absmax.data_ptr(), threads
    ):
        return reference.quantize_nf4(weight)  # which says what is wrong
    shape, dtype = tuple(weight.shape), weight.dtype
    if not double_quant:
        return NF4Tensor(packed, absmax, NF4_CODE.clone(), shape, dtype)
    offset = absmax.mean()
    codes = torch.empty_like(absmax, dtype=torch.uint8)
    nested_absmax = absmax.new_empty(-(-len(absmax) // CONSTANTS_BLOCK))
    module.nest_constants(
        absmax.data_ptr(),
        len(absmax),
        offset.item(),
        CONSTANTS_BLOCK,
        nearest_codes().data_ptr(),
        codes.data_ptr(),
        nested_absmax.data_ptr(),
        threads,
    )
    return NF4Tensor(
        packed=packed,
        absmax=codes,
        code=NF4_CODE.clone(),
        shape=shape,
        dtype=dtype,
        nested_absmax=nested_absmax,
        nested_code=dynamic_map(),
        nested_offset=offset,
    )


def dequantize_nf4(
    q: NF4Tensor, dtype: torch.dtype | None = None, *, into: Tensor | None = None
) -> Tensor:
    """The weight, `q.shape`, in `dtype` (default: the original). Product in fp32, then one cast.

    With `into`, a flat tensor of that dtype and at least 2·⌈N/2⌉ elements, the weight is written
    there, and what is returned is a view of it.
    """
    dtype = dtype or q.dtype
    total = math.prod(q.shape)
    module = native(into, dtype=dtype) if dtype in KINDS else None
    handle = None if module is None else weight_handle(module, replace(q, shape=(1, total)))
    if module is None or handle is None or (into is not None and into.numel() < total):
        return reference.dequantize_nf4(q, dtype, into=into)
    weight = torch.empty(total, dtype=dtype, device="cpu") if into is None else into[:total]
    module.dequantize(handle, KINDS[dtype], weight.data_ptr(), torch.get_num_threads())
    written(into)
    return weight.view(q.shape)
