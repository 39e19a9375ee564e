"""What to load as the frozen base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BaseDtype = Literal["as stored", "fp32", "bf16"]
Quantize = Literal["none", "nf4"]


@dataclass(frozen=True)
class BaseConfig:
    """The frozen base and how it is held in memory."""

    model: str
    """Folder of a Hugging Face checkpoint, or its name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: BaseDtype = "as stored"
    """Type of the weights in memory (of those left unquantized, when quantize is on)."""
    quantize: Quantize = "none"
    """nf4 holds the linear layers in 4 bits: QLoRA."""
    double_quant: bool = True
    """Quantize NF4's block constants too (4.127 instead of 4.5 bits a weight)."""
