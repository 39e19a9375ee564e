"""What tokenized data are kept under, so that the next run over the same files finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rango.data.config import DataConfig
from rango.data.reading.identity import identify
from rango.files.digests import json_digest


def keeping(
    config: DataConfig,
    source: str,
    columns: Mapping[str, str] | None = None,
    group_column: str | None = None,
) -> Callable[[Any], dict[str, Any]]:
    """For a part of what is read from a source (a JSON value that says which part): the arguments
    with which `tokenize` keeps it; none where it cannot be known again, or must not be kept.

    Raises DataError where there is no such source.
    """
    whole = None
    if config.cache and not config.skip_bad:
        whole = identify(source, {"columns": dict(columns or {}), "group": group_column})

    def of(part: Any) -> dict[str, Any]:
        if whole is None:
            return {}
        return {
            "cache": config.cache,
            "cache_gb": config.cache_gb,
            "data": json_digest([whole.digest, part]),
            "unchanged": whole.unchanged,
        }

    return of
