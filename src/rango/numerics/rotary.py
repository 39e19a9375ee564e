"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the order of Llama's weights:
column i of the first half of a head is paired with column i of the second.

    y₁ = x₁·cos₁ - x₂·sin₁        y₂ = x₂·cos₂ + x₁·sin₂
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False, out: Tensor | None = None
) -> Tensor:
    """Rotate each head's pairs by its token's angles.

    x: (tokens, heads, dim), the last two dimensions contiguous; rows may lie further apart (a part
        of a fused buffer).
    cos, sin: (tokens, rotated), rotated ≤ dim and even; columns past it stay as they are.
    inverse: the transpose, which takes a gradient back; with cos² + sin² = 1 it turns back.
    out: laid out as x, and may be x itself.
    """
    half = cos.shape[-1] // 2
    first, second = x[..., :half], x[..., half : 2 * half]
    cos1, cos2 = cos[:, None, :half], cos[:, None, half:]
    sin1, sin2 = sin[:, None, :half], sin[:, None, half:]
    if inverse:
        turned = first * cos1 + second * sin2, second * cos2 - first * sin1
    else:
        turned = first * cos1 - second * sin1, second * cos2 + first * sin2
    y = torch.cat((*turned, x[..., 2 * half :]), dim=-1)
    return y if out is None else out.copy_(y)
