from __future__ import annotations

import itertools
import resource
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rango.kernels.attention import attention, attention_backward
from rango.kernels.dispatch import available, using
from rango.numerics import attention as numerics

NATIVE = [mode for mode in available() if mode != "reference"]
TOLERANCE = 2e-6  # ‖native − reference in fp64‖ / ‖reference‖; 6e-7 is usual

pytestmark = pytest.mark.skipif(not NATIVE, reason="no compiled kernels")


@pytest.fixture(params=NATIVE)
def native(request: pytest.FixtureRequest) -> Iterator[None]:
    with using(request.param):
        yield


def starts(lengths: list[int] | tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)])


def close(found: Tensor, expected: Tensor, terms: float = 0.0) -> None:
    """terms: the size of what cancels in the sums; a query with one key has no gradient."""
    assert found.shape == expected.shape
    known = expected.isfinite()
    assert torch.equal(found[~known].double(), expected[~known])
    difference = (found - expected)[known].norm()
    assert difference <= TOLERANCE * expected[known].norm() + 2e-7 * terms


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, **options: Any) -> None:
    wide = [x.double() for x in (q, k, v)]
    expected, expected_lse = numerics.attention(*wide, bounds, **options)
    out, lse = attention(q, k, v, bounds, **options)
    close(out, expected)
    close(lse, expected_lse)
    grad = made(*q.shape, seed=9)
    wanted = numerics.attention_backward(
        grad.double(), *wide, expected, expected_lse, bounds, **options
    )
    found = attention_backward(grad, q, k, v, out, lse, bounds, **options)
    key_size, value_size, query_size = (
        float(x.norm(dim=-1).max()) if x.numel() else 0.0 for x in (k, v, q)
    )
    slope = options["scale"] * float(grad.norm()) * value_size
    for x, y, terms in zip(found, wanted, (slope * key_size, slope * query_size, 0.0), strict=True):
        close(x, y, terms)


SHAPES = [
    # heads, kv_heads, dim, lengths
    (14, 2, 64, (100, 37, 1, 0, 200)),
    (4, 4, 80, (130, 70)),
    (6, 3, 96, (64, 128, 65)),
    (2, 1, 128, (193,)),
    (8, 1, 256, (70, 2)),
    (6, 2, 13, (3, 77, 15)),
    (1, 1, 1, (5,)),
]
MASKS: tuple[dict[str, Any], ...] = (
    {},
    {"window": 7},
    {"window": 64, "softcap": 3.0},
    {"causal": False},
    {"causal": False, "window": 20, "softcap": 0.7},
)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("options", MASKS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "lengths"), SHAPES)
def test_shapes(
    heads: int, kv_heads: int, dim: int, lengths: tuple[int, ...], options: dict[str, Any]
) -> None:
    fused = made(sum(lengths), (heads + 2 * kv_heads) * dim)  # read in place
    q, k, v = (
        x.unflatten(1, (-1, dim)) for x in fused.split([heads * dim, *[kv_heads * dim] * 2], dim=1)
    )
    assert k.numel() == 0 or heads == kv_heads == dim == 1 or not k.is_contiguous()
    compare(q, k, v, starts(lengths), scale=dim**-0.5, **options)


@given(data=st.data())
@pytest.mark.parametrize("mode", NATIVE)
def test_any_bounds(mode: str, data: st.DataObject) -> None:
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8))
    dim = data.draw(st.integers(1, 40))
    # lengths around the blocks of 16 and 64 keys
    length = st.one_of(st.integers(0, 5), st.sampled_from([15, 16, 17, 63, 64, 65, 130]))
    lengths = data.draw(st.lists(length, min_size=1, max_size=4))
    extra = [data.draw(st.one_of(st.just(0), length)) for _ in lengths]
    keys = [n + more for n, more in zip(lengths, extra, strict=True)]
    options: dict[str, Any] = {
        "causal": data.draw(st.booleans()),
        "window": data.draw(st.one_of(st.none(), st.integers(1, 140))),
        "softcap": data.draw(st.one_of(st.none(), st.floats(0.5, 50.0))),
        "key_bounds": starts(keys),
        "scale": data.draw(st.sampled_from([1.0, 0.1, dim**-0.5])),
    }
    q = made(sum(lengths), kv_heads * group, dim, seed=1)
    k, v = (made(sum(keys), kv_heads, dim, seed=seed) for seed in (2, 3))
    with using(mode):
        compare(q, k, v, starts(lengths), **options)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("group", [1, 3, 7, 16])
def test_decoding_from_a_padded_cache(group: int) -> None:
    cache = made(2, 3, 2, 90, 64)  # room for more than is there
    k, v = cache[0][:, :, :80], cache[1][:, :, :80]
    q = made(3, 2 * group, 1, 64)
    # the second has 30 columns of padding; the third has only 41 keys
    bounds = torch.tensor([0, 1, 1, 2, 3, 3])
    key_bounds = torch.tensor([0, 80, 110, 160, 201, 240])
    compare(q, k, v, bounds, key_bounds=key_bounds, scale=0.125)
    compare(q, k, v, bounds, key_bounds=key_bounds, scale=0.125, window=33)


