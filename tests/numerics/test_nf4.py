"""NF4 against its definition, its published error, and golden bytes.

golden/nf4.safetensors was written by bitsandbytes 0.50.2 on CPU (quantize_4bit with quant_type
nf4, and QuantState.as_dict(packed=True)). For each weight NAME it holds `input.NAME`, NAME and
NAME.* as on disk, and `output.NAME`, what its plain implementation unpacks (its AVX-512 kernel
mistakes the constants of rows whose length is a multiple of 16 but not of 64, as half.weight's).
  double.weight  bf16 [130, 127], double quantization, two nested blocks, a row 300 times the
                 others, three rows of zeros
  plain.weight   fp32 [33, 131], an odd number of elements, no double quantization, a whole block
                 and the short last one of zeros, a tiny value
  half.weight    fp16 [8, 96], double quantization
`dynamic8.*` are 3,301 values, their 8-bit codes and constants in blocks of 256, and the map.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rango.errors import CheckpointError
from rango.numerics import nf4
from rango.numerics.nf4 import (
    BLOCK,
    NF4_CODE,
    NF4_THRESHOLDS,
    NF4Tensor,
    block_constants,
    dequantize_nf4,
    nest_constants,
    quantize_nf4,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "nf4.safetensors"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 5), (8, 8), (1, 63), (1, 65), (13, 77), (4, 128), (300,), (2, 3, 5)]


def _weight(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _nibbles(q: NF4Tensor) -> Tensor:
    packed = q.packed.flatten().int()
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()[: math.prod(q.shape)]


def test_thresholds_are_the_published_ones() -> None:
    published = [
        -0.8480964004993439,
        -0.6106329262256622,
        -0.4599952697753906,
        -0.33967943489551544,
        -0.23460740596055984,
        -0.13791173323988914,
        -0.045525018125772476,
        0.03979014977812767,
        0.1202552504837513,
        0.2035212516784668,
        0.2920137718319893,
        0.3893125355243683,
        0.5016634166240692,
        0.6427869200706482,
        0.8614784181118011,
    ]
    assert torch.equal(NF4_THRESHOLDS, torch.tensor(published))


@pytest.mark.parametrize("name", ["double.weight", "plain.weight", "half.weight"])
def test_bytes_are_the_golden_ones(name: str) -> None:
    golden = load_file(GOLDEN)
    plain = quantize_nf4(golden[f"input.{name}"], double_quant=False)
    assert torch.equal(plain.packed, golden[name])
    if f"{name}.nested_absmax" not in golden:
        assert torch.equal(plain.absmax, golden[f"{name}.absmax"])
        return
    q = quantize_nf4(golden[f"input.{name}"])
    assert q.nested_offset is not None
    # the same mean, up to the order in which a machine sums it
    steps = (q.absmax.int() - golden[f"{name}.absmax"].int()).abs()
    assert steps.max() <= 1
    assert steps.float().mean() < 1e-3


@pytest.mark.parametrize("name", ["double.weight", "half.weight"])
def test_double_quantization_given_the_same_offset_is_the_golden_one(name: str) -> None:
    golden = load_file(GOLDEN)
    offset = torch.tensor(_offset(golden[f"{name}.quant_state.bitsandbytes__nf4"]))
    q = nest_constants(quantize_nf4(golden[f"input.{name}"], double_quant=False), offset)
    assert torch.equal(q.absmax, golden[f"{name}.absmax"])
    assert torch.equal(_some(q.nested_absmax), golden[f"{name}.nested_absmax"])
    assert torch.equal(_some(q.nested_code), golden[f"{name}.nested_quant_map"])
    assert torch.equal(dequantize_nf4(q), golden[f"output.{name}"])


def _offset(state: Tensor) -> float:
    return float(json.loads(bytes(state.tolist()))["nested_offset"])


def _some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacked_is_code_times_constant_cast_once(
    shape: tuple[int, ...], dtype: torch.dtype, double_quant: bool
) -> None:
    q = quantize_nf4(_weight(*shape, dtype=dtype), double_quant=double_quant)
    count = math.prod(shape)
    assert q.packed.shape == ((count + 1) // 2, 1)
    constants = block_constants(q).repeat_interleave(BLOCK)[:count]
    product = (NF4_CODE[_nibbles(q)] * constants).view(shape)
    assert torch.equal(dequantize_nf4(q), product.to(dtype))
    for other in (torch.float32, torch.bfloat16, torch.float64):
        unpacked = dequantize_nf4(q, other)
        assert torch.equal(unpacked, product.to(other))
        assert unpacked.is_contiguous()


@settings(deadline=None, max_examples=60, database=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.floats(-1, 1, width=32),
            st.sampled_from(NF4_THRESHOLDS.tolist() + NF4_CODE.tolist()),
        ),
        min_size=1,
        max_size=200,
    )
)
def test_nibble_counts_the_thresholds_strictly_below(values: list[float]) -> None:
    # a 1 in each block keeps the constant at 1, so the values themselves are what is compared
    blocks = [[1.0, *values[i : i + 63]] for i in range(0, len(values), 63)]
    flat = [value for block in blocks for value in block]
    q = quantize_nf4(torch.tensor(flat), double_quant=False)
    expected = [sum(value > t for t in NF4_THRESHOLDS.tolist()) for value in flat]
    assert _nibbles(q).tolist() == expected


@pytest.mark.parametrize("double_quant", [False, True])
def test_each_level_is_kept_exactly(double_quant: bool) -> None:
    weight = NF4_CODE.repeat(4).repeat(3, 1) * 0.5
    q = quantize_nf4(weight, double_quant=double_quant)
    assert torch.equal(dequantize_nf4(q), weight)


@pytest.mark.parametrize("count", [63, 64, 65, 128, 129])
def test_zeros_stay_zeros(count: int) -> None:
    for double_quant in (False, True):
        q = quantize_nf4(torch.zeros(count), double_quant=double_quant)
        assert torch.equal(dequantize_nf4(q), torch.zeros(count))
        assert (q.packed == 0x77).all()


def test_zero_blocks_stay_zero_beside_others() -> None:
    weight = _weight(4, 64)
    weight[2] = 0
    assert torch.equal(dequantize_nf4(quantize_nf4(weight))[2], torch.zeros(64))


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 255, 256, 257, 640, 1001])
def test_pieces_do_not_show(
    monkeypatch: pytest.MonkeyPatch, count: int, dtype: torch.dtype, double_quant: bool
) -> None:
    weight = _weight(count, dtype=dtype)
    whole = quantize_nf4(weight, double_quant=double_quant)
    unpacked = dequantize_nf4(whole)
    monkeypatch.setattr(nf4, "_PIECE", 256)
    pieces = quantize_nf4(weight, double_quant=double_quant)
    assert torch.equal(pieces.packed, whole.packed)
    assert torch.equal(pieces.absmax, whole.absmax)
    assert torch.equal(dequantize_nf4(pieces), unpacked)


def test_a_transposed_weight_is_quantized_in_its_own_order() -> None:
    weight = _weight(48, 32).T
    assert torch.equal(quantize_nf4(weight).packed, quantize_nf4(weight.contiguous()).packed)


def test_weight_is_left_alone_and_not_shared() -> None:
    weight = _weight(8, 64).requires_grad_()
    before = weight.detach().clone()
    q = quantize_nf4(weight)
    assert torch.equal(weight, before)
    assert not q.absmax.requires_grad
    q.code.zero_()
    assert NF4_CODE[-1] == 1


def test_error_on_normal_weights_is_the_published_one() -> None:
    weight = _weight(1 << 21, seed=3)
    plain = dequantize_nf4(quantize_nf4(weight, double_quant=False)) - weight
    double = dequantize_nf4(quantize_nf4(weight)) - weight
    assert plain.abs().mean() == pytest.approx(0.0728, abs=2e-4)
    assert plain.square().mean().sqrt() == pytest.approx(0.0920, abs=2e-4)
    assert plain.abs().mean() <= double.abs().mean() <= 0.0730


def test_bits_a_weight_are_the_published_ones() -> None:
    weight = torch.zeros(2048, 2048)
    for double_quant, bits in ((True, 4.127), (False, 4.5)):
        q = quantize_nf4(weight, double_quant=double_quant)
        assert 8 * q.nbytes / weight.numel() == pytest.approx(bits, abs=3e-3)
        assert q.nested is double_quant
        assert 2 * weight.numel() / q.nbytes == pytest.approx(16 / bits, abs=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 130])
def test_non_finite_weights_are_refused(bad: float, at: int) -> None:
    weight = torch.zeros(131)
    weight[at] = bad
    with pytest.raises(CheckpointError, match=r"NaN or infinity in one of shape \[131\]"):
        quantize_nf4(weight)


@pytest.mark.parametrize("weight", [torch.zeros(0, 4), torch.zeros(4, dtype=torch.int8)])
def test_what_is_no_weight_is_refused(weight: Tensor) -> None:
    with pytest.raises(CheckpointError, match="expected a weight in float32"):
        quantize_nf4(weight)


@pytest.mark.parametrize("count", [1, 640, 1001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacks_into_given_memory(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, count: int
) -> None:
    monkeypatch.setattr(nf4, "_PIECE", 256)
    q = quantize_nf4(_weight(count))
    memory = torch.full((2000,), 7, dtype=dtype)
    weight = dequantize_nf4(q, dtype, into=memory)
    assert weight.data_ptr() == memory.data_ptr()
    assert torch.equal(weight, dequantize_nf4(q, dtype))
    assert (memory[count + count % 2 :] == 7).all()


class _Largest(TorchDispatchMode):
    """Bytes of the largest memory that any operation takes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            taken = result.untyped_storage()
            given = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)]
            if all(x.untyped_storage().data_ptr() != taken.data_ptr() for x in given):
                self.bytes = max(self.bytes, taken.nbytes())
        return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_temporaries_stay_small(dtype: torch.dtype) -> None:
    weight = torch.zeros(3000, 2048, dtype=dtype)  # 24 MB in fp32
    with _Largest() as quantizing:
        q = quantize_nf4(weight)
    assert quantizing.bytes <= q.packed.nbytes
    with _Largest() as unpacking:
        dequantize_nf4(q)
    assert unpacking.bytes == weight.nbytes
