"""The compiled sums of products against their plain statement."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rango.kernels import dispatch, products
from rango.numerics import products as reference
from rango.numerics.int8 import quantize_int8
from rango.numerics.nf4 import quantize_nf4
from rango.numerics.products import FrozenWeight, Term

BUILDS = [mode for mode in dispatch.available() if mode != "reference"]
pytestmark = pytest.mark.skipif(not BUILDS, reason="the compiled kernels are not installed")

KINDS = {
    "fp32": lambda w: w,
    "fp32 rows apart": lambda w: torch.cat([w, w], dim=1)[:, : w.shape[1]],
    "bf16": lambda w: w.bfloat16(),
    "fp16": lambda w: w.half(),
    "int8": quantize_int8,
    "nf4": lambda w: quantize_nf4(w, double_quant=False),
    "nf4 nested": quantize_nf4,
}


def _close(found: torch.Tensor, expected: torch.Tensor, depth: int) -> None:
    """Within what sums of `depth` products of this size may differ by in fp32."""
    bound = 1e-6 * max(depth, 4) ** 0.5 * float(expected.abs().max().clamp(min=1.0))
    assert float((found - expected).abs().max()) <= bound


def _widened(terms: list[Term], start: torch.Tensor | None, shape: tuple[int, int]) -> torch.Tensor:
    """The sum in fp64."""
    total = torch.zeros(shape, dtype=torch.float64)
    if start is not None:
        total += start.double()
    for term in terms:
        b = reference.widen(term.b).double()
        rows = slice(*(term.rows or (0, shape[0])))
        total[rows] += term.a.double() @ (b.T if term.transposed else b)
    return total.float()


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 70),
    depth=st.one_of(st.integers(1, 80), st.sampled_from([448, 449, 897, 1024])),
    columns=st.one_of(st.integers(1, 90), st.sampled_from([128, 130])),
    transposed=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
    begin=st.sampled_from(["nothing", "line", "matrix", "itself"]),
    seed=st.integers(0, 2**16),
)
def test_every_kind_in_every_shape(
    build: str,
    kind: str,
    rows: int,
    depth: int,
    columns: int,
    transposed: bool,
    threads: int,
    begin: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    shape = (columns, depth) if transposed else (depth, columns)
    weight: FrozenWeight = KINDS[kind](torch.randn(shape))
    terms = [Term(torch.randn(rows, depth), weight, transposed)]
    out = torch.randn(rows, columns)
    starts = {
        "nothing": None,
        "line": torch.randn(columns),
        "matrix": torch.randn(rows, columns),
        "itself": out,
    }
    expected = _widened(terms, starts[begin], (rows, columns))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with dispatch.using(build):
            products.sum_products(terms, out=out, start=starts[begin])
    finally:
        torch.set_num_threads(before)
    _close(out, expected, depth)


@pytest.mark.parametrize("build", BUILDS)
def test_terms_add_up_over_their_rows(build: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(100, 64), torch.randn(200, 64)
    terms = [
        Term(x, weight, transposed=True),
        Term(torch.randn(30, 8), torch.randn(200, 8), transposed=True, rows=(0, 30)),
        Term(torch.randn(1, 8), torch.randn(8, 200), rows=(30, 31)),
        Term(torch.randn(7, 100).T[:, :5], torch.randn(5, 200)),
    ]
    out = torch.empty(100, 300)[:, :200]
    with dispatch.using(build):
        products.sum_products(terms, out=out, start=weight[:, 0])
    _close(out, _widened(terms, weight[:, 0], (100, 200)), 77)


@pytest.mark.parametrize("build", BUILDS)
def test_a_term_may_cover_only_a_few_rows(build: str) -> None:
    term = Term(torch.ones(2, 3), torch.ones(3, 5), rows=(4, 6))
    out = torch.full((8, 5), 7.0)
    with dispatch.using(build):
        products.sum_products([term], out=out)
    assert torch.equal(out.sum(dim=1), torch.tensor([0.0, 0, 0, 0, 15, 15, 0, 0]))


@pytest.mark.parametrize("build", BUILDS)
def test_the_same_on_any_number_of_threads(build: str) -> None:
    torch.manual_seed(0)
    terms = [Term(torch.randn(130, 500), quantize_nf4(torch.randn(96, 500)), transposed=True)]
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with dispatch.using(build):
                found.append(products.sum_products(terms, out=torch.empty(130, 96)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_gradients_are_traced_by_the_reference() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    out = products.sum_products([Term(x, torch.ones(4, 2))], out=torch.zeros(3, 2))
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3, 4), 2.0))


def test_nan_stays_in_its_row() -> None:
    a = torch.randn(20, 33)
    a[7, 5] = torch.nan
    out = products.sum_products([Term(a, torch.randn(33, 40))], out=torch.empty(20, 40))
    assert out[7].isnan().all()
    assert not out[torch.arange(20) != 7].isnan().any()


A, W = torch.ones(3, 4), torch.ones(5, 4)
MISFITS = {
    "depth": Term(torch.ones(3, 7), W, transposed=True),
    "columns": Term(A, torch.ones(6, 4), transposed=True),
    "not transposed": Term(A, torch.ones(4, 6)),
    "rows": Term(A, W, transposed=True, rows=(0, 2)),
    "rows past the end": Term(A, W, transposed=True, rows=(1, 4)),
    "quantized": Term(torch.ones(3, 7), quantize_nf4(W), transposed=True),
    "one dimension": Term(A, W[0]),
}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("term", MISFITS.values(), ids=MISFITS)
def test_shapes_that_do_not_fit_raise_as_in_the_reference(build: str, term: Term) -> None:
    with pytest.raises(RuntimeError), dispatch.using("reference"):
        products.sum_products([term], out=torch.zeros(3, 5))
    with pytest.raises(RuntimeError), dispatch.using(build):
        products.sum_products([term], out=torch.zeros(3, 5))


@pytest.mark.parametrize("build", BUILDS)
def test_a_start_of_another_shape(build: str) -> None:
    term = Term(A, W, transposed=True)
    with dispatch.using(build):
        for start in (torch.ones(1), torch.ones(3, 1), torch.ones(1, 5)):  # broadcast
            out = products.sum_products([term], out=torch.zeros(3, 5), start=start)
            assert torch.equal(out, torch.full((3, 5), 5.0))
        for start in (torch.ones(4), torch.ones(2, 5), torch.ones(3, 4)):
            with pytest.raises(RuntimeError):
                products.sum_products([term], out=torch.zeros(3, 5), start=start)


NF4, INT8 = quantize_nf4(torch.randn(8, 96)), quantize_int8(torch.randn(8, 96))
UNREADABLE = {
    "packed short": replace(NF4, packed=NF4.packed[:-1]),
    "packed signed": replace(NF4, packed=NF4.packed.view(torch.int8)),
    "packed apart": replace(NF4, packed=NF4.packed.repeat(1, 2)[:, :1]),
    "constants short": replace(NF4, absmax=NF4.absmax[:-1]),
    "constants wide": replace(NF4, absmax=NF4.absmax.int()),
    "constants not nested": replace(NF4, nested_absmax=None),
    "code short": replace(NF4, code=NF4.code[:15]),
    "code in fp64": replace(NF4, code=NF4.code.double()),
    "nested short": replace(NF4, nested_absmax=torch.ones(0)),
    "nested in fp64": replace(NF4, nested_absmax=torch.ones(1, dtype=torch.float64)),
    "map short": replace(NF4, nested_code=torch.ones(255)),
    "no map": replace(NF4, nested_code=None),
    "no offset": replace(NF4, nested_offset=None),
    "odd blocks": replace(NF4, blocksize=63),
    "elsewhere": replace(NF4, packed=NF4.packed.to("meta")),
    "scales short": replace(INT8, scales=INT8.scales[:-1]),
    "scales in fp64": replace(INT8, scales=INT8.scales.double()),
    "codes wide": replace(INT8, codes=INT8.codes.short()),
    "codes apart": replace(INT8, codes=INT8.codes.repeat(1, 2)[:, :96]),
    "int8 elsewhere": replace(INT8, scales=INT8.scales.to("meta")),
    "fp64": torch.ones(8, 96, dtype=torch.float64),
    "meta": torch.ones(8, 96, device="meta"),
}


@pytest.mark.parametrize("weight", UNREADABLE.values(), ids=UNREADABLE)
def test_no_handle_on_what_the_kernels_cannot_read(weight: FrozenWeight) -> None:
    with dispatch.using(BUILDS[0]):
        module = dispatch.native()
        for good in (NF4, INT8, NF4, INT8):  # the second time, it is known
            assert products.weight_handle(module, good) is not None
        assert products.weight_handle(module, weight) is None
        assert products.weight_handle(module, weight) is None


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [32, 96, 704, 1408, 4160])
def test_a_few_rows_are_summed_as_each_alone(build: str, kind: str, depth: int) -> None:
    torch.manual_seed(0)
    weight: FrozenWeight = KINDS[kind](
        torch.randn(27, depth)
    )  # the last columns are no whole group
    x = torch.randn(16, depth)
    found = []
    with dispatch.using(build):
        for rows in range(1, 17):
            terms = [Term(x[:rows], weight, transposed=True)]
            found.append(products.sum_products(terms, out=torch.empty(rows, 27)))
    for few in found:
        assert torch.equal(few, found[-1][: len(few)])
    _close(found[-1], _widened(terms, None, (16, 27)), depth)
