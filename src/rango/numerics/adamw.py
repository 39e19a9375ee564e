"""AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), elementwise over the rows of tables.

m ← β1·m + (1-β1)·g          v ← β2·v + (1-β2)·g²
w ← w·(1 - lr·λ) - lr · m/(1-β1ᵗ) / (√(v/(1-β2ᵗ)) + ε)
"""

from __future__ import annotations

import torch
from torch import Tensor


def adamw_(
    parameters: Tensor,
    gradients: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    rates: Tensor,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step, in place, of tables (n, P); gradients are only read.

    steps: (n,), each row's count t, of which this is the step (so at least 1).
    rates: lr, broadcast to (n, P): one for all, (n, 1) one a row, (1, P) or (n, P) one an element.
    With ε = 0 an element that never had a gradient is only decayed.
    """
    rates = rates.to(torch.float64)
    bias1, bias2 = bias_corrections(steps, beta1, beta2)
    exp_avg.lerp_(gradients, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
    update = exp_avg_sq.sqrt().div_(bias2.sqrt().to(parameters.dtype)).add_(eps)
    if eps == 0:
        update.masked_fill_(update == 0, torch.inf)
    torch.div(exp_avg, update, out=update)
    parameters.mul_((1 - rates * weight_decay).to(parameters.dtype))
    parameters.sub_(update.mul_((rates / bias1).to(parameters.dtype)))


def bias_corrections(steps: Tensor, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    """1 - βᵗ of both averages in fp64: (n,) -> (n, 1) each."""
    counts = steps.to(torch.float64)[:, None]
    return 1 - beta1**counts, 1 - beta2**counts


def row_norms(table: Tensor) -> Tensor:
    """The Euclidean norm of each row of a table: (n, P) -> (n,)."""
    return torch.linalg.vector_norm(table, dim=1)