@pytest.mark.usefixtures("native")
def test_queries_without_keys() -> None:
    q, k, v = made(5, 2, 3), made(2, 2, 3), made(2, 2, 3)
    bounds, key_bounds = torch.tensor([0, 3, 5]), torch.tensor([0, 0, 2])
    compare(q, k, v, bounds, key_bounds=key_bounds, scale=1.0)
    out, _ = attention(q, k, v, bounds, key_bounds=key_bounds, scale=1.0)
    assert not out[:3].any()


@pytest.mark.usefixtures("native")
def test_a_row_depends_on_its_own_sequence_alone() -> None:
    lengths = (90, 33, 140)
    q, k, v = made(263, 6, 32), made(263, 2, 32, seed=1), made(263, 2, 32, seed=2)
    together, lse = attention(q, k, v, starts(lengths), scale=0.2)
    for first, last in itertools.pairwise(starts(lengths).tolist()):
        part = slice(first, last)
        alone, its = attention(
            q[part], k[part], v[part], torch.tensor([0, last - first]), scale=0.2
        )
        assert torch.equal(together[part], alone)
        assert torch.equal(lse[:, part], its)


@pytest.mark.usefixtures("native")
def test_neighbours_may_hold_anything() -> None:
    q, k, v = made(100, 2, 16), made(100, 2, 16, seed=1), made(100, 2, 16, seed=2)
    bounds = torch.tensor([0, 47, 100])
    out, lse = attention(q, k, v, bounds, scale=1.0)
    grads = attention_backward(q, q, k, v, out, lse, bounds, scale=1.0)
    for x in (q, k, v):
        x[47:] = torch.nan
    spoilt, lse = attention(q, k, v, bounds, scale=1.0)
    assert torch.equal(spoilt[:47], out[:47])
    assert spoilt[47:].isnan().all()
    for x, y in zip(
        attention_backward(q, q, k, v, spoilt, lse, bounds, scale=1.0), grads, strict=True
    ):
        assert torch.equal(x[:47], y[:47])


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("lengths", [(200,), (90, 3, 107), (1,) * 40])
def test_threads_change_no_bit(lengths: tuple[int, ...]) -> None:
    count = sum(lengths)
    q, k, v = made(count, 6, 32), made(count, 2, 32, seed=1), made(count, 2, 32, seed=2)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, lse = attention(q, k, v, starts(lengths), scale=0.2)
            grads = attention_backward(q, q, k, v, out, lse, starts(lengths), scale=0.2)
            results.append([out, lse, *grads])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.usefixtures("native")
