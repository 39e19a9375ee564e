"""Commits are whole or not there, and never land on something."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rango.errors import OutputExistsError, StorageError
from rango.files.atomic import atomic_directory, atomic_file, write_text


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "adapter"
    with atomic_directory(target) as working:
        (working / "inner").mkdir()
        (working / "inner" / "x").write_text("1")
        assert not target.exists()
    assert (target / "inner" / "x").read_text() == "1"
    assert _names(tmp_path / "a") == ["adapter"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic_directory(tmp_path / "adapter") as working:
            (working / "x").write_text("1")
            raise KeyError("fault")

    with pytest.raises(KeyError):
        write_half()
    assert _names(tmp_path) == []


def test_existing_output_is_refused_and_kept(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "mine").write_text("1")
    with pytest.raises(OutputExistsError, match="adapter"), atomic_directory(target):
        pass
    write_text(tmp_path / "file", "old")
    with pytest.raises(OutputExistsError):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert (target / "mine").read_text() == "1"


def test_overwriting_on_request_swaps_whole_folders(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for value in ("old", "new"):
        with atomic_directory(target, overwrite=True) as working:
            (working / value).write_text(value)
    assert _names(target) == ["new"]
    assert _names(tmp_path) == ["adapter"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_refusals_of_the_disk_name_the_path(tmp_path: Path, code: int) -> None:
    with pytest.raises(StorageError, match="adapter"), atomic_file(tmp_path / "adapter"):
        raise OSError(code, os.strerror(code))
    assert _names(tmp_path) == []


def test_committed_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
