"""Singular values: the best low-rank stand-in for a matrix, how good it is, and what rank one has.

All in exact (LAPACK) decompositions; the error of the best stand-in is known without forming it
(Eckart and Young 1936).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), S (k,) descending and Vh (k, n), k = min(rank, m, n), of a `matrix` (m, n).

    U·diag(S)·Vh is the best approximation of that rank. In fp32, or fp64 for an fp64 matrix.
    Raises ValueError if `matrix` is not of two dimensions or `rank` is not positive.
    """
    if matrix.dim() != 2 or rank < 1:
        raise ValueError(
            f"truncated_svd: expected a matrix (m, n) and a rank of at least 1, found shape "
            f"{[*matrix.shape]} and rank {rank}"
        )
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    U, S, Vh = torch.linalg.svd(wide, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def truncation_error(singular_values: Tensor, rank: int) -> float:
    """‖W − W_r‖/‖W‖ (Frobenius) of the best W_r of rank r: √(Σ_{i>r} σ² / Σ σ²).

    `singular_values` are all of W's, descending. Zero for W = 0.
    """
    energy = singular_values.double().square()
    total = float(energy.sum())
    return math.sqrt(float(energy[rank:].sum()) / total) if total > 0 else 0.0


def effective_rank(singular_values: Tensor, tolerance: float = 1e-4) -> int:
    """How many singular values exceed `tolerance` times the largest.

    The default lies above the rounding of fp32 factors and below what changes an output.
    """
    if singular_values.numel() == 0:
        return 0
    return int((singular_values > tolerance * singular_values.max()).sum())


def entropy_rank(singular_values: Tensor) -> float:
    """exp of the entropy of σ/Σσ: k for k equal values, less for uneven ones; 0 for W = 0.

    Roy and Vetterli 2007, "The effective rank".
    """
    values = singular_values.double()
    total = float(values.sum())
    if total <= 0:
        return 0.0
    return math.exp(float(torch.special.entr(values / total).sum()))


def spectrum_of_product(B: Tensor, A: Tensor) -> Tensor:
    """Singular values of B·A, descending, (min(m, r, n),) fp64: B (m, r), A (r, n).

    B·A is never formed: with B = Q₁R₁ and Aᵀ = Q₂R₂ they are those of the small core R₁R₂ᵀ.
    """
    core_B = torch.linalg.qr(B.detach().double(), mode="r").R
    core_A = torch.linalg.qr(A.detach().double().T, mode="r").R
    return torch.linalg.svdvals(core_B @ core_A.T)
