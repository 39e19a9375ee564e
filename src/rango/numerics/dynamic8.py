"""The 8-bit dynamic code that double quantization stores NF4's block constants in.

Dettmers 2015 (arXiv 1511.04561): a sign, a decimal exponent and a linear fraction; the fraction
gets the bits that the exponent leaves, so values near ±1 are fine and small ones keep their order
of magnitude. Bits are those of bitsandbytes on CPU.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

CONSTANTS_BLOCK = 256
"""Values that share one fp32 scale."""

_DECADES = 7
_POSITIONS = 65536


def dynamic_map() -> Tensor:
    """The 256 code values in ascending order, fp32: 127 each side, 0 and 1 (-1 is not one)."""
    return _dynamic_map().clone()


def quantize_dynamic8(values: Tensor, blocksize: int = CONSTANTS_BLOCK) -> tuple[Tensor, Tensor]:
    """Quantize `values` (n,) to codes (n,) uint8 and the scale of each block, (⌈n/blocksize⌉,).

    v = x · (1/absmax) is rounded to one of 65,536 even positions on [-1, 1], whose nearest code
    is read from a table: so a few codes are one step from the code nearest to v. A block of
    zeros, which has no v, gets code 0 and scale 0, and reads back as -0.
    """
    count = values.numel()
    blocks = _in_blocks(values.float(), blocksize)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * absmax.reciprocal().unsqueeze(1)).clamp_(-1, 1).nan_to_num_(nan=-1.0)
    position = scaled.add_(1).div_(2).mul_(_POSITIONS - 1).add_(0.5).int()
    codes = nearest_codes().to(values.device)[position]
    return codes.flatten()[:count], absmax


def dequantize_dynamic8(
    codes: Tensor, absmax: Tensor, code: Tensor, blocksize: int = CONSTANTS_BLOCK
) -> Tensor:
    """code[codes] · absmax of the block, fp32 (n,); `code` (256,) is the map the file carries."""
    count = codes.numel()
    values = code.index_select(0, codes.flatten().int())
    return _in_blocks(values, blocksize).mul(absmax.unsqueeze(1)).flatten()[:count]


def _in_blocks(values: Tensor, blocksize: int) -> Tensor:
    """(n,) -> (⌈n/blocksize⌉, blocksize), the last block filled with zeros."""
    return torch.nn.functional.pad(values, (0, -values.numel() % blocksize)).view(-1, blocksize)


@cache
def _dynamic_map() -> Tensor:
    values = [0.0, 1.0]
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32, device="cpu")
        middles = 10 ** (decade - _DECADES + 1) * ((edges[:-1] + edges[1:]) / 2)
        values += middles.tolist() + (-middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32, device="cpu")


@cache
def nearest_codes() -> Tensor:
    """The nearest code, uint8, of each of 65,536 even positions from -1 to 1."""
    positions = (
        torch.arange(_POSITIONS, dtype=torch.float64, device="cpu") / (_POSITIONS - 1) * 2 - 1
    )
    code = _dynamic_map().double()
    return torch.bucketize(positions, (code[:-1] + code[1:]) / 2).to(torch.uint8)
