"""The compiled NF4 kernels against numerics/nf4.py, bit for bit."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rango.errors import CheckpointError
from rango.kernels import dispatch, nf4
from rango.numerics import nf4 as reference
from rango.numerics.nf4 import NF4_CODE, NF4_THRESHOLDS, NF4Tensor

BUILDS = [mode for mode in dispatch.available() if mode != "reference"]
pytestmark = pytest.mark.skipif(not BUILDS, reason="the compiled kernels are not installed")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _assert_same(found: NF4Tensor, expected: NF4Tensor) -> None:
    for field in fields(NF4Tensor):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, Tensor):
            assert a.dtype == b.dtype, field.name
            assert torch.equal(a, b), field.name
        else:
            assert a == b, field.name


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and zeros of the same sign."""
    return a.dtype == b.dtype and torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(
    count=st.one_of(st.integers(1, 300), st.sampled_from([64 * 256, 64 * 257 + 1, 70_001, 66_000])),
    double_quant=st.booleans(),
    scale=st.sampled_from([1.0, 1e-3, 1e4]),
    seed=st.integers(0, 2**16),
)
def test_bits_of_the_reference(
    build: str, dtype: torch.dtype, count: int, double_quant: bool, scale: float, seed: int
) -> None:
    weight = (torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    expected = reference.quantize_nf4(weight, double_quant=double_quant)
    with dispatch.using(build):
        found = nf4.quantize_nf4(weight, double_quant=double_quant)
        _assert_same(found, expected)
        for other in DTYPES:
            assert _same_bits(
                nf4.dequantize_nf4(found, other), reference.dequantize_nf4(expected, other)
            )


def test_values_at_the_thresholds(variant: str) -> None:
    thresholds = NF4_THRESHOLDS.tolist()
    near = [
        torch.nextafter(torch.tensor(t), torch.tensor(end)).item()
        for t in thresholds
        for end in (-2.0, 2.0)
    ]
    values = torch.tensor([*thresholds, *near, *NF4_CODE.tolist(), -0.0])
    blocks = torch.cat([torch.ones(len(values), 1), values[:, None].expand(-1, 63)], dim=1)
    rest = torch.cat([torch.ones(1), values[:30]])
    for weight in (blocks, blocks * 0.37, blocks * 3e38, rest):
        _assert_same(nf4.quantize_nf4(weight), reference.quantize_nf4(weight))


def test_many_weights_none_is_off(variant: str, threads: int) -> None:
    weight = torch.randn(1 << 20, generator=torch.Generator().manual_seed(7))
    _assert_same(nf4.quantize_nf4(weight), reference.quantize_nf4(weight))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 129, 64 * 300])
def test_zeros_and_the_smallest(variant: str, count: int) -> None:
    for value in (0.0, -0.0, 1e-45, 1e-38, 1.2e-38, -1e-39):
        weight = torch.full((count,), value)
        expected = reference.quantize_nf4(weight)
        found = nf4.quantize_nf4(weight)
        _assert_same(found, expected)
        assert _same_bits(nf4.dequantize_nf4(found), reference.dequantize_nf4(expected))


def test_shapes_and_orders(variant: str, threads: int) -> None:
    weight = torch.randn(48, 33)
    for each in (weight, weight.T, weight[::2, 1:], weight.view(4, 12, 33)):
        found = nf4.quantize_nf4(each)
        _assert_same(found, reference.quantize_nf4(each))
        assert nf4.dequantize_nf4(found).shape == each.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 640, 1001, 40_001])
def test_unpacks_into_given_memory(
    variant: str, threads: int, dtype: torch.dtype, count: int
) -> None:
    q = nf4.quantize_nf4(torch.randn(count))
    memory = torch.full((count + 99,), 7, dtype=dtype)
    weight = nf4.dequantize_nf4(q, dtype, into=memory)
    assert weight.data_ptr() == memory.data_ptr()
    assert torch.equal(weight, reference.dequantize_nf4(q, dtype))
    assert (memory[count + count % 2 :] == 7).all()


def test_other_blocks_and_maps_are_read(variant: str) -> None:
    # checkpoints of others may have larger blocks, and any map
    generator = torch.Generator().manual_seed(1)
    count = 1000
    for blocksize in (32, 128, 4096):
        q = NF4Tensor(
            packed=torch.randint(0, 256, (count // 2, 1), dtype=torch.uint8, generator=generator),
            absmax=torch.rand(-(-count // blocksize), generator=generator),
            code=torch.randn(16, generator=generator),
            shape=(40, 25),
            dtype=torch.float32,
            blocksize=blocksize,
        )
        for dtype in (*DTYPES, torch.float64):
            assert torch.equal(nf4.dequantize_nf4(q, dtype), reference.dequantize_nf4(q, dtype))


def test_rounding_to_16_bits_is_torchs(variant: str) -> None:
    # one block a value: the level 1 times constants that are ties, subnormal or too large
    bits = torch.arange(0, 0x7F80, 7, dtype=torch.int32)[:, None] << 16
    ties = torch.tensor([0, 0x7FFF, 0x8000, 0x8001, 0x1000, 0x3000, 0x0FFF, 0x1001])
    constants = (bits + ties.int()).flatten().view(torch.float32)
    q = NF4Tensor(
        packed=torch.full((32 * len(constants), 1), 0xF0, dtype=torch.uint8),
        absmax=constants,
        code=NF4_CODE,
        shape=(len(constants), 64),
        dtype=torch.float32,
    )
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(nf4.dequantize_nf4(q, dtype), reference.dequantize_nf4(q, dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 63, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_weights_are_refused(
    variant: str, dtype: torch.dtype, bad: float, at: int
) -> None:
    weight = torch.zeros(131, dtype=dtype)
    weight[at] = bad
    for double_quant in (False, True):
        with pytest.raises(CheckpointError, match=r"NaN or infinity in one of shape \[131\]"):
            nf4.quantize_nf4(weight, double_quant=double_quant)


@pytest.mark.parametrize("weight", [torch.zeros(0, 4), torch.zeros(4, dtype=torch.int8)])
def test_what_is_no_weight_is_refused(weight: Tensor) -> None:
    with pytest.raises(CheckpointError, match="expected a weight in float32"):
        nf4.quantize_nf4(weight)


def test_trained_weights_may_be_quantized(variant: str) -> None:
    weight = torch.randn(8, 64, requires_grad=True)
    _assert_same(nf4.quantize_nf4(weight), reference.quantize_nf4(weight))


def test_missing_constants_are_not_read(variant: str) -> None:
    q = nf4.quantize_nf4(torch.randn(256), double_quant=False)
    short = NF4Tensor(q.packed, q.absmax[:2], q.code, (256,), torch.float32)
    with pytest.raises(RuntimeError):
        nf4.dequantize_nf4(short)
