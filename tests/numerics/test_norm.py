"""The norms against transformers' modules, torch's own, and autograd in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rango.numerics.norm import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward

EPS = 1e-5


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("module", "offset"), [(LlamaRMSNorm, 0.0), (GemmaRMSNorm, 1.0)])
@pytest.mark.parametrize("n", [1, 7, 64, 896])
def test_rms_norm_is_the_models_own(
    module: Callable[..., torch.nn.Module], offset: float, n: int
) -> None:
    norm, x = module(n, eps=EPS), 3 * normal(2, 5, n)
    with torch.no_grad():
        norm.weight.copy_(normal(n, seed=1))
        assert torch.equal(rms_norm(x, norm.weight, EPS, offset=offset), norm(x))


def test_layer_norm_is_torchs() -> None:
    x, weight, bias = 3 * normal(4, 300) + 5, normal(300, seed=1), normal(300, seed=2)
    for w, b in ((weight, bias), (weight, None), (None, None)):
        expected = functional.layer_norm(x, (300,), w, b, EPS)
        torch.testing.assert_close(layer_norm(x, w, b, EPS), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_backward_is_the_derivative(offset: float) -> None:
    x = normal(3, 4, 9, dtype=torch.float64).requires_grad_()
    weight, grad = normal(9, seed=1, dtype=torch.float64), normal(3, 4, 9, seed=2).double()
    y = rms_norm(x, weight, EPS, offset=offset)
    (expected,) = torch.autograd.grad(y, x, grad)
    dx = rms_norm_backward(grad, x.detach(), weight, EPS, offset=offset)
    torch.testing.assert_close(dx, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weighted", [True, False])
def test_layer_norm_backward_is_the_derivative(weighted: bool) -> None:
    x = normal(3, 4, 9, dtype=torch.float64).requires_grad_()
    weight = normal(9, seed=1, dtype=torch.float64) if weighted else None
    grad = normal(3, 4, 9, seed=2).double()
    (expected,) = torch.autograd.grad(functional.layer_norm(x, (9,), weight, None, EPS), x, grad)
    dx = layer_norm_backward(grad, x.detach(), weight, EPS)
    torch.testing.assert_close(dx, expected, rtol=1e-12, atol=1e-13)


def test_results_go_where_they_are_asked_to() -> None:
    x, weight, grad, stream = normal(4, 6), normal(6), normal(4, 6, seed=1), normal(4, 6, seed=2)
    y, dx = rms_norm(x, weight, EPS), rms_norm_backward(grad, x, weight, EPS)
    z, dz = layer_norm(x, weight, weight, EPS), layer_norm_backward(grad, x, weight, EPS)
    for plain, backward, expected in (
        (lambda t, out: rms_norm(t, weight, EPS, out=out), rms_norm_backward, (y, dx)),
        (lambda t, out: layer_norm(t, weight, weight, EPS, out=out), layer_norm_backward, (z, dz)),
    ):
        place = x.clone()
        assert plain(place, place) is place
        assert torch.equal(place, expected[0])
        place = grad.clone()
        assert backward(place, x, weight, EPS, out=place) is place
        assert torch.equal(place, expected[1])
        place = stream.clone()
        assert backward(grad, x, weight, EPS, add_to=place) is place
        assert torch.equal(place, stream + expected[1])
