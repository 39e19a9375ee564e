"""Where kept work lies, and what goes to make room for more."""

from __future__ import annotations

import os
import re

from rango.files.cache_folder import cache_folder, make_room


def test_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("RANGO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rango" / "bases"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_folder() == tmp_path / "other" / "rango" / "bases"
    monkeypatch.setenv("RANGO_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_the_least_recently_used_goes_first(tmp_path):
    for age, name in enumerate(["new", "older", "oldest", "other"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(100))
        os.utime(tmp_path / name, ns=(0, 10 - age))
    entry = re.compile("new|old.*")
    make_room(tmp_path, entry, 50, limit=350)
    assert len(list(tmp_path.iterdir())) == 4
    make_room(tmp_path, entry, 120, limit=350)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "older", "other"]
