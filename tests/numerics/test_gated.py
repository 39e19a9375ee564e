"""Activations against transformers' table of them, and their slopes against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from rango.errors import ConfigError
from rango.numerics.gated import ACTIVATIONS, activate, activate_backward, gated, gated_backward


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_are_transformers_own(activation: str) -> None:
    x, up = 3 * normal(5, 33), normal(5, 33, seed=1)
    expected = ACT2FN[activation](x)
    torch.testing.assert_close(activate(x, activation), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gated(x, up, activation), expected * up, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_is_the_derivative(activation: str) -> None:
    x, up = (3 * normal(5, 33)).requires_grad_(), normal(5, 33, seed=1).requires_grad_()
    grad = normal(5, 33, seed=2)
    (expected,) = torch.autograd.grad(ACT2FN[activation](x), x, grad)
    dx = activate_backward(grad, x.detach(), activation)
    torch.testing.assert_close(dx, expected, rtol=1e-12, atol=1e-13)
    both = torch.autograd.grad(ACT2FN[activation](x) * up, (x, up), grad)
    got = gated_backward(grad, x.detach(), up.detach(), activation)
    torch.testing.assert_close(got, both, rtol=1e-12, atol=1e-13)


def test_outputs_may_be_inputs() -> None:
    gate, up, grad = normal(4, 6), normal(4, 6, seed=1), normal(4, 6, seed=2)
    y, d = gated(gate, up, "silu"), gated_backward(grad, gate, up, "silu")
    a, da = activate(gate, "gelu"), activate_backward(grad, gate, "gelu")
    pair = gate.clone(), up.clone()
    got = gated_backward(grad, *pair, "silu", out=pair)
    for result, place, expected in zip(got, pair, d, strict=True):
        assert result is place
        assert torch.equal(place, expected)
    for function, expected in (
        (lambda t: gated(t, up, "silu", out=t), y),
        (lambda t: activate(t, "gelu", out=t), a),
        (lambda t: activate_backward(grad, t, "gelu", out=t), da),
    ):
        place = gate.clone()
        assert function(place) is place
        assert torch.equal(place, expected)


@pytest.mark.parametrize("function", [activate, lambda x, name: activate_backward(x, x, name)])
def test_an_unknown_activation_is_refused(function: object) -> None:
    assert callable(function)
    with pytest.raises(ConfigError, match=r"found 'silo'.*silu"):
        function(normal(2, 2), "silo")
