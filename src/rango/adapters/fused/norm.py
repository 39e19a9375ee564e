"""RMS norm over a frozen weight, as a part of a fused half and as a module of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rango.adapters.mixin import mix_in, take_out
from rango.kernels.norm import rms_norm, rms_norm_backward


@dataclass(frozen=True)
class Norm:
    """y = x / rms(x) · (offset + weight); Gemma's offset is 1, Llama's 0."""

    weight: Tensor
    eps: float
    offset: float = 0.0

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(..., hidden) -> the same."""
        return rms_norm(x, self.weight, self.eps, offset=self.offset, out=out)

    def backward(self, grad: Tensor, x: Tensor, add_to: Tensor | None = None) -> Tensor:
        """x's gradient, or `add_to` with it added in place."""
        return rms_norm_backward(grad, x, self.weight, self.eps, offset=self.offset, add_to=add_to)


class FusedNorm(nn.Module):
    """Mixed into the class of a norm that stands alone: keeps x and nothing else."""

    fused_norm: Callable[[nn.Module], Norm]
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., hidden) -> the same."""
        x = hidden_states
        trained = torch.is_grad_enabled() and self.weight.requires_grad
        if trained or x.dtype != torch.float32 or x.device.type != "cpu":
            return super().forward(x)
        y: Tensor = _Norm.apply(x.contiguous(), self.fused_norm(self))
        return y


def fuse_norm(module: nn.Module, norm: Callable[[nn.Module], Norm]) -> None:
    """Let a norm run fused; `norm` reads what it computes off the module."""
    mix_in(module, FusedNorm)
    module.fused_norm = norm  # type: ignore[assignment]


def unfuse_norm(module: FusedNorm) -> None:
    """Make a fused norm what it was."""
    del module.fused_norm
    take_out(module, FusedNorm)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        return norm.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.norm.backward(grad.contiguous(), x), None
