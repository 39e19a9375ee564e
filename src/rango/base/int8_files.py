"""int8 weights on disk, in bitsandbytes' LLM.int8 layout, as transformers writes it.

    L.weight          int8 (out, in)
    L.SCB             fp32 (out,): the largest magnitude of each row
    L.weight_format   uint8, no dimensions: 0, for row by row; older files may lack it

L is the layer's name, such as model.layers.0.mlp.up_proj. The type of the weight before is not
stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rango.errors import CheckpointError
from rango.numerics.int8 import Int8Tensor

_CONSTANTS, _FORMAT = "SCB", "weight_format"


def owner(tensor_name: str) -> str | None:
    """The weight that a tensor of a checkpoint is a piece of, or None if its name is no piece's.

    ``up_proj.SCB`` -> ``up_proj.weight``.
    """
    layer, _, piece = tensor_name.rpartition(".")
    return f"{layer}.weight" if layer and piece in (_CONSTANTS, _FORMAT) else None


def to_tensors(name: str, quantized: Int8Tensor) -> dict[str, Tensor]:
    """The tensors that hold `quantized` as the weight `name`; its own, not copies."""
    layer = name.removesuffix(".weight")
    return {
        name: quantized.codes,
        f"{layer}.{_CONSTANTS}": quantized.scales,
        f"{layer}.{_FORMAT}": torch.tensor(0, dtype=torch.uint8),
    }


def from_tensors(name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Int8Tensor:
    """Read the weight `name` back, bit for bit; `dtype` is said to be that of the weight before.

    Raises CheckpointError naming every piece that is missing or of another type or shape.
    """
    layer = name.removesuffix(".weight")
    codes, scales = tensors.get(name), tensors.get(f"{layer}.{_CONSTANTS}")
    layout = tensors.get(f"{layer}.{_FORMAT}")
    faults = []
    if codes is None:
        faults.append(f"{name} is missing")
    elif codes.dtype != torch.int8 or codes.ndim != 2:
        faults.append(f"{name}: expected torch.int8 (out, in), found {_described(codes)}")
    if scales is None:
        faults.append(f"{layer}.{_CONSTANTS} is missing")
    elif scales.dtype != torch.float32 or (
        codes is not None and tuple(scales.shape) != tuple(codes.shape[:1])
    ):
        expected = f" of shape [{codes.shape[0]}]" if codes is not None and codes.ndim else ""
        faults.append(
            f"{layer}.{_CONSTANTS}: expected torch.float32{expected}, found {_described(scales)}"
        )
    elif not bool((torch.isfinite(scales) & (scales >= 0)).all()):
        faults.append(f"{layer}.{_CONSTANTS} holds a negative number, NaN or infinity")
    if layout is not None and (layout.numel() != 1 or int(layout) != 0):
        faults.append(f"{layer}.{_FORMAT}: expected 0 (row by row), found {layout.tolist()}")
    if faults or codes is None or scales is None:
        raise CheckpointError(f"{name}: not an int8 weight: {'; '.join(faults)}")
    return Int8Tensor(codes, scales, dtype)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {[*tensor.shape]}"
