"""Sums of matrix products over frozen weights: the one shape of every linear layer's work.

A linear layer's output is x·Wᵀ + h·Bᵀ over a bias, its input's gradient Σ gᵢ·Wᵢ + ghᵢ·Aᵢ over the
layers that read it, an adapter's gradient gᵀ·h over what is there already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rango.numerics.int8 import Int8Tensor, dequantize_int8
from rango.numerics.nf4 import NF4Tensor, dequantize_nf4

FrozenWeight = Tensor | NF4Tensor | Int8Tensor
"""A matrix as it is held: fp32, bf16, fp16, int8 or NF4."""


@dataclass(frozen=True, slots=True)
class Term:
    """a · b, or a · bᵀ, added to some rows of a sum with `columns` columns.

    a: fp32 (n, depth), of any strides.
    b: (depth, columns), or with `transposed` (columns, depth).
    rows: the half-open range of the sum's rows that it is added to, n long; None for all.
    """

    a: Tensor
    b: FrozenWeight
    transposed: bool = False
    rows: tuple[int, int] | None = None


def sum_products(terms: Sequence[Term], *, out: Tensor, start: Tensor | None = None) -> Tensor:
    """out = start + Σ terms; returns `out`.

    out: fp32 (rows, columns), its elements in a row contiguous.
    start: (columns,), (rows, columns), or `out` itself to add to it; None for zero.
    """
    if start is None:
        out.zero_()
    elif start is not out:
        out.copy_(start)
    for term in terms:
        b = widen(term.b)
        rows = slice(None) if term.rows is None else slice(*term.rows)
        out[rows] += term.a @ (b.T if term.transposed else b)
    return out


def widen(weight: FrozenWeight) -> Tensor:
    """The weight in fp32."""
    if isinstance(weight, NF4Tensor):
        return dequantize_nf4(weight, torch.float32)
    if isinstance(weight, Int8Tensor):
        return dequantize_int8(weight, torch.float32)
    return weight.float()
