"""What the kernels write to is fp32 on the CPU, whatever PyTorch makes by default."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from rango.kernels import attention, int8, nf4
from rango.numerics import attention as plain_attention
from rango.numerics import dynamic8
from rango.numerics import int8 as plain_int8
from rango.numerics import nf4 as plain_nf4


@pytest.fixture(params=[torch.float64, torch.bfloat16])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    dynamic8._dynamic_map.cache_clear()
    dynamic8.nearest_codes.cache_clear()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def assert_same(found: object, expected: object) -> None:
    for field in fields(expected):  # type: ignore[arg-type]
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, Tensor):
            assert a.dtype == b.dtype, field.name
            assert torch.equal(a, b), field.name


@pytest.mark.usefixtures("variant", "default_dtype")
@pytest.mark.parametrize("double_quant", [False, True])
def test_nf4(double_quant: bool) -> None:
    weight = normal(300, 64)
    found = nf4.quantize_nf4(weight, double_quant=double_quant)
    assert_same(found, plain_nf4.quantize_nf4(weight, double_quant=double_quant))
    assert found.code.dtype == torch.float32
    constants = found.nested_absmax if double_quant else found.absmax
    assert constants is not None
    assert constants.dtype == torch.float32
    assert torch.equal(nf4.dequantize_nf4(found), plain_nf4.dequantize_nf4(found))


@pytest.mark.usefixtures("variant", "default_dtype")
def test_int8() -> None:
    weight = normal(500, 8)
    found = int8.quantize_int8(weight)
    assert_same(found, plain_int8.quantize_int8(weight))
    assert found.scales.dtype == torch.float32


@pytest.mark.usefixtures("variant", "default_dtype")
def test_attention() -> None:
    q, bounds = normal(200, 2, 16), torch.tensor([0, 200])
    out, lse = attention.attention(q, q, q, bounds, scale=0.2)
    expected, sums = plain_attention.attention(q, q, q, bounds, scale=0.2)
    assert (out.dtype, lse.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close((out, lse), (expected, sums), rtol=1e-5, atol=1e-5)


def test_tables_made_when_imported() -> None:
    code = (
        "import torch; torch.set_default_dtype(torch.float64); torch.set_default_device('meta');"
        "from rango.numerics import dynamic8, nf4;"
        "tables = (nf4.NF4_CODE, nf4.NF4_THRESHOLDS, dynamic8.dynamic_map());"
        "assert all(t.dtype == torch.float32 and t.is_cpu for t in tables);"
        "assert dynamic8.nearest_codes().is_cpu"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
