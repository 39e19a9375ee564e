from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from rango.numerics.dynamic8 import dequantize_dynamic8, dynamic_map, quantize_dynamic8

GOLDEN = Path(__file__).parents[1] / "golden" / "nf4.safetensors"


def test_map_is_the_golden_one() -> None:
    assert torch.equal(dynamic_map(), load_file(GOLDEN)["dynamic8.map"])


def test_map_is_a_sign_a_decade_and_a_fraction() -> None:
    code = dynamic_map()
    assert code.dtype == torch.float32
    assert (code.diff() > 0).all()
    assert code[127] == 0
    assert code[255] == 1
    assert torch.equal(code[:127], -code[128:255].flip(0))
    for decade in range(7):
        low, high = 10.0 ** (decade - 7), 10.0 ** (decade - 6)
        assert ((code > low) & (code < high)).sum() == 2**decade


def test_map_cannot_be_changed_from_outside() -> None:
    dynamic_map().zero_()
    assert dynamic_map()[255] == 1


def test_codes_are_the_golden_ones() -> None:
    golden = load_file(GOLDEN)
    codes, absmax = quantize_dynamic8(golden["dynamic8.values"])
    assert torch.equal(codes, golden["dynamic8.codes"])
    assert torch.equal(absmax, golden["dynamic8.absmax"])


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_error_is_at_most_half_a_step_and_a_position(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    code = dynamic_map()
    codes, absmax = quantize_dynamic8(values)
    scale = absmax.repeat_interleave(256)[:count]
    best = (values / scale).unsqueeze(1).sub(code).abs().amin(dim=1)
    error = (dequantize_dynamic8(codes, absmax, code) - values).abs() / scale
    assert (error <= best + 2 / 65535).all()


def test_zeros_read_back_as_zeros() -> None:
    codes, absmax = quantize_dynamic8(torch.zeros(300))
    assert torch.equal(codes, torch.zeros(300, dtype=torch.uint8))
    assert torch.equal(absmax, torch.zeros(2))
    assert torch.equal(dequantize_dynamic8(codes, absmax, dynamic_map()), torch.zeros(300))


@settings(deadline=None, max_examples=40, database=None, derandomize=True)
@given(st.integers(1, 900), st.sampled_from([64, 256]), st.integers(0, 1000))
def test_blocks_do_not_touch_each_other(count: int, blocksize: int, seed: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    codes, absmax = quantize_dynamic8(values, blocksize)
    alone = [quantize_dynamic8(block, blocksize) for block in values.split(blocksize)]
    assert torch.equal(codes, torch.cat([block_codes for block_codes, _ in alone]))
    assert torch.equal(absmax, torch.cat([block_absmax for _, block_absmax in alone]))
    read = dequantize_dynamic8(codes, absmax, dynamic_map(), blocksize)
    assert torch.equal(
        read, dynamic_map()[codes.int()] * absmax.repeat_interleave(blocksize)[:count]
    )
