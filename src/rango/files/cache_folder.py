"""What folders of kept work have in common: who may write there, what has to go to make room."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path

_LOG = logging.getLogger("rango")


def cache_folder() -> Path:
    """$RANGO_CACHE, else rango/bases in the user's cache folder."""
    named = os.environ.get("RANGO_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "rango" / "bases"


def may_keep(folder: Path, kept: str) -> bool:
    """Whether a folder, made if need be, is this user's alone to write to; what is against it is
    logged. `kept` is what is to be kept, in words."""
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as refused:
        _LOG.warning("%s: %s cannot be kept here: %s", folder, kept, refused.strerror)
        return False
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        _LOG.warning(
            "%s: not used as a cache: others than you can write to it; chmod go-w it", folder
        )
        return False
    return True


def make_room(folder: Path, entry: re.Pattern[str], nbytes: int, limit: int) -> None:
    """Remove the least recently used of the entries, named so, until `nbytes` more are within the
    limit."""
    entries = [path for path in folder.iterdir() if entry.fullmatch(path.name)]
    sizes = {path: _size(path) for path in sorted(entries, key=last_used)}
    total = sum(sizes.values())
    for path, size in sizes.items():
        if total + nbytes <= limit:
            return
        shutil.rmtree(path, ignore_errors=True)
        total -= size


def remove_leftovers(folder: Path, left_over: re.Pattern[str]) -> None:
    """Remove what a process that was killed left half-written, named so."""
    for path in folder.iterdir():
        if left_over.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def last_used(path: Path) -> int:
    """When, in ns; 0 for what another process has removed."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total
