"""NF4 on disk: golden bytes (described in tests/numerics/test_nf4.py), round trips, bad files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save
from torch import Tensor

from rango.base.nf4_files import from_tensors, owner, to_tensors
from rango.errors import CheckpointError
from rango.numerics.nf4 import dequantize_nf4, quantize_nf4

GOLDEN = Path(__file__).parents[1] / "golden" / "nf4.safetensors"
GOLDEN_NAMES = ["double.weight", "plain.weight", "half.weight"]
STATE = "quant_state.bitsandbytes__nf4"
quick = settings(deadline=None, max_examples=50, database=None, derandomize=True)


def _weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape))).to(dtype)


def _tensors(double_quant: bool = True) -> dict[str, Tensor]:
    return to_tensors("w", quantize_nf4(_weight(9, 100), double_quant=double_quant))


def _json(value: Any) -> Tensor:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return torch.tensor(list(text), dtype=torch.uint8)


def _state(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return dict(json.loads(bytes(tensors[f"w.{STATE}"].tolist())))


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_files_are_read_bit_for_bit(name: str) -> None:
    golden = load_file(GOLDEN)
    q = from_tensors(name, golden)
    expected = golden[f"output.{name}"]
    assert (q.shape, q.dtype) == (tuple(expected.shape), expected.dtype)
    assert torch.equal(dequantize_nf4(q), expected)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_files_are_written_byte_for_byte(name: str) -> None:
    golden = load_file(GOLDEN)
    pieces = {k: v for k, v in golden.items() if k == name or k.startswith(f"{name}.")}
    written = to_tensors(name, from_tensors(name, golden))
    assert save(written) == save(pieces)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_state_has_a_known_order_of_keys(name: str) -> None:
    state = json.loads(bytes(load_file(GOLDEN)[f"{name}.{STATE}"].tolist()))
    nested = ["nested_blocksize", "nested_dtype", "nested_offset"]
    assert list(state) == ["quant_type", "blocksize", "dtype", "shape"] + (
        [] if name == "plain.weight" else nested
    )


@quick
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.booleans(),
)
def test_round_trip(shape: list[int], dtype: torch.dtype, double_quant: bool) -> None:
    q = quantize_nf4(_weight(*shape, dtype=dtype), double_quant=double_quant)
    tensors = load(save(to_tensors("a.weight", q)))
    assert {owner(key) for key in tensors if key != "a.weight"} == {"a.weight"}
    read = from_tensors("a.weight", tensors)
    assert (read.shape, read.dtype, read.nested) == (q.shape, q.dtype, double_quant)
    assert torch.equal(read.packed, q.packed)
    assert torch.equal(dequantize_nf4(read), dequantize_nf4(q))
    assert save(to_tensors("a.weight", read)) == save(tensors)


@pytest.mark.parametrize("blocksize", [32, 128, 4096])
def test_other_blocks_of_bitsandbytes_are_read(blocksize: int) -> None:
    codes = torch.arange(5000, dtype=torch.int64).mul_(7).remainder_(256).to(torch.uint8)
    absmax = torch.rand(-(-10000 // blocksize)) + 0.5
    code = quantize_nf4(torch.zeros(1)).code
    tensors = {
        "w": codes.unsqueeze(1),
        "w.absmax": absmax,
        "w.quant_map": code,
        f"w.{STATE}": _json(
            {"quant_type": "nf4", "blocksize": blocksize, "dtype": "float32", "shape": [100, 100]}
        ),
    }
    nibbles = torch.stack([codes >> 4, codes & 15], dim=1).flatten().int()
    expected = code[nibbles] * absmax.repeat_interleave(blocksize)[:10000]
    assert torch.equal(dequantize_nf4(from_tensors("w", tensors)).flatten(), expected)


@pytest.mark.parametrize(
    ("tensor", "weight"),
    [
        ("a.b.weight.absmax", "a.b.weight"),
        ("a.weight.quant_map", "a.weight"),
        ("a.weight.nested_quant_map", "a.weight"),
        (f"a.weight.{STATE}", "a.weight"),
        ("a.weight.quant_state.bitsandbytes__fp4", "a.weight"),
        ("a.weight", None),
        ("absmax", None),
        ("a.bias", None),
    ],
)
def test_owner_of_a_piece(tensor: str, weight: str | None) -> None:
    assert owner(tensor) == weight


def test_tensors_of_other_weights_are_not_looked_at() -> None:
    tensors = {**_tensors(), "w2.absmax": torch.zeros(1), "other": torch.zeros(1)}
    assert from_tensors("w", tensors).nested


def test_every_fault_is_named_at_once() -> None:
    tensors = _tensors()
    del tensors["w.nested_absmax"]
    tensors["w.extra"] = torch.zeros(1)
    tensors["w.quant_map"] = torch.zeros(15)
    tensors["w.absmax"] = tensors["w.absmax"].float()
    with pytest.raises(CheckpointError) as caught:
        from_tensors("w", tensors)
    message = str(caught.value)
    for part in (
        "w: not an NF4 weight of shape [9, 100]",
        "w.nested_absmax is missing",
        "w.extra is unexpected",
        "w.quant_map: expected torch.float32 of shape [16], found torch.float32 of shape [15]",
        "w.absmax: expected torch.uint8 of shape [15], found torch.float32 of shape [15]",
    ):
        assert part in message


@pytest.mark.parametrize("double_quant", [True, False])
def test_no_piece_can_be_missing(double_quant: bool) -> None:
    complete = _tensors(double_quant)
    for piece in complete:
        tensors = {key: value for key, value in complete.items() if key != piece}
        with pytest.raises(CheckpointError, match=rf"{piece}(:| is) missing"):
            from_tensors("w", tensors)


def test_pieces_of_the_other_variant_are_unexpected() -> None:
    tensors = {**_tensors(), **_tensors(double_quant=False)}
    with pytest.raises(CheckpointError, match=r"w\.nested_absmax is unexpected"):
        from_tensors("w", tensors)


@pytest.mark.parametrize("piece", ["w.absmax", "w.quant_map"])
def test_non_finite_constants_are_refused(piece: str) -> None:
    tensors = _tensors(double_quant=False)
    tensors[piece][3] = float("nan")
    with pytest.raises(CheckpointError, match=rf"{piece} holds NaN or infinity"):
        from_tensors("w", tensors)


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("quant_type", "fp4", '"fp4"'),
        ("blocksize", 48, "48"),
        ("blocksize", True, "true"),
        ("blocksize", 64.0, "64.0"),
        ("dtype", "float64", '"float64"'),
        ("dtype", ["float32"], "["),
        ("shape", [9, -100], "[9, -100]"),
        ("shape", [], "[]"),
        ("shape", None, "null"),
        ("nested_blocksize", 128, "128"),
        ("nested_dtype", "float16", '"float16"'),
        ("nested_offset", float("nan"), "NaN"),
        ("nested_offset", 10**400, "1000"),
        ("nested_offset", "0.5", '"0.5"'),
    ],
)
def test_a_state_that_is_not_nf4s_is_refused(field: str, value: Any, found: str) -> None:
    tensors = _tensors()
    tensors[f"w.{STATE}"] = _json({**_state(tensors), field: value})
    with pytest.raises(CheckpointError) as caught:
        from_tensors("w", tensors)
    assert f"{field} is {found}" in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    "field", ["quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_offset"]
)
def test_no_field_of_the_state_can_be_missing(field: str) -> None:
    tensors = _tensors()
    state = _state(tensors)
    del state[field]
    tensors[f"w.{STATE}"] = _json(state)
    with pytest.raises(CheckpointError, match=f"{field} is missing"):
        from_tensors("w", tensors)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"[1]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 4000,
        b"9" * 4096,
        b" " * 5000,
        b'{"quant_type": "nf4", "surprise": 1}',
    ],
)
def test_bytes_that_are_no_state_are_refused(state: bytes) -> None:
    tensors = {**_tensors(), f"w.{STATE}": _json(state)}
    with pytest.raises(CheckpointError, match=rf"w\.{STATE}"):
        from_tensors("w", tensors)


@quick
@given(st.data())
def test_a_damaged_state_is_read_or_refused_never_worse(data: st.DataObject) -> None:
    tensors = _tensors()
    state = bytearray(tensors[f"w.{STATE}"].tolist())
    for _ in range(data.draw(st.integers(1, 4))):
        state[data.draw(st.integers(0, len(state) - 1))] = data.draw(st.integers(0, 255))
    tensors[f"w.{STATE}"] = _json(bytes(state))
    try:
        q = from_tensors("w", tensors)
    except CheckpointError:
        return
    assert dequantize_nf4(q).numel() == 900


def test_a_state_of_another_quantization_is_named() -> None:
    tensors = _tensors()
    tensors["w.quant_state.bitsandbytes__fp4"] = tensors.pop(f"w.{STATE}")
    with pytest.raises(CheckpointError, match=r"found .*bitsandbytes__fp4"):
        from_tensors("w", tensors)
