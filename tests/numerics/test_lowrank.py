"""LoRA's algebra against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from rango.numerics.lowrank import (
    alpha_for,
    delta_weight,
    low_rank_update,
    merged_weight,
    scaling,
    trainable_parameters,
)


def test_scaling_and_its_inverse() -> None:
    assert scaling(32, 16) == 2.0
    assert scaling(32, 16, use_rslora=True) == 8.0
    for rslora in (False, True):
        assert math.isclose(alpha_for(scaling(7, 3, rslora), 3, rslora), 7)


@pytest.mark.parametrize("r", [1, 3, 5, 7])
def test_update_is_the_product_with_delta(r: int) -> None:
    torch.manual_seed(0)
    x, lora_A, lora_B = torch.randn(4, 10), torch.randn(r, 10), torch.randn(6, r)
    expected = x @ delta_weight(lora_A, lora_B, 0.5).T
    torch.testing.assert_close(low_rank_update(x, lora_A, lora_B, 0.5), expected)
    assert torch.linalg.matrix_rank(delta_weight(lora_A, lora_B, 0.5)) == min(r, 6)


def test_merging_sums_in_fp32_and_rounds_once() -> None:
    weight = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)  # the next one is 1 + 2**-7
    delta = torch.tensor([[2.0**-9, 0.75 * 2.0**-7]])
    merged = merged_weight(weight, delta)
    assert merged.dtype == torch.bfloat16
    assert merged.tolist() == [[1.0, 1.0 + 2.0**-7]]


def test_gpt3_count() -> None:
    assert trainable_parameters([(12288, 12288)] * 96 * 2, r=4) == 18_874_368
