"""Head and loss in one pass over the weight: numerics/cross_entropy.py, without its logits.

Blocks of the vocabulary are decoded into cache, give their logits, and are added up under their
exponentials at once. Held at a time: on each thread a block of logits, and unless the weight is in
fp32 a decoded block of it (128·H floats); and twice the gradient for each slice of the vocabulary
(one a thread, at most 8), for as many tokens as 8 MB hold, but at least 64 (for each thread that
shares a slice, where there are more than 8) and at most 512.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rango.kernels.dispatch import native
from rango.kernels.products import weight_handle
from rango.numerics import cross_entropy
from rango.numerics.cross_entropy import CrossEntropy, check_shapes
from rango.numerics.products import FrozenWeight

__all__ = ["CrossEntropy", "linear_cross_entropy"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: FrozenWeight,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    need_gradient: bool = True,
) -> CrossEntropy:
    """As numerics.cross_entropy.linear_cross_entropy.

    The result is the same at every call, and for the same number of threads: they share out the
    vocabulary, and its sums.
    """
    hidden = hidden.detach().contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    module = native(hidden, bias)
    handle = None
    if module is not None and native(targets, dtype=torch.int64) is not None:
        handle = weight_handle(module, weight)
    if handle is None:
        return cross_entropy.linear_cross_entropy(
            hidden,
            weight,
            targets,
            bias=bias,
            scale=scale,
            softcap=softcap,
            need_gradient=need_gradient,
        )
    check_shapes(hidden, weight, targets, bias)
    losses = hidden.new_empty(len(hidden))
    correct = hidden.new_empty(len(hidden), dtype=torch.bool)
    gradient = torch.empty_like(hidden) if need_gradient else None
    module.linear_cross_entropy(
        hidden.data_ptr(),
        len(hidden),
        handle,
        0 if bias is None else bias.data_ptr(),
        targets.data_ptr(),
        scale,
        softcap or 0.0,
        losses.data_ptr(),
        correct.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        torch.get_num_threads(),
    )
    return CrossEntropy(losses, correct, gradient)
