"""Rotary embedding against Llama's own, and its transpose against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rango.numerics.rotary import rotate


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def angles(tokens: int, rotated: int) -> tuple[Tensor, Tensor]:
    halves = normal(tokens, rotated // 2, seed=7)
    both = torch.cat([halves, halves], dim=1)
    return both.cos(), both.sin()


def test_is_llamas_own_to_the_bit() -> None:
    x = normal(11, 3, 16)
    cos, sin = angles(11, 16)
    expected, _ = apply_rotary_pos_emb(x[None], x[None], cos[None], sin[None], unsqueeze_dim=2)
    assert torch.equal(rotate(x, cos, sin), expected[0])


def test_columns_past_the_rotated_stay() -> None:
    x = normal(5, 2, 12)
    cos, sin = angles(5, 8)
    y = rotate(x, cos, sin)
    assert torch.equal(y[..., :8], rotate(x[..., :8], cos, sin))
    assert torch.equal(y[..., 8:], x[..., 8:])


@pytest.mark.parametrize("rotated", [4, 10])
def test_inverse_is_the_transpose_and_turns_back(rotated: int) -> None:
    x = normal(4, 2, 10).double().requires_grad_()
    cos, sin = (t.double() for t in angles(4, rotated))
    grad = normal(4, 2, 10, seed=3).double()
    (expected,) = torch.autograd.grad(rotate(x, cos, sin), x, grad)
    torch.testing.assert_close(rotate(grad, cos, sin, inverse=True), expected)
    back = rotate(rotate(x.detach(), cos, sin), cos, sin, inverse=True)
    torch.testing.assert_close(back, x.detach())


def test_the_transpose_holds_for_halves_that_differ() -> None:
    x = normal(4, 2, 6).requires_grad_()
    cos, sin, grad = normal(4, 6, seed=1), normal(4, 6, seed=2), normal(4, 2, 6, seed=3)
    (expected,) = torch.autograd.grad(rotate(x, cos, sin), x, grad)
    torch.testing.assert_close(rotate(grad, cos, sin, inverse=True), expected)


def test_in_place_in_a_part_of_a_fused_buffer() -> None:
    fused = normal(6, 40)
    before = fused.clone()
    cos, sin = angles(6, 8)
    part = fused[:, 8:32].view(6, 3, 8)
    expected = rotate(part.clone(), cos, sin)
    assert rotate(part, cos, sin, out=part) is part
    assert torch.equal(fused[:, 8:32].reshape(6, 3, 8), expected)
    assert torch.equal(fused[:, :8], before[:, :8])
    assert torch.equal(fused[:, 32:], before[:, 32:])
