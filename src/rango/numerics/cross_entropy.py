"""A language model's head and its loss in one: logits = hidden · Wᵀ, then cross-entropy.

    lᵥ = scale · (h · Wᵥ + biasᵥ), then softcap · tanh(lᵥ / softcap) where there is a soft cap
    loss = log Σ exp(lᵥ) - l[target]
    d loss / d h = scale · Σ (pᵥ - [v = target]) · slopeᵥ · Wᵥ,    slopeᵥ = 1 - (lᵥ / softcap)²

W is frozen, so a loss's gradient with respect to its own token's hidden state is all that the
backward pass needs: it is formed while the logits are there, and they are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rango.numerics.products import FrozenWeight, widen

_PIECE = 1 << 25  # logits held at a time


@dataclass(frozen=True)
class CrossEntropy:
    """What the head makes of K tokens; no part of the autograd graph."""

    losses: Tensor
    """(K,) fp32, nats."""
    correct: Tensor
    """(K,) bool: the target has the largest logit, and the lowest index of those that have it."""
    gradient: Tensor | None
    """(K, H) in hidden's dtype: each token's loss differentiated by its own hidden state."""


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
    """hidden (K, H), weight (V, H), targets (K,) int64 below V, bias (V,): as above, in fp32.

    softcap: None or 0 for none.

    Raises ValueError on other shapes, and IndexError on a target outside the vocabulary.
    """
    check_shapes(hidden, weight, targets, bias)
    with torch.no_grad():
        W = widen(weight)
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        correct = hidden.new_empty(len(hidden), dtype=torch.bool)
        gradient = torch.empty_like(hidden) if need_gradient else None
        step = max(1, _PIECE // len(W))
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            target = targets[rows].unsqueeze(1)  # (n, 1)
            logits = hidden[rows].float() @ W.T  # (n, V)
            if bias is not None:
                logits += bias
            logits *= scale
            if softcap:
                logits.div_(softcap).tanh_().mul_(softcap)
            total = logits.logsumexp(dim=1, keepdim=True)
            losses[rows] = (total - logits.gather(1, target))[:, 0]
            correct[rows] = logits.argmax(dim=1) == targets[rows]
            if gradient is None:
                continue
            slope = 1 - (logits / softcap) ** 2 if softcap else None
            share = logits.sub_(total).exp_()
            share.scatter_add_(1, target, share.new_full(target.shape, -1.0))
            if slope is not None:
                share *= slope
            gradient[rows] = (share @ W).mul_(scale)
    return CrossEntropy(losses, correct, gradient)


def check_shapes(
    hidden: Tensor, weight: FrozenWeight, targets: Tensor, bias: Tensor | None
) -> None:
    """Raise ValueError if the shapes do not fit, IndexError if a target is no row of the weight."""
    count, width = hidden.shape
    vocabulary = weight.shape[0]
    if tuple(weight.shape) != (vocabulary, width) or targets.shape != (count,):
        raise ValueError(
            f"linear_cross_entropy: expected hidden (K, H), weight (V, H), targets (K,), found "
            f"{[*hidden.shape]}, {[*weight.shape]}, {[*targets.shape]}"
        )
    if bias is not None and bias.shape != (vocabulary,):
        raise ValueError(
            f"linear_cross_entropy: expected a bias [{vocabulary}], found {[*bias.shape]}"
        )
    if count == 0:
        return
    lowest, highest = targets.aminmax()
    if lowest < 0 or highest >= vocabulary:
        raise IndexError(
            f"linear_cross_entropy: expected targets from 0 to {vocabulary - 1}, found "
            f"{int(lowest)} to {int(highest)}"
        )
