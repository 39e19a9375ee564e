"""Attention over packed sequences: a token sees its own sequence alone, and no square mask exists.

    out = softmax(cap(scale · q · kᵀ)) · v        cap(s) = softcap · tanh(s / softcap), or s

The backward pass is that of Dao et al. 2022, arXiv 2205.14135, appendix B: the probabilities are
formed again from the logarithms of their denominators (lse), the only extra that is kept.

Tokens and sequences. `bounds` (sequences + 1,) holds where the sequences start within the tokens of
q, from 0 to T; `key_bounds`, where they start within those of k and v (default: the same). A
sequence's queries are its last tokens: the last query stands where the last key does. So a decoding
step has one query a sequence, and what belongs to no query (padding, room for later) is a sequence
of keys without queries; queries of a sequence without keys give zeros and an lse of -inf.

Layouts, for every tensor: packed (T, heads, dim), or padded (B, heads, S, dim), whose tokens count
as T = B·S, row after row; no sequence lies in two rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

UNLIMITED = 1 << 40
"""More keys than there are."""

_QUERIES = 512  # worked through at a time, so that memory grows with the tokens alone


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    key_bounds: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs, laid out like q, and lse (heads, T): log Σ exp of each query's scores.

    q: heads × dim a token; k and v: kv_heads × dim, where kv_heads divides heads and query head h
        reads head h // (heads / kv_heads).
    bounds, key_bounds: int32 or int64 (sequences + 1,).
    window: causal, a query at place i sees keys j with 0 <= i - j < window; not causal, |i - j| <=
        window (both as transformers has them).

    softcap: None or 0 for none.

    Differentiable where `out` is None. ValueError for shapes or bounds that do not fit.
    """
    check_shapes(q, k, v)
    keys, values = tokens(k), tokens(v)
    group = q.shape[1] // k.shape[1]
    outputs, sums = [], []
    for part in _parts(q, k, bounds, key_bounds, *reach(causal, window)):
        scores = _scores(tokens(q)[part.queries], keys[part.keys], scale)
        scores = _capped(scores, softcap).masked_fill(~part.visible, -torch.inf)
        lse = scores.logsumexp(dim=-1) if len(keys[part.keys]) else scores.sum(-1) - torch.inf
        p = (scores - _finite(lse).unsqueeze(-1)).exp()
        outputs.append(torch.einsum("hgqk,khd->qhgd", p, values[part.keys]).flatten(1, 2))
        sums.append(lse.flatten(0, 1))
    if not outputs:
        return q.clone() if out is None else out, q.new_empty(group * k.shape[1], 0)
    found = like(torch.cat(outputs), q)
    return found if out is None else out.copy_(found), torch.cat(sums, dim=1)


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    key_bounds: Tensor | None = None,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients (dq, dk, dv) of `attention`, given that of its outputs; each laid out like what
    it is the gradient of. A key that no query sees has a gradient of zero.

    into: buffers for them. The one of dq may be grad, q or out; the others overlap nothing.
    """
    check_shapes(q, k, v)
    keys, values, grads = tokens(k), tokens(v), tokens(grad)
    dk, dv = torch.zeros_like(keys), torch.zeros_like(values)
    group = q.shape[1] // k.shape[1]
    delta = (grads * tokens(out)).sum(dim=-1).unflatten(1, (-1, group))  # (T, kv_heads, group)
    parts = []
    for part in _parts(q, k, bounds, key_bounds, *reach(causal, window)):
        queries, dout = tokens(q)[part.queries], grads[part.queries].unflatten(1, (-1, group))
        capped = _capped(_scores(queries, keys[part.keys], scale), softcap)
        logs = _finite(lse[:, part.queries]).unflatten(0, (-1, group)).unsqueeze(-1)
        p = (capped - logs).exp().masked_fill(~part.visible, 0.0)
        dv[part.keys] += torch.einsum("hgqk,qhgd->khd", p, dout)
        dp = torch.einsum("qhgd,khd->hgqk", dout, values[part.keys])
        ds = p * (dp - delta[part.queries].permute(1, 2, 0).unsqueeze(-1)) * scale
        if softcap:
            ds = ds * (1 - (capped / softcap) ** 2)
        dk[part.keys] += torch.einsum("hgqk,qhgd->khd", ds, queries.unflatten(1, (-1, group)))
        parts.append(torch.einsum("hgqk,khd->qhgd", ds, keys[part.keys]).flatten(1, 2))
    dq = torch.cat(parts) if parts else tokens(q).clone()
    found = like(dq, q), like(dk, k), like(dv, v)
    if into is None:
        return found
    return into[0].copy_(found[0]), into[1].copy_(found[1]), into[2].copy_(found[2])


def reach(causal: bool, window: int | None) -> tuple[int, int]:
    """How many keys before its own place, and how many after it, a query sees."""
    if window is not None and window < 1:
        raise ValueError(f"attention: expected a window of at least 1, found {window}")
    if not causal:
        return (UNLIMITED, UNLIMITED) if window is None else (window, window)
    return (UNLIMITED, 0) if window is None else (window - 1, 0)


def tokens(x: Tensor) -> Tensor:
    """As (T, heads, dim), from either layout."""
    return x if x.ndim == 3 else x.transpose(1, 2).flatten(0, 1)


def like(x: Tensor, layout: Tensor) -> Tensor:
    """(T, heads, dim) as the other tensor is laid out."""
    if layout.ndim == 3:
        return x
    return x.unflatten(0, (layout.shape[0], layout.shape[2])).transpose(1, 2)


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """ValueError unless the three fit one another."""
    if (
        q.ndim not in (3, 4)
        or k.ndim not in (3, 4)
        or k.shape != v.shape
        or q.shape[-1] != k.shape[-1]
        or k.shape[1] < 1
        or q.shape[1] % k.shape[1]
    ):
        raise ValueError(
            "attention: expected q (T, heads, dim) or (B, heads, S, dim), k and v alike with a "
            f"divisor of heads; found q {[*q.shape]}, k {[*k.shape]}, v {[*v.shape]}"
        )


@dataclass(frozen=True)
class _Part:
    """Some queries of one sequence, and all keys that any of them sees."""

    queries: slice
    keys: slice
    visible: Tensor
    """bool (queries, keys)."""


def _parts(
    q: Tensor, k: Tensor, bounds: Tensor, key_bounds: Tensor | None, before: int, after: int
) -> Iterator[_Part]:
    starts = _checked("bounds", bounds, q)
    key_starts = starts if key_bounds is None else _checked("key_bounds", key_bounds, k)
    if key_bounds is None:
        _checked("bounds", bounds, k)
    if len(starts) != len(key_starts):
        raise ValueError(
            f"attention: bounds of {len(starts) - 1} sequences, key_bounds of {len(key_starts) - 1}"
        )
    for (start, end), (first, last) in zip(pairwise(starts), pairwise(key_starts), strict=True):
        ahead = (last - first) - (end - start)  # place of the first query among its keys
        for begin in range(start, end, _QUERIES):
            stop = min(begin + _QUERIES, end)
            places = ahead + torch.arange(begin - start, stop - start, device=q.device)
            low = max(0, ahead + begin - start - before)
            high = max(low, min(last - first, ahead + stop - start + after))
            columns = torch.arange(low, high, device=q.device)
            distance = places[:, None] - columns
            yield _Part(
                slice(begin, stop),
                slice(first + low, first + high),
                (distance <= before) & (-distance <= after),
            )


def _checked(name: str, bounds: Tensor, x: Tensor) -> list[int]:
    """The bounds; ValueError unless they rise from 0 to the tokens of x and stay in its rows."""
    count = len(x) if x.ndim == 3 else x.shape[0] * x.shape[2]
    row = max(1, count if x.ndim == 3 else x.shape[2])
    starts = [int(start) for start in bounds.tolist()]
    pairs = list(pairwise(starts))
    if not starts or starts[0] != 0 or starts[-1] != count or any(a > b for a, b in pairs):
        raise ValueError(f"attention: expected {name} from 0 up to {count}, found {starts}")
    crossing = [(a, b) for a, b in pairs if a < b and a // row != (b - 1) // row]
    if crossing:
        raise ValueError(f"attention: {name} {crossing[0]} lie in two rows of {row} tokens")
    return starts


def _scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """scale · q · kᵀ, (kv_heads, group, queries, keys)."""
    grouped = queries.unflatten(1, (keys.shape[1], -1))
    return torch.einsum("qhgd,khd->hgqk", grouped, keys) * scale


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return softcap * (scores / softcap).tanh() if softcap else scores


def _finite(lse: Tensor) -> Tensor:
    """Without -inf, from which a score of -inf is NaN away, and not exp(-inf) = 0."""
    return lse.clamp(min=torch.finfo(lse.dtype).min)
