"""Sums of products with few rows, as decoding computes them, against fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rango.kernels import dispatch, products
from rango.numerics.int8 import quantize_int8
from rango.numerics.nf4 import NF4Tensor, quantize_nf4
from rango.numerics.products import FrozenWeight, Term, widen

BUILDS = [mode for mode in dispatch.available() if mode != "reference"]
pytestmark = pytest.mark.skipif(not BUILDS, reason="the compiled kernels are not installed")


def _coarse(w: Tensor) -> NF4Tensor:
    """NF4 of blocks of 128, as others may write them."""
    generator = torch.Generator().manual_seed(w.numel())
    return NF4Tensor(
        packed=torch.randint(
            0, 256, ((w.numel() + 1) // 2, 1), dtype=torch.uint8, generator=generator
        ),
        absmax=torch.rand(-(-w.numel() // 128), generator=generator),
        code=torch.randn(16, generator=generator),
        shape=tuple(w.shape),
        dtype=torch.float32,
        blocksize=128,
    )


KINDS = {
    "fp32": lambda w: w,
    "fp32 rows apart": lambda w: torch.cat([w, torch.full_like(w, torch.nan)], 1)[:, : w.shape[1]],
    "bf16": lambda w: w.bfloat16(),
    "fp16": lambda w: w.half(),
    "int8": quantize_int8,
    "nf4": lambda w: quantize_nf4(w, double_quant=False),
    "nf4 nested": quantize_nf4,
    "nf4 coarse": _coarse,
}


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _exact(terms: list[Term], start: Tensor | None, rows: int, columns: int) -> Tensor:
    """The sum in fp64."""
    total = torch.zeros(rows, columns, dtype=torch.float64)
    if start is not None:
        total += start.double()
    for term in terms:
        covered = slice(*(term.rows or (0, rows)))
        total[covered] += term.a.double() @ widen(term.b).double().T
    return total


def _assert_close(found: Tensor, expected: Tensor, depth: int) -> None:
    """Within what sums of `depth` products of this size may differ by in fp32."""
    bound = 3e-7 * max(depth, 4) ** 0.5 * float(expected.abs().max().clamp(min=1.0))
    assert float((found.double() - expected).abs().max()) <= bound


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 17),
    depth=st.one_of(st.integers(1, 80), st.sampled_from([255, 256, 257, 448, 641, 896])),
    columns=st.one_of(st.integers(1, 40), st.sampled_from([64, 130, 515])),
    begin=st.sampled_from(["nothing", "line", "matrix", "itself"]),
    order=st.sampled_from(["rows", "columns", "part"]),
    seed=st.integers(0, 2**16),
)
def test_every_kind_in_every_shape(
    build: str, kind: str, rows: int, depth: int, columns: int, begin: str, order: str, seed: int
) -> None:
    weight: FrozenWeight = KINDS[kind](_randn(columns, depth, seed=seed))
    a = {
        "rows": _randn(rows, depth, seed=seed + 1),
        "columns": _randn(depth, rows, seed=seed + 1).T,
        "part": _randn(rows, depth + 5, seed=seed + 1)[:, 2 : depth + 2],
    }[order]
    out = torch.full((rows, columns + 3), 7.0)
    sums = out[:, :columns]
    starts = {
        "nothing": None,
        "line": _randn(columns, seed=seed + 2),
        "matrix": _randn(rows, columns, seed=seed + 2),
        "itself": sums,
    }
    terms = [Term(a, weight, transposed=True)]
    expected = _exact(terms, starts[begin], rows, columns)
    with dispatch.using(build):
        products.sum_products(terms, out=sums, start=starts[begin])
    _assert_close(sums, expected, depth)
    assert (out[:, columns:] == 7).all()


@pytest.mark.parametrize("r", [1, 4, 8, 12, 16, 64])
@pytest.mark.parametrize("batch", [1, 2, 8, 16])
def test_an_adapter_for_each_row(variant: str, threads: int, batch: int, r: int) -> None:
    x, base = _randn(batch, 96), quantize_nf4(_randn(200, 96))
    A, B = _randn(batch, r, 96, seed=1), _randn(batch, 200, r, seed=2)
    down = [Term(x[i : i + 1], A[i], True, (i, i + 1)) for i in range(batch)]
    h = products.sum_products(down, out=torch.empty(batch, r))
    _assert_close(h, _exact(down, None, batch, r), 96)
    up = [Term(x, base, True)]
    up += [Term(h[i : i + 1], B[i], True, (i, i + 1)) for i in range(0, batch, 2)]
    bias = _randn(200, seed=3)
    y = products.sum_products(up, out=torch.empty(batch, 200), start=bias)
    _assert_close(y, _exact(up, bias, batch, 200), 96 + r)


def test_terms_may_overlap_and_leave_rows_out(variant: str) -> None:
    terms = [
        Term(_randn(3, 16), _randn(30, 16), True, (2, 5)),
        Term(_randn(4, 20), _randn(30, 20).bfloat16(), True, (1, 5)),
        Term(_randn(0, 20), _randn(30, 20), True, (4, 4)),
    ]
    out = torch.full((8, 30), torch.nan)
    products.sum_products(terms, out=out)
    _assert_close(out, _exact(terms, None, 8, 30), 36)
    assert (out[[0, 5, 6, 7]] == 0).all()


def test_no_terms_are_the_start(variant: str) -> None:
    start = _randn(3, 11)
    assert torch.equal(products.sum_products([], out=torch.empty(3, 11), start=start), start)
    assert torch.equal(products.sum_products([], out=torch.empty(3, 11)), torch.zeros(3, 11))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others_nor_on_threads(variant: str, kind: str) -> None:
    x, weight = _randn(16, 300), KINDS[kind](_randn(150, 300, seed=1))
    h, B = _randn(16, 12, seed=2), _randn(150, 12, seed=3)
    before = torch.get_num_threads()
    found = []
    try:
        for count, threads in [*((n, 1) for n in range(1, 17)), (16, 2), (5, 3)]:
            torch.set_num_threads(threads)
            terms = [Term(x[:count], weight, True), Term(h[:count], B, True)]
            found.append(products.sum_products(terms, out=torch.empty(count, 150)))
    finally:
        torch.set_num_threads(before)
    for each in found:
        assert torch.equal(each, found[15][: len(each)])
    last = products.sum_products(
        [Term(x[15:], weight, True), Term(h[15:], B, True)], out=torch.empty(1, 150)
    )
    assert torch.equal(last, found[15][15:])


def test_nan_stays_in_its_row_and_column(variant: str) -> None:
    x, weight = _randn(7, 21), _randn(37, 21)
    x[2, 20] = torch.nan
    weight[9, 0] = torch.inf
    out = products.sum_products([Term(x, weight, True)], out=torch.empty(7, 37))
    spoilt = torch.zeros(7, 37, dtype=torch.bool)
    spoilt[2], spoilt[:, 9] = True, True
    assert torch.equal(~out.isfinite(), spoilt)


def test_more_terms_than_the_narrow_form_takes(variant: str) -> None:
    terms = [
        Term(_randn(1, 8, seed=i), _randn(20, 8, seed=i + 99), True, (0, 1)) for i in range(70)
    ]
    out = products.sum_products(terms, out=torch.empty(2, 20))
    _assert_close(out, _exact(terms, None, 2, 20), 560)
