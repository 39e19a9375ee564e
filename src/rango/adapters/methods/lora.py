"""LoRA: h = W·x + (alpha/r)·B·A·x (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rango.adapters.dropout import stable_seed
from rango.adapters.targets import Target


def tensors(target: Target, r: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors at a target, at rank r."""
    prefix = "lora_embedding_" if target.embedding else "lora_"
    return {f"{prefix}A": (r, target.in_features), f"{prefix}B": (target.out_features, r)}


def initialise(lora_A: Tensor, lora_B: Tensor, *, embedding: bool, seed: int, site: str) -> None:
    """Fill A (r, in) and B (out, r) so that B·A = 0.

    A is kaiming_uniform(a=√5), that is uniform within ±1/√in, and B zero; at an embedding A is
    zero and B normal. The draw depends on the seed and the site's name alone.
    """
    generator = torch.Generator().manual_seed(stable_seed(seed, site))
    moving, zero = (lora_B, lora_A) if embedding else (lora_A, lora_B)
    zero.zero_()
    if moving.is_meta:
        return
    if embedding:
        drawn = torch.randn(moving.shape, generator=generator)
    else:
        bound = 1 / math.sqrt(moving.shape[1])
        drawn = torch.empty(moving.shape).uniform_(-bound, bound, generator=generator)
    moving.copy_(drawn)
