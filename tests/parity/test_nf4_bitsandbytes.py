"""NF4 against bitsandbytes on CPU: the same bits of a weight, and each reads the other's files.

Row lengths here are odd, multiples of 64, or no multiples of 16: for the others the AVX-512 kernel
of bitsandbytes 0.50.2 unpacks rows after the first with wrong constants, though the bytes are right
(tests/numerics/test_nf4.py covers those against its plain implementation).
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from rango.base.linear import NF4Linear
from rango.base.nf4_files import from_tensors, to_tensors
from rango.numerics.dynamic8 import dequantize_dynamic8, dynamic_map, quantize_dynamic8
from rango.numerics.nf4 import dequantize_nf4, nest_constants, quantize_nf4

bnb = pytest.importorskip("bitsandbytes")
functional = bnb.functional

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (1, 63), (3, 5), (7, 11), (5, 10), (4, 100), (9, 64), (130, 127), (64, 896)]


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    """bitsandbytes compiles its fallback for odd rows, which takes seconds a shape."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(0.05).to(dtype)


def _quantize(weight: Tensor, double_quant: bool) -> tuple[Tensor, Any]:
    packed, state = functional.quantize_4bit(
        weight, quant_type="nf4", compress_statistics=double_quant
    )
    return packed, state


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_are_the_same(shape: tuple[int, int], dtype: torch.dtype, double_quant: bool) -> None:
    weight = _weight(*shape, dtype=dtype)
    weight.view(-1)[64:128] = 0
    packed, state = _quantize(weight, double_quant)
    q = quantize_nf4(weight, double_quant=double_quant)
    assert torch.equal(q.packed, packed)
    assert torch.equal(q.code, state.code)
    assert torch.equal(q.absmax, state.absmax)
    if double_quant:
        assert q.nested_absmax is not None
        assert q.nested_code is not None
        assert q.nested_offset is not None
        assert torch.equal(q.nested_absmax, state.state2.absmax)
        assert torch.equal(q.nested_code, state.state2.code)
        assert torch.equal(q.nested_offset, state.offset)
    assert torch.equal(dequantize_nf4(q), functional.dequantize_4bit(packed, state).view(shape))


def test_large_weight_worked_through_in_pieces() -> None:
    weight = _weight(1500, 701)
    packed, state = _quantize(weight, double_quant=True)
    q = quantize_nf4(weight)
    assert torch.equal(q.packed, packed)
    steps = (q.absmax.int() - state.absmax.int()).abs()
    assert steps.max() <= 1
    assert (steps > 0).float().mean() < 1e-3
    given = nest_constants(quantize_nf4(weight, double_quant=False), state.offset)
    assert torch.equal(given.absmax, state.absmax)
    assert torch.equal(dequantize_nf4(given), functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-41, 3e38, -2.0])
@pytest.mark.parametrize("count", [63, 64, 65])
def test_extreme_constants(value: float, count: int) -> None:
    weight = torch.full((count,), value)
    weight[::3] *= 0.3
    packed, state = _quantize(weight, double_quant=False)
    q = quantize_nf4(weight, double_quant=False)
    assert torch.equal(q.packed, packed)
    assert torch.equal(q.absmax, state.absmax)


def test_dynamic8_is_the_same_for_every_position() -> None:
    positions = torch.linspace(-1, 1, 65536 * 4 - 255)
    values = torch.cat([positions, _weight(100_003), _weight(1000) * 1e-6, torch.zeros(600)])
    codes, state = functional.quantize_blockwise(values, blocksize=256)
    ours, absmax = quantize_dynamic8(values)
    assert torch.equal(dynamic_map(), state.code)
    assert torch.equal(ours, codes)
    assert torch.equal(absmax, state.absmax)
    read = functional.dequantize_blockwise(codes, state)
    assert torch.equal(dequantize_dynamic8(ours, absmax, dynamic_map()), read)


@pytest.mark.parametrize("values", [[1e-41], [1e-39, 2e-39, 0.0], [-1e-39, 1e-39], [0.0, -0.0]])
def test_dynamic8_of_subnormal_constants(values: list[float]) -> None:
    codes, state = functional.quantize_blockwise(torch.tensor(values), blocksize=256)
    ours, absmax = quantize_dynamic8(torch.tensor(values))
    assert torch.equal(ours, codes)
    assert torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_we_write_the_bytes_that_bitsandbytes_writes(
    dtype: torch.dtype, double_quant: bool
) -> None:
    weight = _weight(33, 64, dtype=dtype)
    packed, state = _quantize(weight, double_quant)
    theirs = {"w": packed}
    theirs |= {f"w.{key}": value for key, value in state.as_dict(packed=True).items()}
    ours = to_tensors("w", quantize_nf4(weight, double_quant=double_quant))
    assert save(ours) == save(theirs)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(33, 64), (7, 11), (24, 128)])
def test_we_read_a_layer_that_bitsandbytes_saved(
    shape: tuple[int, int], dtype: torch.dtype, double_quant: bool
) -> None:
    layer = bnb.nn.Linear4bit(
        shape[1], shape[0], bias=False, compress_statistics=double_quant, quant_type="nf4"
    )
    layer.weight = bnb.nn.Params4bit(
        _weight(*shape, dtype=dtype),
        requires_grad=False,
        compress_statistics=double_quant,
        quant_type="nf4",
    )
    layer = layer.to("cpu")
    q = from_tensors("weight", load(save(layer.state_dict())))
    assert (q.shape, q.dtype, q.nested) == (shape, dtype, double_quant)
    expected = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(dequantize_nf4(q), expected)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(33, 64), (7, 11), (24, 128)])
def test_bitsandbytes_reads_a_layer_that_we_saved(
    shape: tuple[int, int], dtype: torch.dtype, double_quant: bool
) -> None:
    layer = NF4Linear.from_weight(_weight(*shape, dtype=dtype), double_quant=double_quant)
    saved = load(save(to_tensors("weight", layer.quantized)))
    stats = {key: value for key, value in saved.items() if key != "weight"}
    parameter = bnb.nn.Params4bit.from_prequantized(saved["weight"], stats, device="cpu")
    assert parameter.quant_state.nested is double_quant
    unpacked = functional.dequantize_4bit(parameter.data, parameter.quant_state)
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked, layer.weight)


def test_products_agree_with_linear4bit() -> None:
    weight, x = _weight(24, 128), _weight(5, 128, seed=1).requires_grad_()
    packed, state = _quantize(weight, double_quant=True)
    theirs = bnb.matmul_4bit(x, packed, quant_state=state)
    ours = NF4Linear.from_weight(weight)(x)
    torch.testing.assert_close(ours, theirs)
    (their_gradient,) = torch.autograd.grad(theirs.sum(), x)
    (our_gradient,) = torch.autograd.grad(ours.sum(), x)
    torch.testing.assert_close(our_gradient, their_gradient)
