"""Tensors whose rows may lie apart in memory: slices of a fused buffer, or of a table."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rango.kernels.dispatch import native


def native_rows(*tensors: Tensor | None) -> Any:
    """As `dispatch.native`, but a tensor may be contiguous only within each index of its first
    dimension, as long as these do not overlap."""
    rows = []
    for tensor in tensors:
        if tensor is None or tensor.is_contiguous():
            rows.append(tensor)
        elif len(tensor) > 1 and tensor.stride(0) * len(tensor) < tensor.numel():
            return None
        else:
            rows.append(tensor[:1])
    return native(*rows)


def address_rows(module: Any, tensor: Tensor | None) -> Any:
    """A tensor (rows, ...) that `native_rows` let through, as the kernels take it; None is a null
    address."""
    if tensor is None:
        return module.Rows(0, 0)
    return module.Rows(tensor.data_ptr(), tensor.stride(0))
