"""Load a base the way an adapter's training held it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from rango.adapters.files import read_adapter
from rango.base.config import DEFAULT_CACHE_GB, BaseDtype, Compute, Quantize
from rango.base.load import Base, load_base
from rango.progress import Progress, silent

_DTYPES: dict[Any, BaseDtype] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_NARROW = ("bfloat16", "float16")


def load_base_for(
    adapter_folder: str | Path,
    source: str | Path,
    *,
    dtype: BaseDtype | None = None,
    compute: Compute | None = None,
    quantize: Quantize | None = None,
    revision: str | None = None,
    cache: bool | str | Path = False,
    cache_gb: float = DEFAULT_CACHE_GB,
    progress: Progress = silent,
) -> Base:
    """Load `source` with the types and quantization that the adapter's rango.json names, unless
    they are given; as stored and unquantized where it names none (another tool's adapter). For a
    classifier's adapter the base is one with its labels.

    Raises as read_adapter and load_base do.
    """
    file = read_adapter(adapter_folder)
    noted = file.facts.get("base")
    noted = noted if isinstance(noted, dict) else {}
    held: Any = noted.get("quantize")
    return load_base(
        source,
        dtype=dtype or _DTYPES.get(noted.get("dtype"), "as stored"),
        compute=compute or ("as stored" if noted.get("compute") in _NARROW else "auto"),
        quantize=quantize or (held if held in get_args(Quantize) else "none"),
        double_quant=held != "nf4" or noted.get("double_quant") is not False,
        labels=file.labels or None,
        revision=revision or noted_revision(noted, source),
        cache=cache,
        cache_gb=cache_gb,
        progress=progress,
    )


def noted_revision(noted: Any, source: str | Path) -> str | None:
    """The revision that rango.json's "base" notes, where `source` is what it was trained over."""
    if isinstance(noted, dict) and noted.get("model") == str(source):
        revision = noted.get("revision")
        return revision if isinstance(revision, str) else None
    return None
