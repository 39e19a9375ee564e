"""A loaded base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rango.base.architecture import Kind
from rango.base.config import Quantize


@dataclass(frozen=True)
class Base:
    """A frozen model: in eval mode, no parameter requires a gradient."""

    model: PreTrainedModel
    config: Any
    """The model's transformers configuration."""
    fingerprint: str
    """``blake3:…`` of the source checkpoint's tensors; see rango.base.fingerprint."""
    source: str
    """As the user named it."""
    path: Path | None
    """The local folder of the checkpoint; None for a model made in memory."""
    kind: Kind
    dtype: torch.dtype
    """That the weight matrices which are not quantized are kept in."""
    compute: torch.dtype
    """Of the arithmetic: of activations, norms and biases."""
    quantize: Quantize
    double_quant: bool
    """Whether NF4's block constants are quantized too; true says nothing where quantize is none."""
    labels: tuple[str, ...] = ()
    """Of a classifier, in the order of its logits."""
