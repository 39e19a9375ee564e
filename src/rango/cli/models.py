"""Loading the base that a command names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rango
from rango.cli.options import ModelOptions
from rango.progress import Progress

if TYPE_CHECKING:
    from rango.base.load import Base


def load(options: ModelOptions, adapter: str | None, progress: Progress) -> Base:
    """The base that the options name, held as the adapter's training held it unless they say."""
    if adapter is not None:
        return rango.load_base_for(
            adapter,
            options.base,
            dtype=options.dtype,
            quantize=options.quantize,
            revision=options.revision,
            progress=progress,
        )
    return rango.load_base(
        options.base,
        dtype=options.dtype or "as stored",
        quantize=options.quantize or "none",
        revision=options.revision,
        progress=progress,
    )
