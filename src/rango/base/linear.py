"""Frozen linear layers held quantized: unpacked for each product, never kept unpacked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from rango.base.product import FrozenProduct, Quantized, dequantize
from rango.errors import CheckpointError
from rango.kernels.int8 import quantize_int8
from rango.kernels.nf4 import quantize_nf4
from rango.numerics.int8 import Int8Tensor
from rango.numerics.nf4 import NF4Tensor


class QuantizedLinear(nn.Module, ABC):
    """y = x · Wᵀ + b with W (out, in) quantized: x (..., in) -> (..., out), computed in x's dtype.

    W is frozen and no part of the autograd graph: the backward pass unpacks it again.
    Made from a quantized tensor of two dimensions (GPT-2's Conv1D too is held as (out, in)) and a
    bias (out,) or None. Raises CheckpointError on other shapes.
    """

    def __init__(self, quantized: Quantized, bias: Tensor | None = None) -> None:
        super().__init__()
        if len(quantized.shape) != 2:
            raise CheckpointError(
                f"{type(self).__name__}: expected a weight (out, in), found shape "
                f"{[*quantized.shape]}"
            )
        self.out_features, self.in_features = quantized.shape
        if bias is not None and bias.shape != (self.out_features,):
            raise CheckpointError(
                f"{type(self).__name__}: expected a bias of shape [{self.out_features}] for a "
                f"weight {[*quantized.shape]}, found {[*bias.shape]}"
            )
        self.weight_dtype = quantized.dtype
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    @abstractmethod
    def quantized(self) -> Quantized:
        """The weight as it is held; its tensors are this module's buffers, not copies."""

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W (out, in), newly unpacked, in `dtype` (default: that of the weight before)."""
        return dequantize(self.quantized, dtype)

    @property
    def weight(self) -> Tensor:
        """W (out, in), newly unpacked at every reading, for code that expects an nn.Linear.

        Models read `.weight.dtype` to cast their input, which the packed bytes would turn into
        integers. Where only size or type is wanted, in_features, out_features and weight_dtype are
        free.
        """
        return self.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return FrozenProduct.apply(x, bias, self.quantized, False)

    def extra_repr(self) -> str:
        """Sizes, and the bits a weight takes with its constants."""
        bits = 8 * self.quantized.nbytes / (self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={bits:.3f}, weight_dtype={self.weight_dtype}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .half(), .bfloat16() and .to(dtype) may cast the bias, but rounding the constants would
        # change every weight: the buffers follow to the device only.
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self


class NF4Linear(QuantizedLinear):
    """A frozen linear layer in NF4 (rango.numerics.nf4)."""

    packed: Tensor
    absmax: Tensor
    code: Tensor
    nested_absmax: Tensor | None
    nested_code: Tensor | None
    nested_offset: Tensor | None

    def __init__(self, quantized: NF4Tensor, bias: Tensor | None = None) -> None:
        super().__init__(quantized, bias)
        self.blocksize = quantized.blocksize
        self.nested_blocksize = quantized.nested_blocksize
        self.register_buffer("packed", quantized.packed)
        self.register_buffer("absmax", quantized.absmax)
        self.register_buffer("code", quantized.code)
        self.register_buffer("nested_absmax", quantized.nested_absmax)
        self.register_buffer("nested_code", quantized.nested_code)
        self.register_buffer("nested_offset", quantized.nested_offset)

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None = None, double_quant: bool = True
    ) -> Self:
        """Quantize `weight` (out, in)."""
        return cls(quantize_nf4(weight, double_quant=double_quant), bias)

    @property
    def quantized(self) -> NF4Tensor:
        """The weight as it is held; its tensors are this module's buffers, not copies."""
        return NF4Tensor(
            packed=self.packed,
            absmax=self.absmax,
            code=self.code,
            shape=(self.out_features, self.in_features),
            dtype=self.weight_dtype,
            blocksize=self.blocksize,
            nested_absmax=self.nested_absmax,
            nested_code=self.nested_code,
            nested_offset=self.nested_offset,
            nested_blocksize=self.nested_blocksize,
        )

    def extra_repr(self) -> str:
        """Sizes and bits, and whether the constants are quantized too."""
        return f"{super().extra_repr()}, double_quant={self.nested_absmax is not None}"


class Int8Linear(QuantizedLinear):
    """A frozen linear layer in int8 rows (rango.numerics.int8)."""

    codes: Tensor
    scales: Tensor

    def __init__(self, quantized: Int8Tensor, bias: Tensor | None = None) -> None:
        super().__init__(quantized, bias)
        self.register_buffer("codes", quantized.codes)
        self.register_buffer("scales", quantized.scales)

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Quantize `weight` (out, in)."""
        return cls(quantize_int8(weight), bias)

    @property
    def quantized(self) -> Int8Tensor:
        """The weight as it is held; its tensors are this module's buffers, not copies."""
        return Int8Tensor(self.codes, self.scales, self.weight_dtype)


def quantized_linear(quantized: Quantized, bias: Tensor | None = None) -> QuantizedLinear:
    """The layer that holds this kind of weight."""
    if isinstance(quantized, NF4Tensor):
        return NF4Linear(quantized, bias)
    return Int8Linear(quantized, bias)
