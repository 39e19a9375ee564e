"""The compiled norms against the plain ones in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rango.kernels import dispatch, norm
from rango.numerics import norm as reference

EPS = 1e-6
shared = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
shapes = st.tuples(st.integers(0, 5), st.integers(1, 150))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def assert_near(found: Tensor, exact: Tensor, share: float) -> None:
    """Within `share` of the largest magnitude in each row."""
    bound = share * exact.abs().amax(-1, keepdim=True) if exact.numel() else exact
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= bound + 1e-30).all()


@pytest.mark.usefixtures("variant")
@shared
@given(shapes, st.sampled_from([0.0, 1.0]), st.sampled_from([1e-4, 1.0, 1e6]))
def test_rms_norm(shape: tuple[int, int], offset: float, scale: float) -> None:
    x, weight = scale * normal(*shape), normal(shape[1], seed=1)
    grad, stream = normal(*shape, seed=2), normal(*shape, seed=3)
    exact = reference.rms_norm(*wide(x, weight), EPS, offset=offset)
    # every operation rounds once, and 1/√ halves the error of the mean
    torch.testing.assert_close(
        norm.rms_norm(x, weight, EPS, offset=offset).double(), exact, rtol=4e-7, atol=0
    )
    exact = reference.rms_norm_backward(*wide(grad, x, weight), EPS, offset=offset)
    rstd = torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + EPS)
    terms = (rstd * grad * (offset + weight)).abs().amax(-1, keepdim=True)  # what dx is made of
    dx = norm.rms_norm_backward(grad, x, weight, EPS, offset=offset)
    assert ((dx - exact).abs() <= 1e-6 * terms).all()
    added = norm.rms_norm_backward(grad, x, weight, EPS, offset=offset, add_to=stream.clone())
    assert torch.equal(added, stream + dx)


@pytest.mark.usefixtures("variant")
@shared
@given(
    st.integers(0, 5),
    st.integers(9, 150),  # short rows magnify the rounding of their mean without bound
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 3.0]),
)
def test_layer_norm(rows: int, n: int, weighted: bool, biased: bool, mean: float) -> None:
    x, grad, stream = normal(rows, n) + mean, normal(rows, n, seed=2), normal(rows, n, seed=3)
    weight = normal(n, seed=1) if weighted else None
    bias = normal(n, seed=4) if biased else None
    y = norm.layer_norm(x, weight, bias, EPS)
    assert_near(y, reference.layer_norm(*wide(x, weight, bias), EPS), 1e-6)
    dx = norm.layer_norm_backward(grad, x, weight, EPS)
    assert_near(dx, reference.layer_norm_backward(*wide(grad, x, weight), EPS), 1e-6)
    added = norm.layer_norm_backward(grad, x, weight, EPS, add_to=stream.clone())
    assert torch.equal(added, stream + dx)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_layer_norm_of_short_rows(n: int) -> None:
    x, bias = normal(6, n), normal(n, seed=1)
    torch.testing.assert_close(
        norm.layer_norm(x, None, bias, EPS), reference.layer_norm(x, None, bias, EPS)
    )


@pytest.mark.usefixtures("variant")
def test_long_rows_are_summed_accurately() -> None:
    x, weight = normal(2, 16384).abs() + 1, torch.ones(16384)
    for n in (16384, 16383, 4097):
        part, ones = x[:, :n].contiguous(), weight[:n]
        exact = reference.rms_norm(*wide(part, ones), EPS)
        torch.testing.assert_close(
            norm.rms_norm(part, ones, EPS).double(), exact, rtol=2e-7, atol=0
        )
        exact = reference.layer_norm(*wide(part, None, None), EPS)
        assert_near(norm.layer_norm(part, None, None, EPS), exact, 5e-7)


@pytest.mark.usefixtures("variant")
def test_in_place_is_the_same() -> None:
    x, weight, grad = normal(3, 77), normal(77, seed=1), normal(3, 77, seed=2)
    calls = (
        lambda t, out: norm.rms_norm(t, weight, EPS, out=out),
        lambda t, out: norm.layer_norm(t, weight, weight, EPS, out=out),
        lambda t, out: norm.rms_norm_backward(t, x, weight, EPS, out=out),
        lambda t, out: norm.layer_norm_backward(t, x, weight, EPS, out=out),
    )
    for call, start in zip(calls, (x, x, grad, grad), strict=True):
        place = start.clone()
        assert call(place, place) is place
        assert torch.equal(place, call(start, None))


@pytest.mark.usefixtures("variant")
def test_any_number_of_threads_gives_the_same() -> None:
    x, weight, grad = normal(517, 301), normal(301, seed=1), normal(517, 301, seed=2)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            (
                norm.rms_norm(x, weight, EPS),
                norm.rms_norm_backward(grad, x, weight, EPS),
                norm.layer_norm(x, weight, weight, EPS),
                norm.layer_norm_backward(grad, x, weight, EPS),
            )
        )
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    torch.testing.assert_close(results[0][0], reference.rms_norm(x, weight, EPS))


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("value", [0.0, 1e-42, 1e19, -1e25, torch.inf, -torch.inf, torch.nan])
def test_extreme_rows_end_as_the_reference_has_them(value: float) -> None:
    x, weight, grad = normal(3, 21), normal(21, seed=1), normal(3, 21, seed=2)
    x[1] = 0 if value == 0 else x[1]
    x[1, 4] = value
    for name, operands in (
        ("rms_norm", (x, weight)),
        ("layer_norm", (x, weight, weight)),
        ("rms_norm_backward", (grad, x, weight)),
        ("layer_norm_backward", (grad, x, weight)),
    ):
        found = getattr(norm, name)(*operands, EPS)
        expected = getattr(reference, name)(*operands, EPS)
        assert torch.equal(found.isfinite(), expected.isfinite()), name
        kept = [0, 2] if not expected.isfinite().all() or abs(value) > 1e18 else [0, 1, 2]
        torch.testing.assert_close(found[kept], expected[kept], rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.usefixtures("variant")
def test_the_compiled_kernel_serves_and_hands_back_what_it_cannot_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight = normal(4, 10), normal(10)
    odd = [(normal(10, 4).T, weight), (x.double(), weight.double()), (x, weight[:1])]
    for tensors in odd:
        assert torch.equal(norm.rms_norm(*tensors, EPS), reference.rms_norm(*tensors, EPS))
    leaf = x.clone().requires_grad_()
    norm.rms_norm(leaf, weight, EPS).sum().backward()  # traced by autograd
    torch.testing.assert_close(
        leaf.grad, norm.rms_norm_backward(torch.ones(4, 10), x, weight, EPS), rtol=1e-5, atol=1e-6
    )
    with dispatch.using("reference"):
        assert torch.equal(norm.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    monkeypatch.setattr(norm, "reference", None)
    norm.rms_norm(x[None], weight, EPS)
    norm.rms_norm_backward(x, x, weight, EPS)
    norm.layer_norm(x, weight, None, EPS)
    norm.layer_norm_backward(x, x, None, EPS)
