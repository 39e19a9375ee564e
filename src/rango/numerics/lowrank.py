"""Low-rank adaptation, stated plainly (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    W' = W + scaling · B · A        W (out, in), A (r, in), B (out, r)

`kernels/` will hold faster twins of these functions; this is what they are tested against.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def scaling(lora_alpha: float, r: int, use_rslora: bool = False) -> float:
    """The factor of B·A: alpha / r, or alpha / √r for rsLoRA (arXiv 2312.03732)."""
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def alpha_for(scale: float, r: int, use_rslora: bool = False) -> float:
    """The lora_alpha that gives `scale` at rank r: the inverse of `scaling`."""
    return scale * (math.sqrt(r) if use_rslora else r)


def delta_weight(lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """ΔW = scale · B · A in fp32: (r, in), (out, r) -> (out, in)."""
    return scale * (lora_B.float() @ lora_A.float())


def merged_weight(weight: Tensor, delta: Tensor) -> Tensor:
    """W + ΔW summed in fp32 and cast once to W's dtype; both (out, in)."""
    return (weight.float() + delta).to(weight.dtype)


def trainable_parameters(shapes: Iterable[tuple[int, int]], r: int) -> int:
    """Σ r·(in + out) over the adapted matrices, given as (out, in)."""
    return sum(r * (out_features + in_features) for out_features, in_features in shapes)


def low_rank_update(x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """scale · B · A · x for each token: (N, in) -> (N, out), in the dtype of A and B."""
    return (x.to(lora_A.dtype) @ lora_A.T) @ lora_B.T * scale
