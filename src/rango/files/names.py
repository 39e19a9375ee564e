"""Names and paths that come from outside and reach the file system."""

from __future__ import annotations

import re

from rango.errors import AdapterError

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def adapter_name(name: str) -> str:
    """Return `name` if it is safe as a folder's name, else raise AdapterError."""
    if not _ADAPTER_NAME.fullmatch(name) or ".." in name:
        raise AdapterError(
            f"adapter name {name!r}: expected 1 to 64 of A-Z a-z 0-9 . _ - , starting with a "
            "letter or digit and without '..'"
        )
    return name
