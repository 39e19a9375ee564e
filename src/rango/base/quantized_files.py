"""Which of a checkpoint's tensors are the parts of quantized weights, and reading these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rango.base import int8_files, nf4_files
from rango.base.checkpoint import Checkpoint
from rango.base.config import Quantize
from rango.base.product import Quantized
from rango.errors import CheckpointError
from rango.numerics.nf4 import NF4Tensor

_OWNERS: dict[str, Callable[[str], str | None]] = {
    "nf4": nf4_files.owner,
    "int8": int8_files.owner,
}


def stored_quantization(checkpoint: Checkpoint) -> Quantize:
    """How a checkpoint's linear layers are stored, as its config.json says.

    Raises CheckpointError if that is any way but bitsandbytes' NF4 or int8.
    """
    found = checkpoint.config.get("quantization_config")
    if not found:
        return "none"
    where = f"{checkpoint.folder / 'config.json'}: quantization_config"
    if not isinstance(found, dict):
        raise CheckpointError(f"{where}: expected an object, found {type(found).__name__}")
    method = found.get("quant_method", "bitsandbytes")
    if method == "bitsandbytes" and found.get("load_in_8bit"):
        return "int8"
    kind = found.get("bnb_4bit_quant_type", "fp4")
    if method == "bitsandbytes" and kind == "nf4" and found.get("load_in_4bit"):
        return "nf4"
    described = f"{method} {kind}" if method == "bitsandbytes" else str(method)
    raise CheckpointError(
        f"{where}: the checkpoint is quantized with {described}; expected bitsandbytes nf4 or int8 "
        "or an unquantized checkpoint: name the model it was made from"
    )


def quantized_groups(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """By the name of each weight stored quantized, the names of all its tensors (its own too).

    Raises CheckpointError as stored_quantization does.
    """
    kind = stored_quantization(checkpoint)
    if kind == "none":
        return {}
    entries = checkpoint.entries
    groups: dict[str, list[str]] = {}
    for name, entry in entries.items():
        weight = _OWNERS[kind](name)
        if weight is not None:
            groups.setdefault(weight, []).append(name)
        elif entry.dtype == "I8" and name.endswith(".weight"):
            groups.setdefault(name, [])  # whose constants may be missing, which reading it will say
    for weight, group in groups.items():
        if weight in entries:
            group.append(weight)
    return groups


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Whether linear layers of a checkpoint are stored quantized. Raises CheckpointError."""
    return bool(quantized_groups(checkpoint))


def read_quantized(name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Quantized:
    """The weight `name` from its tensors. dtype: said to be that of the weight before, where the
    layout does not tell. Raises CheckpointError."""
    weight = tensors.get(name)
    if weight is not None and weight.dtype == torch.int8:
        return int8_files.from_tensors(name, tensors, dtype)
    return nf4_files.from_tensors(name, tensors)


def write_quantized(name: str, quantized: Quantized) -> dict[str, Tensor]:
    """The tensors that hold `quantized` as the weight `name`; its own, not copies."""
    if isinstance(quantized, NF4Tensor):
        return nf4_files.to_tensors(name, quantized)
    return int8_files.to_tensors(name, quantized)


def quantization_config(kind: Quantize, *, double_quant: bool, dtype: str, skip: list[str]) -> Any:
    """What BitsAndBytesConfig writes; `skip` names the linear layers that are not quantized."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": kind == "nf4",
        "load_in_8bit": kind == "int8",
        "_load_in_4bit": kind == "nf4",
        "_load_in_8bit": kind == "int8",
        "bnb_4bit_quant_type": "nf4" if kind == "nf4" else "fp4",
        "bnb_4bit_use_double_quant": kind == "nf4" and double_quant,
        "bnb_4bit_compute_dtype": dtype if kind == "nf4" else "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": skip,
        "llm_int8_threshold": 6.0,
    }
