"""int8 on disk: round trips, and files that are not what they should be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from rango.base.int8_files import from_tensors, owner, to_tensors
from rango.base.load import load_base
from rango.base.save import save_base
from rango.errors import CheckpointError
from rango.numerics.int8 import quantize_int8

NAME = "a.up_proj.weight"


def _tensors() -> dict[str, Tensor]:
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    return to_tensors(NAME, quantize_int8(weight))


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([torch.float32, torch.bfloat16]))
def test_round_trip(rows: int, columns: int, dtype: torch.dtype) -> None:
    q = quantize_int8(torch.randn(rows, columns).to(dtype))
    tensors = load(save(to_tensors(NAME, q)))
    assert set(tensors) == {NAME, "a.up_proj.SCB", "a.up_proj.weight_format"}
    read = from_tensors(NAME, tensors, dtype)
    assert torch.equal(read.codes, q.codes)
    assert torch.equal(read.scales, q.scales)
    assert read.dtype == dtype


@pytest.mark.parametrize(
    ("tensor", "weight"),
    [
        ("a.b.SCB", "a.b.weight"),
        ("a.b.weight_format", "a.b.weight"),
        ("a.weight", None),
        ("SCB", None),
        ("a.bias", None),
    ],
)
def test_owner_of_a_piece(tensor: str, weight: str | None) -> None:
    assert owner(tensor) == weight


def test_the_format_may_be_absent() -> None:
    tensors = _tensors()
    del tensors["a.up_proj.weight_format"]
    assert from_tensors(NAME, tensors, torch.float32).shape == (6, 9)


@pytest.mark.parametrize(
    ("piece", "value", "fault"),
    [
        (NAME, None, "a.up_proj.weight is missing"),
        ("a.up_proj.SCB", None, "a.up_proj.SCB is missing"),
        (
            NAME,
            torch.zeros(54, dtype=torch.int8),
            r"expected torch.int8 \(out, in\), found .*\[54\]",
        ),
        (NAME, torch.zeros(6, 9), r"expected torch.int8 \(out, in\), found torch.float32"),
        ("a.up_proj.SCB", torch.zeros(5), r"float32 of shape \[6\], found .* of shape \[5\]"),
        ("a.up_proj.SCB", torch.zeros(6).half(), "found torch.float16"),
        ("a.up_proj.SCB", torch.full((6,), torch.nan), "negative number, NaN or infinity"),
        ("a.up_proj.SCB", torch.full((6,), -1.0), "negative number, NaN or infinity"),
        ("a.up_proj.weight_format", torch.tensor(2, dtype=torch.uint8), r"row by row\), found 2"),
    ],
)
def test_what_is_no_int8_weight_is_refused(piece: str, value: Tensor | None, fault: str) -> None:
    tensors = _tensors()
    if value is None:
        del tensors[piece]
    else:
        tensors[piece] = value
    with pytest.raises(CheckpointError, match=f"{NAME}: not an int8 weight: .*{fault}"):
        from_tensors(NAME, tensors, torch.float32)


def test_a_checkpoint_without_its_constants_is_refused(saved, files, tmp_path):
    base = load_base(saved("llama")[0], quantize="int8")
    copy = save_base(base, tmp_path / "copy")
    tensors = files.tensors(copy)
    del tensors["model.layers.0.mlp.up_proj.SCB"]
    del tensors["model.layers.0.mlp.up_proj.weight_format"]
    files.rewrite(copy, tensors)
    with pytest.raises(CheckpointError, match=r"up_proj.SCB is missing"):
        load_base(copy)


def test_a_head_that_is_stored_in_int8_stays_so(saved, tmp_path):
    from rango.base.linear import Int8Linear

    base = load_base(saved("llama", torch.bfloat16)[0], quantize="int8")
    head = Int8Linear.from_weight(base.model.lm_head.weight)
    base.model.set_submodule("lm_head", head)
    again = load_base(save_base(base, tmp_path / "copy"))
    assert torch.equal(again.model.lm_head.codes, head.codes)
