"""int8 rows: 8 bits a weight, one constant a row (the weights of LLM.int8, arXiv 2208.07339).

    q = round(w · (127 / absmax of its row))        w = q · absmax · (1/127)

in fp32, each product rounded on its own and halves rounded to even: the bits of bitsandbytes on
CPU, so that a checkpoint of either is the other's. Weights are worked through in pieces of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rango.errors import CheckpointError

STEP = 7.874015718698502e-3
"""1/127 as bitsandbytes writes it; rounded to fp32 where it multiplies."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PIECE = 1 << 19  # weights worked through at a time


@dataclass(frozen=True, eq=False)
class Int8Tensor:
    """A weight (out, in) in int8 with a constant a row."""

    codes: Tensor
    """int8 (out, in), from -127 to 127."""
    scales: Tensor
    """fp32 (out,): the largest magnitude of each row (bitsandbytes' SCB)."""
    dtype: torch.dtype
    """Of the weight before quantization."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""
        return tuple(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and constants."""
        return self.codes.nbytes + self.scales.nbytes


def quantize_int8(weight: Tensor) -> Int8Tensor:
    """Quantize a weight (out, in) in fp32, bf16 or fp16. A row of zeros gives codes of zero.

    Raises CheckpointError if the weight is of another type or shape, empty, or holds NaN or
    infinity: one such value would spoil its whole row.
    """
    if weight.ndim != 2 or weight.numel() == 0 or weight.dtype not in _DTYPES:
        raise CheckpointError(
            f"int8: expected a weight (out, in) in float32, bfloat16 or float16, found "
            f"{weight.dtype} of shape {[*weight.shape]}"
        )
    weight = weight.detach()
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    rows = _rows(weight.shape[1])
    for start in range(0, len(weight), rows):
        piece = weight[start : start + rows].float()
        absmax = piece.abs().amax(dim=1)
        factor = 127.0 / absmax
        # of a row of zeros, or of magnitudes below 4e-37: infinity times it would be no number
        factor.masked_fill_(factor.isinf(), 0.0)
        scales[start : start + rows] = absmax
        codes[start : start + rows] = (piece * factor.unsqueeze(1)).round_()
    if not bool(torch.isfinite(scales).all()):
        raise CheckpointError(
            f"int8: expected finite weights, found NaN or infinity in one of shape "
            f"{[*weight.shape]}; the checkpoint is damaged"
        )
    return Int8Tensor(codes, scales, weight.dtype)


def dequantize_int8(
    q: Int8Tensor, dtype: torch.dtype | None = None, *, into: Tensor | None = None
) -> Tensor:
    """The weight (out, in) in `dtype` (default: the original). Products in fp32, then one cast.

    With `into`, a flat tensor of that dtype and at least out·in elements, the weight is written
    there, and what is returned is a view of it.
    """
    dtype = dtype or q.dtype
    out_features, in_features = q.codes.shape
    if into is None:
        into = torch.empty(q.codes.numel(), dtype=dtype, device=q.codes.device)
    weight = into[: q.codes.numel()].view(out_features, in_features)
    rows = _rows(in_features)
    for start in range(0, out_features, rows):
        piece = weight[start : start + rows]
        product = piece if dtype == torch.float32 else torch.empty_like(piece, dtype=torch.float32)
        product.copy_(q.codes[start : start + rows])
        product.mul_(q.scales[start : start + rows].unsqueeze(1)).mul_(STEP)
        if product is not piece:
            piece.copy_(product)
    return weight


def _rows(in_features: int) -> int:
    """Rows worked through at a time."""
    return max(1, _PIECE // in_features)
