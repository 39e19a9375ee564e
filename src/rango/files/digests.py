"""Digests of content, written as ``sha256:<hex>``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def bytes_digest(data: bytes) -> str:
    """Digest of bytes in memory."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def file_digest(path: Path) -> str:
    """Digest of a file's bytes, read in bounded memory."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def json_digest(value: Any) -> str:
    """Digest of a JSON value, independent of the order of keys and of spacing."""
    return bytes_digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
