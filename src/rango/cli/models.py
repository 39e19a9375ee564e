"""Loading the base that a command names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rango
from rango.cli.options import ModelOptions
from rango.progress import Progress

if TYPE_CHECKING:
    from rango.base.load import Base


def load(options: ModelOptions, progress: Progress) -> Base:
    """The base that the options name."""
    return rango.load_base(
        options.base,
        dtype=options.dtype,
        quantize=options.quantize,
        revision=options.revision,
        progress=progress,
    )
