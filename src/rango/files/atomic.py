"""Commit to disk: write a temporary sibling, fsync it, rename. Never half, never over something."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rango.errors import OutputExistsError, StorageError

_REFUSALS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EACCES: "not permitted; choose a folder you can write to",
    errno.EPERM: "not permitted; choose a folder you can write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
}


def refuse_existing(path: Path, remedy: str = "choose another path") -> None:
    """Raise OutputExistsError where `path` is already there (an empty folder is free to take)."""
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if os.path.lexists(path):
        raise OutputExistsError(f"{path}: already exists, and nothing is overwritten; {remedy}")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSALS:
            raise StorageError(f"{path}: cannot be written: {_REFUSALS[error.errno]}") from error
        raise
    except Exception as error:
        # safetensors reports a full disk as its own error, with the system's words inside
        if "No space left on device" in str(error):
            raise StorageError(f"{path}: cannot be written: {_REFUSALS[errno.ENOSPC]}") from error
        raise


@contextmanager
def atomic_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `path` when the block ends well.

    On any exception the sibling is removed and `path` is as it was.
    Raises OutputExistsError if `path` exists and `overwrite` is false; StorageError if the disk
    refuses.
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield working
            _allow_reading(working)
            for folder, _, names in os.walk(working):
                for name in names:
                    _fsync(Path(folder) / name)
                _fsync(Path(folder))
            _swap_in(working, path, overwrite)
            _fsync(path.parent)
        finally:
            shutil.rmtree(working, ignore_errors=True)


@contextmanager
def atomic_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling to write; it becomes `path` when the block ends well.

    Raises as `atomic_directory` does.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise OutputExistsError(f"{path}: already exists, and nothing is overwritten")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        working = Path(name)
        try:
            yield working
            _allow_reading(working)
            _fsync(working)
            os.replace(working, path)
            _fsync(path.parent)
        finally:
            working.unlink(missing_ok=True)


def write_text(path: Path, text: str, overwrite: bool = False) -> None:
    """Commit `text` as UTF-8."""
    with atomic_file(path, overwrite) as working:
        working.write_text(text, encoding="utf-8")


def _swap_in(working: Path, path: Path, overwrite: bool) -> None:
    if overwrite and os.path.lexists(path):
        retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
        os.replace(path, retired / path.name)
        os.replace(working, path)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        os.replace(working, path)  # an empty folder in the way is replaced, a full one refused


def _allow_reading(path: Path) -> None:
    """Temporary files are private (0600, 0700); what is committed follows the user's umask."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~umask)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
