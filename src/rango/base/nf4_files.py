"""NF4 weights on disk, in bitsandbytes' layout, written byte for byte as it does.

    W                                 uint8 [⌈N/2⌉, 1]
    W.absmax                          uint8 [blocks] when nested, else fp32
    W.quant_map                       fp32 [16]
    W.nested_absmax                   fp32 [⌈blocks/256⌉]       these two when nested
    W.nested_quant_map                fp32 [256]
    W.quant_state.bitsandbytes__nf4   uint8, the UTF-8 of a JSON object: the rest

W is the weight's name, such as model.layers.0.mlp.up_proj.weight.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rango.errors import CheckpointError
from rango.numerics.dynamic8 import CONSTANTS_BLOCK
from rango.numerics.nf4 import NF4Tensor

_STATE = "quant_state.bitsandbytes__nf4"
_PIECES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_PLAIN_FIELDS = ("quant_type", "blocksize", "dtype", "shape")
_NESTED_FIELDS = ("nested_blocksize", "nested_dtype", "nested_offset")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_LONGEST_STATE = 4096  # bytes; bitsandbytes writes fewer than 200
_LARGEST_FP32 = torch.finfo(torch.float32).max


def owner(tensor_name: str) -> str | None:
    """The weight that a tensor of a checkpoint is a piece of, or None if its name is no piece's.

    ``up_proj.weight.absmax`` -> ``up_proj.weight``. States of other quantizations count too, so
    that `from_tensors` can refuse them by name.
    """
    stem, found, _ = tensor_name.partition(".quant_state.")
    if found:
        return stem
    stem, _, piece = tensor_name.rpartition(".")
    return stem if stem and piece in _PIECES else None


def to_tensors(name: str, quantized: NF4Tensor) -> dict[str, Tensor]:
    """The tensors that hold `quantized` as the weight `name`; they are its own, not copies."""
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": quantized.blocksize,
        "dtype": str(quantized.dtype).removeprefix("torch."),
        "shape": list(quantized.shape),
    }
    tensors = {
        name: quantized.packed,
        f"{name}.absmax": quantized.absmax,
        f"{name}.quant_map": quantized.code,
    }
    if (
        quantized.nested_absmax is not None
        and quantized.nested_code is not None
        and quantized.nested_offset is not None
    ):
        state["nested_blocksize"] = quantized.nested_blocksize
        state["nested_dtype"] = "float32"
        state["nested_offset"] = quantized.nested_offset.item()
        tensors[f"{name}.nested_absmax"] = quantized.nested_absmax
        tensors[f"{name}.nested_quant_map"] = quantized.nested_code
    tensors[f"{name}.{_STATE}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors


def from_tensors(name: str, tensors: Mapping[str, Tensor]) -> NF4Tensor:
    """Read the weight `name` back, bit for bit; tensors of other weights are not looked at.

    Raises CheckpointError naming every piece that is missing, unexpected, or of another type or
    shape than the state says (both given), and any state that is not NF4's.
    """
    prefix = f"{name}."
    pieces = {key: tensors[key] for key in tensors if key == name or key.startswith(prefix)}
    state_name = prefix + _STATE
    if state_name not in pieces:
        raise CheckpointError(
            f"{state_name}: missing, so {name} cannot be read as NF4; found "
            f"{', '.join(sorted(pieces)) or 'no tensor of that weight'}"
        )
    state = _read_state(state_name, pieces.pop(state_name))
    _check_pieces(name, pieces, state)
    packed, offset = pieces[name], state.nested_offset
    return NF4Tensor(
        packed=packed,
        absmax=pieces[f"{name}.absmax"],
        code=pieces[f"{name}.quant_map"],
        shape=state.shape,
        dtype=state.dtype,
        blocksize=state.blocksize,
        nested_absmax=pieces.get(f"{name}.nested_absmax"),
        nested_code=pieces.get(f"{name}.nested_quant_map"),
        nested_offset=None if offset is None else torch.tensor(offset, device=packed.device),
    )


@dataclass(frozen=True)
class _State:
    """What the JSON says."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocksize: int
    nested_offset: float | None


