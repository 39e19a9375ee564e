"""The compiled AdamW against the plain one and torch.optim's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rango.kernels import adamw, dispatch
from rango.numerics import adamw as reference

OPTIONS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
shared = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tables(rows: int, n: int) -> list[Tensor]:
    """Weights, gradients of very different sizes, and averages as steps leave them."""
    gradients = normal(rows, n, seed=1) * 10 ** normal(rows, n, seed=2)
    average, square = 0.3 * normal(rows, n, seed=3) * gradients, gradients**2 * 0.01
    return [normal(rows, n), gradients, average, square]


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    """The averages to a few ulp, the weights to that and 3e-7, for steps of about 1e-2."""
    for a, b in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-6, atol=1e-7 * float(b.abs().max()) if b.numel() else 0
        )
    torch.testing.assert_close(found[0], expected[0], rtol=2e-7, atol=3e-7)
    assert torch.equal(found[1], expected[1])


@pytest.mark.usefixtures("variant")
@shared
@given(
    st.integers(0, 4),
    st.integers(1, 60),
    st.sampled_from(["all", "row", "column", "element"]),
    st.sampled_from([0.9, 0.3, 0.0]),
    st.sampled_from([1e-8, 0.0]),
)
def test_one_step(rows: int, n: int, rate: str, beta1: float, eps: float) -> None:
    shape = {"all": (), "row": (rows, 1), "column": (1, n), "element": (rows, n)}[rate]
    rates = 1e-2 * (1 + normal(*shape, seed=5).abs().double())
    steps = torch.arange(1, rows + 1) ** 2
    options = OPTIONS | {"beta1": beta1, "eps": eps}
    plain, found = tables(rows, n), [t.clone() for t in tables(rows, n)]
    reference.adamw_(*plain, steps, rates, **options)
    adamw.adamw_(*found, steps, rates, **options)
    assert_near(found, plain)
    apart = [torch.cat([t, t], dim=1)[:, :n] for t in tables(rows, n)]
    adamw.adamw_(*apart, steps, rates, **options)
    assert all(torch.equal(a, b) for a, b in zip(apart, found, strict=True))


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_twenty_steps_equal_torchs(decay: float) -> None:
    table = normal(2, 1500)
    leaves = [nn.Parameter(row.clone()) for row in table]
    rates = [1e-2, 3e-3]
    optimizers = [
        torch.optim.AdamW([leaf], lr=rate, weight_decay=decay)
        for leaf, rate in zip(leaves, rates, strict=True)
    ]
    m, v, steps = torch.zeros_like(table), torch.zeros_like(table), torch.zeros(2)
    for step in range(20):
        gradients = normal(2, 1500, seed=step)
        steps += 1
        column = torch.tensor(rates, dtype=torch.float64)[:, None]
        adamw.adamw_(table, gradients, m, v, steps, column, **(OPTIONS | {"weight_decay": decay}))
        for leaf, optimizer, gradient in zip(leaves, optimizers, gradients, strict=True):
            leaf.grad = gradient.clone()
            optimizer.step()
    expected = torch.stack([leaf.detach() for leaf in leaves])
    torch.testing.assert_close(table, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.usefixtures("variant")
def test_without_epsilon_untouched_elements_are_only_decayed() -> None:
    table, gradients, m, v = normal(1, 50), normal(1, 50, seed=1), *torch.zeros(2, 1, 50)
    gradients[:, ::3] = 0
    before, rate = table.clone(), torch.tensor(0.5, dtype=torch.float64)
    adamw.adamw_(table, gradients, m, v, torch.ones(1), rate, **(OPTIONS | {"eps": 0.0}))
    assert torch.equal(table[:, ::3], before[:, ::3] * 0.95)
    torch.testing.assert_close(table, before * 0.95 - 0.5 * gradients.sign())


@pytest.mark.usefixtures("variant")
def test_what_is_not_finite_spoils_its_own_element_alone() -> None:
    plain, found = tables(2, 40), tables(2, 40)
    for each in (plain, found):
        each[1][0, 7], each[1][1, 33], each[0][0, 20] = torch.nan, torch.inf, -torch.inf
    rate, steps = torch.tensor(1e-2), torch.ones(2)
    reference.adamw_(*plain, steps, rate, **OPTIONS)
    adamw.adamw_(*found, steps, rate, **OPTIONS)
    torch.testing.assert_close(found, plain, equal_nan=True, rtol=1e-5, atol=1e-6)
    assert int((~found[0].isfinite()).sum()) == 3


@pytest.mark.usefixtures("variant")
def test_any_number_of_threads_gives_the_same() -> None:
    results = []
    start = tables(3, 50_001)
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        each = [table.clone() for table in start]
        adamw.adamw_(*each, torch.ones(3), torch.tensor(1e-2), **OPTIONS)
        results.append([*each, adamw.row_norms(each[1])])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("variant")
@shared
@given(st.integers(0, 4), st.sampled_from([0, 1, 7, 64, 1025, 16385, 40_000]))
def test_row_norms(rows: int, n: int) -> None:
    table = normal(rows, n + 3)[:, 1 : n + 1]
    exact = reference.row_norms(table.double())
    torch.testing.assert_close(adamw.row_norms(table).double(), exact, rtol=2e-7, atol=0)


@pytest.mark.usefixtures("variant")
def test_the_compiled_kernel_serves_and_hands_back_what_it_cannot_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, rate = torch.ones(2), torch.tensor(1e-2, dtype=torch.float64)
    for change in (torch.Tensor.double, lambda t: t.T.contiguous().T):
        plain, found = ([change(t) for t in tables(2, 9)] for _ in range(2))
        reference.adamw_(*plain, steps, rate, **OPTIONS)
        adamw.adamw_(*found, steps, rate, **OPTIONS)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    with pytest.raises(RuntimeError):
        adamw.adamw_(*tables(2, 9), steps, torch.ones(3, 1), **OPTIONS)
    with dispatch.using("reference"):
        table = normal(2, 9)
        assert torch.equal(adamw.row_norms(table), reference.row_norms(table))
    monkeypatch.setattr(reference, "adamw_", None)
    adamw.adamw_(*tables(2, 9), steps, rate, **OPTIONS)
