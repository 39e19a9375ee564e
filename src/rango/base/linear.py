"""A frozen linear layer held in NF4: unpacked for each product, never kept unpacked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from rango.errors import CheckpointError
from rango.numerics.nf4 import NF4Tensor, dequantize_nf4, quantize_nf4


class NF4Linear(nn.Module):
    """y = x · Wᵀ + b with W (out, in) in NF4: x (..., in) -> (..., out), computed in x's dtype.

    W is frozen and no part of the autograd graph: the backward pass unpacks it again.
    Made from an NF4Tensor of two dimensions (GPT-2's Conv1D too is held as (out, in)) and a bias
    (out,) or None. Raises CheckpointError on other shapes.
    """

    packed: Tensor
    absmax: Tensor
    code: Tensor
    nested_absmax: Tensor | None
    nested_code: Tensor | None
    nested_offset: Tensor | None

    def __init__(self, quantized: NF4Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if len(quantized.shape) != 2:
            raise CheckpointError(
                f"NF4Linear: expected a weight (out, in), found shape {[*quantized.shape]}"
            )
        self.out_features, self.in_features = quantized.shape
        if bias is not None and bias.shape != (self.out_features,):
            raise CheckpointError(
                f"NF4Linear: expected a bias of shape [{self.out_features}] for a weight "
                f"{[*quantized.shape]}, found {[*bias.shape]}"
            )
        self.weight_dtype = quantized.dtype
        self.blocksize = quantized.blocksize
        self.nested_blocksize = quantized.nested_blocksize
        self.register_buffer("packed", quantized.packed)
        self.register_buffer("absmax", quantized.absmax)
        self.register_buffer("code", quantized.code)
        self.register_buffer("nested_absmax", quantized.nested_absmax)
        self.register_buffer("nested_code", quantized.nested_code)
        self.register_buffer("nested_offset", quantized.nested_offset)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

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

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W (out, in), newly unpacked, in `dtype` (default: that of the weight before NF4)."""
        return dequantize_nf4(self.quantized, dtype)

    @property
    def weight(self) -> Tensor:
        """W (out, in), newly unpacked at every reading, for code that expects an nn.Linear.

        Models read `.weight.dtype` to cast their input, which the packed bytes would turn into
        uint8. Where only size or type is wanted, in_features, out_features and weight_dtype are
        free.
        """
        return self.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _FrozenLinear.apply(x, bias, self.quantized)

    def extra_repr(self) -> str:
        """Sizes, and the bits a weight takes with its constants."""
        bits = 8 * self.quantized.nbytes / (self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, double_quant={self.nested_absmax is not None}, "
            f"bits={bits:.3f}, weight_dtype={self.weight_dtype}"
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


class _FrozenLinear(torch.autograd.Function):
    """F.linear that keeps a reference to the packed weight for the backward pass, not W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, quantized: NF4Tensor) -> Tensor:
        ctx.quantized = quantized
        return nn.functional.linear(x, _unpacked(quantized, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        for_x, for_bias = None, None
        if ctx.needs_input_grad[0]:
            for_x = gradient @ _unpacked(ctx.quantized, gradient.dtype)
        if ctx.needs_input_grad[1]:
            for_bias = gradient.reshape(-1, gradient.shape[-1]).sum(dim=0)
        return for_x, for_bias, None


class _Workspace(threading.local):
    """Memory that one thread unpacks its weights into, one after the other.

    Touching fresh memory costs a CPU several times the unpacking, as much as the product itself.
    """

    def __init__(self) -> None:
        self._memory: dict[torch.dtype, Tensor] = {}

    def room(self, count: int, dtype: torch.dtype) -> Tensor:
        """At least `count` elements, flat; the largest request so far is kept."""
        memory = self._memory.get(dtype)
        if memory is None or len(memory) < count:
            self._memory.pop(dtype, None)
            memory = None  # freed before its successor is taken
            with torch.inference_mode(False):  # else it could not be written outside that mode
                memory = self._memory[dtype] = torch.empty(count, dtype=dtype)
        return memory


_workspace = _Workspace()


def _unpacked(quantized: NF4Tensor, dtype: torch.dtype) -> Tensor:
    """W (out, in) for one product: the next call in this thread may overwrite it."""
    if quantized.packed.device.type != "cpu" or torch.is_grad_enabled():
        # other devices keep freed memory at hand; a graph of gradients would keep W
        return dequantize_nf4(quantized, dtype)
    room = _workspace.room(2 * quantized.packed.numel(), dtype)
    return dequantize_nf4(quantized, dtype, into=room)