def test_buffers() -> None:
    q, k, v = made(50, 4, 16), made(50, 2, 16, seed=1), made(50, 2, 16, seed=2)
    bounds = torch.tensor([0, 20, 50], dtype=torch.int32)
    out, lse = attention(q, k, v, bounds, scale=0.2)
    grad = made(50, 4, 16, seed=3)
    wanted = attention_backward(grad, q, k, v, out, lse, bounds, scale=0.2)
    for shared in ("grad", "q", "out"):
        tensors = {"grad": grad.clone(), "q": q.clone(), "k": k, "v": v, "out": out.clone()}
        into = tensors[shared], torch.empty_like(k), torch.empty_like(v)
        found = attention_backward(**tensors, lse=lse, bounds=bounds, scale=0.2, into=into)
        assert all(a is b for a, b in zip(found, into, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    buffer = q.clone()
    same, _ = attention(buffer, k, v, bounds, scale=0.2, out=buffer)
    assert same is buffer
    assert torch.equal(same, out)


@pytest.mark.usefixtures("native")
def test_large_scores() -> None:
    q, k, v = made(70, 2, 16) * 100, made(70, 2, 16, seed=1) * 100, made(70, 2, 16, seed=2)
    out, lse = attention(q, k, v, torch.tensor([0, 70]), scale=1.0)
    expected, expected_lse = numerics.attention(
        q.double(), k.double(), v.double(), torch.tensor([0, 70]), scale=1.0
    )
    # the scores are in the ten thousands: fp32 leaves them 1e-3 apart
    assert (out - expected).norm() <= 1e-2 * expected.norm()
    assert (lse - expected_lse).norm() <= 1e-6 * expected_lse.norm()


def test_memory_grows_with_the_tokens_alone() -> None:
    count = 8192  # a square of fp32 would be 256 MiB
    q, k, v = (made(count, 2, 8, seed=seed) for seed in range(3))
    bounds = torch.tensor([0, count])
    with using(NATIVE[0]):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out, lse = attention(q, k, v, bounds, scale=0.3)
        dq, _, dv = attention_backward(q, q, k, v, out, lse, bounds, scale=0.3)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 32 * 1024  # KiB
    last = torch.softmax(0.3 * torch.einsum("hd,thd->ht", q[-1], k).double(), dim=-1)
    close(out[-1], torch.einsum("ht,thd->hd", last, v.double()))
    close(dv[-1], last[:, -1:] * q[-1].double())  # the last key is seen by the last query alone
    assert dq.isfinite().all()


@pytest.mark.usefixtures("native")
def test_gradients_are_traced_through_the_reference() -> None:
    q, k, v = (made(9, 2, 4, seed=seed).requires_grad_() for seed in range(3))
    bounds = torch.tensor([0, 4, 9])
    out, lse = attention(q, k, v, bounds, scale=1.0)
    traced = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    with torch.no_grad():
        grads = attention_backward(torch.ones_like(out), q, k, v, out, lse, bounds, scale=1.0)
    for found, expected in zip(grads, traced, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("bounds", "key_bounds", "words"),
    [
        ([0, 3], None, "bounds from 0 up to 4"),
        ([1, 4], None, "from 0 up to 4.*found 1 4"),
        ([0, 3, 2, 4], None, "from 0 up to 4"),
        ([0, 9, 4], None, "from 0 up to 4"),
        ([0, 4], [0, 2, 4], "1 sequences, key_bounds of 2"),
        ([0, 4], [0, 5], "key_bounds from 0 up to 4"),
    ],
)
def test_bad_bounds(bounds: list[int], key_bounds: list[int] | None, words: str) -> None:
    q = made(4, 2, 5)
    given = None if key_bounds is None else torch.tensor(key_bounds)
    with pytest.raises(ValueError, match=words):
        attention(q, q, q, torch.tensor(bounds), key_bounds=given, scale=1.0)


@pytest.mark.usefixtures("native")
def test_bad_shapes() -> None:
    q, k = made(4, 2, 5), made(4, 1, 5)
    bounds = torch.tensor([0, 4])
    with pytest.raises(ValueError, match="divisor of heads"):
        attention(k, q, q, bounds, scale=1.0)
    with pytest.raises(ValueError, match="out"):
        attention(q, k, k, bounds, scale=1.0, out=k)
    out, lse = attention(q, k, k, bounds, scale=1.0)
    with pytest.raises(ValueError, match="grad, out and dq"):
        attention_backward(k, q, k, k, out, lse, bounds, scale=1.0)
    with pytest.raises(ValueError, match="rows of 2"):
        attention(made(2, 2, 2, 5), made(2, 1, 2, 5), made(2, 1, 2, 5), bounds, scale=1.0)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("sees_more", [False, True])
def test_scores_that_overflow(sees_more: bool) -> None:
    """Far below every fp32: a row of such scores alone is one without keys."""
    q, k, v = torch.full((70, 2, 8), 3e38), torch.full((70, 2, 8), -3e38), made(70, 2, 8)
    if sees_more:
        k[66] = 0.0  # in the second block of keys
    bounds = torch.tensor([0, 70])
    options: dict[str, Any] = {"scale": 1.0, "causal": False}
    out, lse = attention(q, k, v, bounds, **options)
    expected, sums = numerics.attention(q, k, v, bounds, **options)
    assert torch.equal(out, v[66].expand(70, -1, -1) if sees_more else torch.zeros_like(q))
    assert torch.equal(out, expected)
    assert torch.equal(lse, sums)
    found = attention_backward(v, q, k, v, out, lse, bounds, **options)
    wanted = numerics.attention_backward(v, q, k, v, out, lse, bounds, **options)
    torch.testing.assert_close(found[2], wanted[2])
    if not sees_more:  # else the others are sums of 1e38 that cancel
        assert not any(gradient.any() for gradient in (*found, *wanted))


@pytest.mark.usefixtures("native")
def test_no_softcap_and_one_below_zero() -> None:
    q, bounds = made(20, 2, 8), torch.tensor([0, 20])
    uncapped, _ = attention(q, q, q, bounds, scale=1.0)
    capped, _ = attention(q, q, q, bounds, scale=1.0, softcap=1.5)
    for run, bound in ((attention, 0.0), (numerics.attention, 1e-5)):
        none, _ = run(q, q, q, bounds, scale=1.0, softcap=0.0)
        torch.testing.assert_close(none, uncapped, atol=bound, rtol=bound)
        below, _ = run(q, q, q, bounds, scale=1.0, softcap=-1.5)
        torch.testing.assert_close(below, capped, atol=bound, rtol=bound)
    compare(q, q, q, bounds, scale=1.0, softcap=0.0)


@pytest.mark.usefixtures("native")
def test_a_subclass_is_left_to_the_reference() -> None:
    class Elsewhere(Tensor):
        """Its elements may not be at its address."""

    q, bounds = made(20, 2, 8), torch.tensor([0, 20])
    out, _ = attention(q.as_subclass(Elsewhere), q, q, bounds, scale=1.0)
    assert type(out) is Elsewhere
