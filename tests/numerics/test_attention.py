from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rango.numerics.attention import attention, attention_backward

LENGTHS = (7, 1, 0, 12)
MASKS: tuple[dict[str, Any], ...] = (
    {},
    {"window": 3},
    {"window": 100},
    {"causal": False},
    {"causal": False, "window": 2},
)


def starts(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)])


def made(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def visible(
    lengths: tuple[int, ...], keys: tuple[int, ...], causal: bool = True, window: int | None = None
) -> Tensor:
    """The square mask, said otherwise: key by key."""
    mask = torch.zeros(sum(lengths), sum(keys), dtype=torch.bool)
    row = column = 0
    for n, m in zip(lengths, keys, strict=True):
        for i in range(n):
            for j in range(m):
                distance = (m - n + i) - j
                seen = distance >= 0 if causal else True
                if window is not None:
                    seen = seen and (distance < window if causal else abs(distance) <= window)
                mask[row + i, column + j] = seen
        row, column = row + n, column + m
    return mask


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """(T, heads, dim)."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


@pytest.mark.parametrize("options", MASKS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (3, 1)])
def test_against_sdpa_and_autograd(options: dict[str, Any], heads: int, kv_heads: int) -> None:
    count = sum(LENGTHS)
    q, k, v = made(count, heads, 5), made(count, kv_heads, 5), made(count, kv_heads, 5)
    mask = visible(LENGTHS, LENGTHS, **options)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = sdpa(*leaves, mask, 0.3)
    out, lse = attention(q, k, v, starts(LENGTHS), scale=0.3, **options)
    torch.testing.assert_close(out, expected)
    scores = 0.3 * torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(heads // kv_heads, 1))
    torch.testing.assert_close(lse, scores.masked_fill(~mask, -torch.inf).logsumexp(-1))
    grad = made(*out.shape)
    wanted = torch.autograd.grad(expected, leaves, grad)
    found = attention_backward(grad, q, k, v, out, lse, starts(LENGTHS), scale=0.3, **options)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("options", MASKS)
def test_softcap_against_autograd(options: dict[str, Any]) -> None:
    count = sum(LENGTHS)
    q, k, v = (made(count, 2, 4).requires_grad_() for _ in range(3))
    scores = torch.einsum("ihd,jhd->hij", q, k)
    scores = 1.5 * torch.tanh(scores / 1.5)
    scores = scores.masked_fill(~visible(LENGTHS, LENGTHS, **options), -torch.inf)
    expected = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)
    grad = made(count, 2, 4)
    wanted = torch.autograd.grad(expected, (q, k, v), grad)
    arguments: dict[str, Any] = {"scale": 1.0, "softcap": 1.5, **options}
    with torch.no_grad():
        out, lse = attention(q, k, v, starts(LENGTHS), **arguments)
        found = attention_backward(grad, q, k, v, out, lse, starts(LENGTHS), **arguments)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found, wanted)
    traced, _ = attention(q, k, v, starts(LENGTHS), **arguments)
    torch.testing.assert_close(torch.autograd.grad(traced, (q, k, v), grad), wanted)


@pytest.mark.parametrize("options", MASKS)
def test_queries_are_the_last_of_their_keys(options: dict[str, Any]) -> None:
    lengths, keys = (1, 4, 0, 3), (6, 4, 5, 9)
    q, k, v = made(sum(lengths), 4, 3), made(sum(keys), 2, 3), made(sum(keys), 2, 3)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = sdpa(*leaves, visible(lengths, keys, **options), 1.0)
    bounds: dict[str, Any] = {"key_bounds": starts(keys), "scale": 1.0}
    out, lse = attention(q, k, v, starts(lengths), **bounds, **options)
    torch.testing.assert_close(out, expected)
    grad = made(*out.shape)
    found = attention_backward(grad, q, k, v, out, lse, starts(lengths), **bounds, **options)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves, grad))
    assert not found[1][10:15].any()  # keys without queries


def test_queries_without_keys_give_zeros() -> None:
    q, k, v = made(5, 2, 3), made(2, 2, 3), made(2, 2, 3)
    bounds, key_bounds = torch.tensor([0, 3, 5]), torch.tensor([0, 0, 2])
    out, lse = attention(q, k, v, bounds, key_bounds=key_bounds, scale=1.0)
    assert not out[:3].any()
    assert (lse[:, :3] == -torch.inf).all()
    assert lse[:, 3:].isfinite().all()
    grads = attention_backward(
        torch.ones_like(out), q, k, v, out, lse, bounds, key_bounds=key_bounds, scale=1.0
    )
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert not grads[0][:3].any()


def test_padded_layout() -> None:
    q, k, v = made(2, 4, 3, 5), made(2, 2, 6, 5), made(2, 2, 6, 5)
    bounds, key_bounds = torch.tensor([0, 0, 3, 6]), torch.tensor([0, 2, 6, 12])
    options: dict[str, Any] = {"scale": 1.0, "key_bounds": key_bounds}
    out, lse = attention(q, k, v, bounds, **options)
    assert out.shape == q.shape
    first, _ = attention(
        q[0].transpose(0, 1), k[0].transpose(0, 1)[2:], v[0].transpose(0, 1)[2:],
        torch.tensor([0, 3]), scale=1.0, key_bounds=torch.tensor([0, 4]),
    )  # fmt: skip
    torch.testing.assert_close(out[0], first.transpose(0, 1))
    grad = made(*q.shape)
    into = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    found = attention_backward(grad, q, k, v, out, lse, bounds, **options, into=into)
    assert [x.data_ptr() for x in found] == [x.data_ptr() for x in into]
    assert [x.shape for x in found] == [q.shape, k.shape, v.shape]
    assert not found[1][0, :, :2].any()


def test_more_queries_than_are_worked_through_at_a_time() -> None:
    q, k, v = made(1100, 1, 2), made(1100, 1, 2), made(1100, 1, 2)
    expected = sdpa(q, k, v, torch.ones(1100, 1100, dtype=torch.bool).tril(), 1.0)
    out, _ = attention(q, k, v, torch.tensor([0, 1100]), scale=1.0)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bounds": [0, 3]}, "from 0 up to 4"),
        ({"bounds": [1, 4]}, "from 0 up to 4"),
        ({"bounds": [0, 3, 2, 4]}, "from 0 up to 4"),
        ({"key_bounds": [0, 2, 4]}, "1 sequences, key_bounds of 2"),
        ({"k": (4, 3, 5), "v": (4, 3, 5)}, "divisor"),
        ({"k": (4, 2, 6), "v": (4, 2, 6)}, "k \\[4, 2, 6\\]"),
        ({"v": (4, 1, 5)}, "v \\[4, 1, 5\\]"),
        ({"window": 0}, "window of at least 1, found 0"),
        ({"q": (2, 2, 2, 5)}, "two rows of 2"),
    ],
)
def test_errors(change: dict[str, Any], words: str) -> None:
    options: dict[str, Any] = {
        name: made(*change.pop(name, (4, 2, 5))) for name in ("q", "k", "v")
    } | {
        name: torch.tensor(change.pop(name, [0, 4])) for name in ("bounds", "key_bounds")
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        attention(**options, **change, scale=1.0)


def test_a_softcap_of_zero_is_none() -> None:
    q, bounds = (
        torch.randn(9, 2, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 9]),
    )
    for cap in (None, 0.0):
        out, lse = attention(q, q, q, bounds, scale=1.0, softcap=cap)
        grads = attention_backward(q, q, q, q, out, lse, bounds, scale=1.0, softcap=cap)
        if cap is None:
            expected = out, lse, *grads
    assert all(torch.equal(a, b) for a, b in zip((out, lse, *grads), expected, strict=True))


def test_rows_whose_scores_all_overflow_are_rows_without_keys() -> None:
    q, k, bounds = torch.full((5, 1, 4), 3e38), torch.full((5, 1, 4), -3e38), torch.tensor([0, 5])
    v = torch.ones(5, 1, 4)
    out, lse = attention(q, k, v, bounds, scale=1.0)
    assert not out.any()
    assert (lse == -torch.inf).all()
    for gradient in attention_backward(v, q, k, v, out, lse, bounds, scale=1.0):
        assert not gradient.any()
