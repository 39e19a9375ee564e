"""The compiled int8 kernels against numerics/int8.py, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rango.errors import CheckpointError
from rango.kernels import dispatch, int8
from rango.numerics import int8 as reference

BUILDS = [mode for mode in dispatch.available() if mode != "reference"]
pytestmark = pytest.mark.skipif(not BUILDS, reason="the compiled kernels are not installed")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _assert_same(weight: Tensor) -> None:
    found, expected = int8.quantize_int8(weight), reference.quantize_int8(weight)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scales, expected.scales)
    assert found.dtype == expected.dtype
    for dtype in DTYPES:
        a, b = int8.dequantize_int8(found, dtype), reference.dequantize_int8(expected, dtype)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.one_of(st.integers(1, 100), st.sampled_from([1024, 1025, 2500])),
    scale=st.sampled_from([1.0, 1e-3, 1e4]),
    seed=st.integers(0, 2**16),
)
def test_bits_of_the_reference(
    build: str, dtype: torch.dtype, rows: int, columns: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    with dispatch.using(build):
        _assert_same((torch.randn(rows, columns, generator=generator) * scale).to(dtype))


def test_halves_are_rounded_to_even(variant: str) -> None:
    halves = torch.arange(-126.5, 127)
    _assert_same(torch.cat([halves, torch.tensor([127.0])])[None])


def test_many_weights_none_is_off(variant: str, threads: int) -> None:
    _assert_same(torch.randn(512, 700, generator=torch.Generator().manual_seed(3)))


def test_zeros_the_smallest_and_the_largest(variant: str) -> None:
    weight = torch.randn(9, 70)
    for row, size in enumerate([0.0, 1e-45, 1e-38, 3.7e-37, 4e-37, 1e-30, 1e30, 1e38, 1.0]):
        weight[row] = weight[row].sign() * size
    weight[0, ::2] = -0.0
    _assert_same(weight)


def test_a_transposed_weight_is_quantized_in_its_own_order(variant: str) -> None:
    _assert_same(torch.randn(48, 33).T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacks_into_given_memory(variant: str, threads: int, dtype: torch.dtype) -> None:
    q = int8.quantize_int8(torch.randn(300, 333))
    memory = torch.full((300 * 333 + 9,), 7, dtype=dtype)
    weight = int8.dequantize_int8(q, dtype, into=memory)
    assert weight.data_ptr() == memory.data_ptr()
    assert torch.equal(weight, reference.dequantize_int8(q, dtype))
    assert (memory[300 * 333 :] == 7).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_weights_are_refused(variant: str, dtype: torch.dtype, bad: float) -> None:
    weight = torch.zeros(3, 131, dtype=dtype)
    weight[1, 130] = bad
    with pytest.raises(CheckpointError, match=r"NaN or infinity in one of shape \[3, 131\]"):
        int8.quantize_int8(weight)


@pytest.mark.parametrize(
    "weight", [torch.zeros(0, 4), torch.zeros(4), torch.zeros(4, 4, dtype=torch.int8)]
)
def test_what_is_no_weight_is_refused(weight: Tensor) -> None:
    with pytest.raises(CheckpointError, match="expected a weight"):
        int8.quantize_int8(weight)