def _read_state(name: str, tensor: Tensor) -> _State:
    """Parse and check the JSON held in the uint8 tensor `name`."""
    if tensor.dtype != torch.uint8 or tensor.dim() != 1 or len(tensor) > _LONGEST_STATE:
        raise CheckpointError(
            f"{name}: expected at most {_LONGEST_STATE} bytes of JSON, found {tensor.dtype} of "
            f"shape {[*tensor.shape]}"
        )
    try:
        state = json.loads(bytes(tensor.tolist()))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: expected a JSON object, found other bytes") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{name}: expected a JSON object, found {type(state).__name__}")
    nested = any(field in state for field in _NESTED_FIELDS)
    fields = _PLAIN_FIELDS + _NESTED_FIELDS if nested else _PLAIN_FIELDS
    faults = [f"{field} is missing" for field in fields if field not in state]
    faults += [f"{field!r} is unknown" for field in state if field not in fields]
    faults += [
        f"{field} is {json.dumps(state[field])[:80]}, expected {expected}"
        for field, (valid, expected) in _RULES.items()
        if field in state and not valid(state[field])
    ]
    if faults:
        raise CheckpointError(f"{name}: {'; '.join(faults)}")
    return _State(
        shape=tuple(state["shape"]),
        dtype=_DTYPES[state["dtype"]],
        blocksize=state["blocksize"],
        nested_offset=float(state["nested_offset"]) if nested else None,
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(n) is int and n > 0 for n in value)


def _is_fp32(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST_FP32


# what each field of the state may be, and how to say so
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "quant_type": (lambda v: v == "nf4", '"nf4"'),
    "blocksize": (lambda v: type(v) is int and v in _BLOCKSIZES, f"one of {_BLOCKSIZES}"),
    "dtype": (lambda v: isinstance(v, str) and v in _DTYPES, f"one of {', '.join(_DTYPES)}"),
    "shape": (_is_shape, "a list of positive sizes"),
    "nested_blocksize": (lambda v: type(v) is int and v == CONSTANTS_BLOCK, str(CONSTANTS_BLOCK)),
    "nested_dtype": (lambda v: v == "float32", '"float32"'),
    "nested_offset": (_is_fp32, "a finite number"),
}


def _check_pieces(name: str, pieces: Mapping[str, Tensor], state: _State) -> None:
    """Raise CheckpointError unless the pieces, the state left out, are those the state implies."""
    expected = _expected_pieces(name, state)
    faults = [f"{piece} is missing" for piece in expected if piece not in pieces]
    faults += [f"{piece} is unexpected" for piece in sorted(pieces) if piece not in expected]
    for piece, (dtype, shape) in expected.items():
        found = pieces.get(piece)
        if found is None:
            continue
        if found.dtype != dtype or tuple(found.shape) != shape:
            faults.append(
                f"{piece}: expected {dtype} of shape {[*shape]}, found {found.dtype} of shape "
                f"{[*found.shape]}"
            )
        elif dtype == torch.float32 and not bool(torch.isfinite(found).all()):
            faults.append(f"{piece} holds NaN or infinity")
    if faults:
        raise CheckpointError(
            f"{name}: not an NF4 weight of shape {[*state.shape]}: {'; '.join(faults)}"
        )


def _expected_pieces(name: str, state: _State) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor that the weight `name` has with this state, by name."""
    count = math.prod(state.shape)
    blocks = -(-count // state.blocksize)
    nested = state.nested_offset is not None
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        name: (torch.uint8, ((count + 1) // 2, 1)),
        f"{name}.absmax": (torch.uint8 if nested else torch.float32, (blocks,)),
        f"{name}.quant_map": (torch.float32, (16,)),
    }
    if nested:
        expected[f"{name}.nested_absmax"] = (torch.float32, (-(-blocks // CONSTANTS_BLOCK),))
        expected[f"{name}.nested_quant_map"] = (torch.float32, (256,))
    return expected
