"""Options that several commands share.

jsonargparse runs the TYPE_CHECKING imports of every module whose dataclass it reads; so a module
with options has none, else `--help` would import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from rango.base.config import DEFAULT_CACHE_GB, BaseDtype, Compute, Quantize


@dataclass(frozen=True)
class ModelOptions:
    """The base and how to hold it."""

    base: str
    """Folder of a Hugging Face checkpoint, or its name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    chat_template: str | None = None
    """For a base that has none: a built-in chat template (alpaca, chatml, gemma, llama3, mistral,
    phi, plain) or the path to a .jinja file. An adapter brings its own, which goes first."""
    dtype: BaseDtype | None = None
    """Type that weight matrices are kept in; by default that of the adapter's training, else as
    stored."""
    compute: Compute | None = None
    """Type of the arithmetic: auto takes fp32 on a CPU, as stored that of dtype; by default as in
    the adapter's training, else auto."""
    quantize: Quantize | None = None
    """nf4 holds the linear layers in 4 bits, int8 in 8; by default as in the adapter's training,
    else none."""
    cache: bool = True
    """Keep what is quantized in $RANGO_CACHE (else ~/.cache/rango/bases) for the next start."""
    cache_gb: float = DEFAULT_CACHE_GB
    """Bound on that folder's size in 10⁹ bytes; the least recently used bases go first."""


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer."""

    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above it, samples."""
    top_p: float = 1.0
    """Sample only from the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Sample only from this many likeliest tokens; 0 for all."""
    seed: int = 0
    """Seed of sampling."""
