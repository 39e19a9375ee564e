"""NF4: 4-bit NormalFloat, with or without double quantization (QLoRA, arXiv 2305.14314).

    w = code[nibble] · absmax of its block of 64 weights, flat and row-major.

The bits are those of bitsandbytes on CPU, so that a checkpoint of either is the other's. Weights
are worked through in pieces: the temporaries are a few MB, and some 30 bytes a block (.5 a weight).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rango.errors import CheckpointError
from rango.numerics.dynamic8 import (
    CONSTANTS_BLOCK,
    dequantize_dynamic8,
    dynamic_map,
    quantize_dynamic8,
)

BLOCK = 64
"""Weights that share one constant."""

NF4_CODE = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=torch.float32,
    device="cpu",
)
"""The 16 levels, fp32 (16,): quantiles of N(0, 1), scaled to [-1, 1], with an exact zero."""

NF4_THRESHOLDS = (NF4_CODE[:-1] + NF4_CODE[1:]) / 2
"""Midpoints of the levels, fp32 (15,); the nibble is the number of thresholds strictly below v."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PIECE = 1 << 19  # weights worked through at a time; a multiple of any block size
_SMALLEST_CONSTANT = 1e-38  # keeps the reciprocal of a block of zeros finite


@dataclass(frozen=True, eq=False)
class NF4Tensor:
    """A weight of `shape`, N elements, in NF4. With double quantization, `absmax` is nested."""

    packed: Tensor
    """uint8 [⌈N/2⌉, 1]; byte i holds element 2i in the high nibble, 2i+1 in the low one."""
    absmax: Tensor
    """The block constants [⌈N/blocksize⌉]: fp32, or uint8 dynamic codes when nested."""
    code: Tensor
    """fp32 [16]."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Of the weight before quantization."""
    blocksize: int = BLOCK
    nested_absmax: Tensor | None = None
    """fp32 [⌈blocks/nested_blocksize⌉]; None when not nested, as the three that follow."""
    nested_code: Tensor | None = None
    """fp32 [256]."""
    nested_offset: Tensor | None = None
    """fp32, no dimensions: the mean of the constants, which was subtracted from them."""
    nested_blocksize: int = CONSTANTS_BLOCK

    @property
    def nested(self) -> bool:
        """Whether the constants are quantized too."""
        return self.nested_absmax is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors, the two maps included."""
        parts = (
            self.packed,
            self.absmax,
            self.code,
            self.nested_absmax,
            self.nested_code,
            self.nested_offset,
        )
        return sum(part.nbytes for part in parts if part is not None)


def quantize_nf4(weight: Tensor, *, double_quant: bool = True) -> NF4Tensor:
    """Quantize a weight of any shape in fp32, bf16 or fp16.

    Raises CheckpointError if the weight is of another type, empty, or holds NaN or infinity: one
    such value would spoil the 63 others of its block, or with double quantization the whole tensor.
    """
    if weight.numel() == 0 or weight.dtype not in _DTYPES:
        raise CheckpointError(
            f"NF4: expected a weight in float32, bfloat16 or float16, found {weight.dtype} of "
            f"shape {[*weight.shape]}"
        )
    flat = weight.detach().reshape(-1)
    packed = torch.empty((flat.numel() + 1) // 2, dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(-(-flat.numel() // BLOCK), dtype=torch.float32, device=flat.device)
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start : start + _PIECE].float()
        scaled, constants = _normalise(piece)
        absmax[start // BLOCK :][: constants.numel()] = constants
        nibbles = _pack(_nibbles(scaled))
        packed[start // 2 :][: nibbles.numel()] = nibbles
    if not bool(torch.isfinite(absmax).all()):
        raise CheckpointError(
            f"NF4: expected finite weights, found NaN or infinity in one of shape "
            f"{[*weight.shape]}; the checkpoint is damaged"
        )
    quantized = NF4Tensor(
        packed=packed.unsqueeze(1),
        absmax=absmax,
        code=NF4_CODE.to(flat.device, copy=True),
        shape=tuple(weight.shape),
        dtype=weight.dtype,
    )
    return nest_constants(quantized, absmax.mean()) if double_quant else quantized


def nest_constants(quantized: NF4Tensor, offset: Tensor) -> NF4Tensor:
    """Double quantization: the constants, less `offset` (their mean), in the 8-bit dynamic code.

    The order in which a device sums the mean moves its last bit, and so about 7 codes in 262,144.
    """
    codes, nested_absmax = quantize_dynamic8(quantized.absmax - offset)
    return NF4Tensor(
        packed=quantized.packed,
        absmax=codes,
        code=quantized.code,
        shape=quantized.shape,
        dtype=quantized.dtype,
        blocksize=quantized.blocksize,
        nested_absmax=nested_absmax,
        nested_code=dynamic_map().to(codes.device),
        nested_offset=offset,
    )


def block_constants(q: NF4Tensor) -> Tensor:
    """The fp32 constant of each block: map[code] · nested_absmax, rounded, then + offset."""
    if q.nested_absmax is None or q.nested_code is None or q.nested_offset is None:
        return q.absmax
    centred = dequantize_dynamic8(q.absmax, q.nested_absmax, q.nested_code, q.nested_blocksize)
    return centred.add_(q.nested_offset)


def dequantize_nf4(
    q: NF4Tensor, dtype: torch.dtype | None = None, *, into: Tensor | None = None
) -> Tensor:
    """The weight, `q.shape`, in `dtype` (default: the original). Product in fp32, then one cast.

    A byte looks up its two weights at once, as one 8-byte entry of a table of 256.
    With `into`, a flat tensor of that dtype and at least 2·⌈N/2⌉ elements, the weight is written
    there, and what is returned is a view of it.
    """
    dtype = dtype or q.dtype
    total = math.prod(q.shape)
    packed = q.packed.view(-1)
    constants = block_constants(q)
    pairs = _pair_table(q.code)
    weight = (
        torch.empty(2 * len(packed), dtype=dtype, device=packed.device) if into is None else into
    )
    for start in range(0, total, _PIECE):
        piece = weight[start : min(start + _PIECE, 2 * len(packed))]
        product = piece if dtype == torch.float32 else torch.empty_like(piece, dtype=torch.float32)
        codes = packed[start // 2 : (start + _PIECE) // 2]
        _look_up(pairs, codes, product.view(torch.int64))
        _scale_blocks(product, constants[start // q.blocksize :], q.blocksize)
        if product is not piece:
            piece.copy_(product)
    return weight[:total].view(q.shape)


def _normalise(piece: Tensor) -> tuple[Tensor, Tensor]:
    """Each weight over its block's largest magnitude, (n,), and these magnitudes, (⌈n/64⌉,).

    A last, shorter block divides where full ones multiply by the reciprocal, and its constant is
    never zero: so does bitsandbytes, and the last bit depends on it.
    """
    full = piece.numel() // BLOCK * BLOCK
    blocks, rest = piece[:full].view(-1, BLOCK), piece[full:]
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * absmax.clamp(min=_SMALLEST_CONSTANT).reciprocal().unsqueeze(1)).view(-1)
    if rest.numel() == 0:
        return scaled, absmax
    largest = rest.abs().amax().clamp(min=_SMALLEST_CONSTANT)
    return torch.cat([scaled, rest / largest]), torch.cat([absmax, largest.unsqueeze(0)])


def _nibbles(scaled: Tensor) -> Tensor:
    """How many thresholds lie strictly below each value: uint8 (n,)."""
    count = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    for threshold in NF4_THRESHOLDS.tolist():  # 15 plain passes beat a binary search threefold
        count += scaled > threshold
    return count


def _pack(nibbles: Tensor) -> Tensor:
    """Two a byte, the first high: (n,) -> (⌈n/2⌉,); a missing last one is that of zero."""
    if nibbles.numel() % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1), value=7)
    return (nibbles[0::2] << 4) | nibbles[1::2]


def _pair_table(code: Tensor) -> Tensor:
    """int64 (256,): the bits of (code[high nibble], code[low nibble]) of each byte."""
    high, low = code.repeat_interleave(16), code.repeat(16)
    return torch.stack([high, low], dim=1).view(torch.int64).view(-1)


def _look_up(table: Tensor, codes: Tensor, into: Tensor) -> None:
    """into[i] = table[codes[i]], all (n,). gather shares its rows out among the threads, which
    index_select does not do."""
    rows = 64 if len(codes) % 64 == 0 else 1
    index = codes.long().view(rows, -1)
    torch.gather(table.expand(rows, -1), 1, index, out=into.view(rows, -1))


def _scale_blocks(values: Tensor, constants: Tensor, blocksize: int) -> None:
    """Multiply each block of `values` (n,) by its constant, in place; the last may be shorter."""
    whole = values.numel() // blocksize
    values[: whole * blocksize].view(whole, blocksize).mul_(constants[:whole].unsqueeze(1))
    if whole * blocksize < values.numel():
        values[whole * blocksize :].mul_(constants[whole])
