"""Decoder layers of a few tokens in one call of the compiled kernels (csrc/bind_decoding.cpp).

There is no reference of its own: it is the norm, the products, the rotation, the attention and the
gated activation of this package, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rango.kernels.dispatch import native
from rango.kernels.gated import CODES
from rango.kernels.products import FrozenWeight, weight_handle

Linear = tuple[FrozenWeight, Tensor | None]
"""A weight (out, in) and its bias (out,)."""
RmsNorm = tuple[Tensor, float]
"""A weight and its epsilon."""


def decoder_layer(
    linears: Sequence[Linear],
    norms: Sequence[RmsNorm | None],
    *,
    head_dim: int,
    scale: float,
    activation: str,
    offset: float,
) -> Any:
    """The compiled layer, valid while its tensors stay where they are; None if it cannot be.

    linears: q, k, v, o, gate, up, down. norms: before attention, before the MLP, of q's heads and
    of k's (None: they have none), all with the same offset. ValueError for weights that do not fit
    each other, and for no norm before attention or the MLP.
    """
    small = [bias for _, bias in linears] + [norm[0] for norm in norms if norm is not None]
    module = native(*small)
    if module is None or activation not in CODES:
        return None
    weights = [weight_handle(module, weight) for weight, _ in linears]
    if any(weight is None for weight in weights) or not _lengths_fit(linears, norms, head_dim):
        return None
    heads, kv_heads = (int(linears[i][0].shape[0]) // head_dim for i in (0, 1))
    return module.DecoderLayer(
        heads,
        kv_heads,
        head_dim,
        scale,
        CODES[activation],
        weights,
        [0 if bias is None else bias.data_ptr() for _, bias in linears],
        [0 if norm is None else norm[0].data_ptr() for norm in norms],
        [0.0 if norm is None else norm[1] for norm in norms],
        offset,
    )


def _lengths_fit(linears: Sequence[Linear], norms: Sequence[RmsNorm | None], head_dim: int) -> bool:
    """Whether each bias and each norm's weight is as long as what it is added to, or scales."""
    hidden = linears[0][0].shape[1]
    lengths = (hidden, hidden, head_dim, head_dim)
    return all(
        bias is None or tuple(bias.shape) == (weight.shape[0],) for weight, bias in linears
    ) and all(
        norm is None or tuple(norm[0].shape) == (length,)
        for norm, length in zip(norms, lengths, strict=True)
    )
