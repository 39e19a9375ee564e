"""What to load as the frozen base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BaseDtype = Literal["as stored", "fp32", "bf16", "fp16"]
Quantize = Literal["none", "nf4", "int8"]
Compute = Literal["auto", "as stored"]

DEFAULT_CACHE_GB = 20.0
"""Bound on the size of all quantized bases that are kept, in 10⁹ bytes."""


@dataclass(frozen=True)
class BaseConfig:
    """The frozen base and how it is held in memory."""

    model: str
    """Folder of a Hugging Face checkpoint, or its name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: BaseDtype = "as stored"
    """Type that weight matrices are kept in (those left unquantized, when quantize is on); as
    stored takes that of most of the file. Norms, biases and the like are held in fp32 where the
    arithmetic is."""
    compute: Compute = "auto"
    """Type of the arithmetic: auto takes fp32 on a CPU, which multiplies 16-bit numbers slowly;
    as stored takes dtype's, as transformers does."""
    quantize: Quantize = "none"
    """nf4 holds the linear layers in 4 bits (QLoRA), int8 in 8."""
    double_quant: bool = True
    """Quantize NF4's block constants too (4.127 instead of 4.5 bits a weight)."""
    cache: bool = False
    """Keep what is quantized in $RANGO_CACHE (else ~/.cache/rango/bases), so that the next start
    need not hash and quantize the checkpoint again; rango train sets it."""
    cache_gb: float = DEFAULT_CACHE_GB
    """Bound on that folder's size in 10⁹ bytes; the least recently used bases go first."""
