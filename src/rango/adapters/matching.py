"""Load a base the way an adapter's training held it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rango.adapters.files import read_adapter
from rango.base.config import BaseDtype, Quantize
from rango.base.load import Base, load_base
from rango.progress import Progress, silent

_DTYPES: dict[Any, BaseDtype] = {"float32": "fp32", "bfloat16": "bf16"}


def load_base_for(
    adapter_folder: str | Path,
    source: str | Path,
    *,
    dtype: BaseDtype | None = None,
    quantize: Quantize | None = None,
    revision: str | None = None,
    progress: Progress = silent,
) -> Base:
    """Load `source` with the dtype and quantization that the adapter's rango.json names, unless
    they are given; as stored and unquantized where it names none (another tool's adapter).

    Raises as read_adapter and load_base do.
    """
    noted = read_adapter(adapter_folder).facts.get("base")
    noted = noted if isinstance(noted, dict) else {}
    nf4 = noted.get("quantize") == "nf4"
    return load_base(
        source,
        dtype=dtype or _DTYPES.get(noted.get("dtype"), "as stored"),
        quantize=quantize or ("nf4" if nf4 else "none"),
        double_quant=not nf4 or noted.get("double_quant") is not False,
        revision=revision or noted_revision(noted, source),
        progress=progress,
    )


def noted_revision(noted: Any, source: str | Path) -> str | None:
    """The revision that rango.json's "base" notes, where `source` is what it was trained over."""
    if isinstance(noted, dict) and noted.get("model") == str(source):
        revision = noted.get("revision")
        return revision if isinstance(revision, str) else None
    return None
