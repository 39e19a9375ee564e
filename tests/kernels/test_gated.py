"""The compiled activations against the plain ones in fp64, and at the ends of fp32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rango.errors import ConfigError
from rango.kernels import dispatch, gated
from rango.numerics import gated as reference
from rango.numerics.gated import ACTIVATIONS

shared = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid() -> Tensor:
    """The whole range where activations bend, and tiny numbers; the length is odd."""
    parts = [torch.linspace(-30, 30, 60001), torch.linspace(-1, 1, 20001), normal(999) * 1e-3]
    return torch.cat([*parts, torch.tensor([0.0, -0.0, 1e-42, -1e-42, 1e-30])])


@pytest.mark.usefixtures("variant")
@activations
def test_value_and_slope(activation: str) -> None:
    x = grid()
    exact = reference.activate(x.double(), activation)
    error = (gated.activate(x, activation) - exact).abs()
    assert (error <= 2e-7 * x.double().abs()).all()  # each is x times something from 0 to 1
    slope = reference.activate_backward(torch.ones_like(exact), x.double(), activation)
    error = (gated.activate_backward(torch.ones_like(x), x, activation) - slope).abs()
    assert (error <= 5e-7 * (1 + x.double().abs())).all()


@pytest.mark.usefixtures("variant")
@activations
@shared
@given(rows=st.integers(0, 4), n=st.integers(0, 70))
def test_halves_of_one_buffer(activation: str, rows: int, n: int) -> None:
    fused, grad = 3 * normal(rows, 2 * n + 3), normal(rows, n, seed=1)
    gate, up, rest = fused[:, :n], fused[:, n : 2 * n], fused[:, 2 * n :].clone()
    wide = [t.double() for t in (grad, gate, up)]
    close = {"rtol": 2e-6, "atol": 4e-6}
    y = gated.gated(gate, up, activation)
    torch.testing.assert_close(y.double(), reference.gated(*wide[1:], activation), **close)
    assert torch.equal(gated.gated(gate.contiguous(), up.contiguous(), activation), y)
    place = gate.clone()
    assert gated.gated(place, up, activation, out=place) is place
    assert torch.equal(place, y)
    exact = reference.gated_backward(*wide, activation)
    apart = gated.gated_backward(grad, gate, up, activation)
    for found, expected in zip(apart, exact, strict=True):
        torch.testing.assert_close(found.double(), expected, **close)
    pair = gated.gated_backward(grad, gate, up, activation, out=(gate, up))
    assert pair == (gate, up) or (pair[0] is gate and pair[1] is up)
    assert torch.equal(gate, apart[0])
    assert torch.equal(up, apart[1])
    assert torch.equal(fused[:, 2 * n :], rest)


@pytest.mark.usefixtures("variant")
@activations
def test_extremes_end_as_torchs(activation: str) -> None:
    x = torch.tensor([80, -80, 88, -88, 100, -100, 1e15, -1e15, 1e38, -1e38, 0, 1e-45, torch.nan])
    one = torch.ones_like(x)
    for found, expected in (
        (gated.activate(x, activation), reference.activate(x, activation)),
        (gated.gated(x, one, activation), reference.gated(x, one, activation)),
        (
            gated.activate_backward(one, x, activation),
            reference.activate_backward(one, x, activation),
        ),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-30, equal_nan=True)
    for infinite in (torch.inf, -torch.inf):
        ends = torch.full((9,), infinite)
        found, expected = gated.activate(ends, activation), reference.activate(ends, activation)
        if infinite > 0:  # where torch's gelu is NaN for some lengths
            expected = ends
        torch.testing.assert_close(found, expected, equal_nan=True)
        slopes = torch.ones(9), ends, activation
        found, expected = gated.activate_backward(*slopes), reference.activate_backward(*slopes)
        torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.usefixtures("variant")
@activations
def test_what_is_not_finite_passes_the_gate(activation: str) -> None:
    gate, up = torch.ones(17), torch.ones(17)
    gate[3], up[9], up[16] = torch.nan, torch.nan, torch.inf
    found = gated.gated(gate, up, activation), *gated.gated_backward(up, gate, up, activation)
    expected = (
        reference.gated(gate, up, activation),
        *reference.gated_backward(up, gate, up, activation),
    )
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=2e-6, atol=1e-6)


@pytest.mark.usefixtures("variant")
def test_any_number_of_threads_gives_the_same() -> None:
    gate, up, grad = normal(203, 501), normal(203, 501, seed=1), normal(203, 501, seed=2)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = gated.gated(gate, up, "gelu")
        results.append((y, *gated.gated_backward(grad, gate, up, "silu")))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    torch.testing.assert_close(results[0][0], reference.gated(gate, up, "gelu"))


@pytest.mark.usefixtures("variant")
def test_the_compiled_kernel_serves_and_hands_back_what_it_cannot_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, up = normal(4, 6), normal(4, 6, seed=1)
    for pair in ((x.T, up.T), (x.double(), up.double()), (x, up[:1]), (x[:1].expand(4, 6), up)):
        assert torch.equal(gated.gated(*pair, "silu"), reference.gated(*pair, "silu"))
    with pytest.raises(ConfigError, match="expected one of silu"):
        gated.gated(x, up, "tanh")
    with pytest.raises(RuntimeError):
        gated.gated(x, up, "silu", out=x[:1].expand(4, 6))
    with dispatch.using("reference"):
        assert torch.equal(gated.activate(x, "silu"), reference.activate(x, "silu"))
    sliced = normal(4, 2, 6)[:, :1]  # its second stride means nothing
    torch.testing.assert_close(gated.activate(sliced, "silu"), reference.activate(sliced, "silu"))
    monkeypatch.setattr(gated, "reference", None)
    gated.gated(x[None], up[None], "gelu")
    gated.gated_backward(x, x, up, "relu")
    gated.activate(normal(4, 30)[:, 3:20], "silu")
    gated.activate_backward(x[0], x[0], "silu")
