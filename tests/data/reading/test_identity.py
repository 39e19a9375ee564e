"""What a source is known by: the bytes of its files and how they are read."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rango.data.reading import identity
from rango.data.reading.identity import identify
from rango.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n', encoding="utf-8")
    return path


def test_bytes_name_and_reading_decide(data: Path, tmp_path: Path) -> None:
    first = identify(data, {"columns": {}})
    assert first is not None
    again = identify(str(data), {"columns": {}})
    assert again is not None
    assert again.digest == first.digest
    other = data.rename(tmp_path / "b.jsonl")
    found = {first.digest}
    for source, reading in ((other, {"columns": {}}), (other, {"columns": {"text": "body"}})):
        one = identify(source, reading)
        assert one is not None
        found.add(one.digest)
    other.write_text('{"text": "two"}\n', encoding="utf-8")
    changed = identify(other, {"columns": {}})
    assert changed is not None
    assert len(found | {changed.digest}) == 4


def test_what_reads_tables_decides_about_tables_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table"
    pq.write_table(pa.table({"text": ["one"]}), table)

    def digest(path: Path) -> str:
        found = identify(path, {})
        assert found is not None
        return found.digest

    before = digest(data), digest(table)
    monkeypatch.setattr(identity, "version", lambda name: "0")
    after = digest(data), digest(table)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]


def test_a_change_is_seen(data: Path, tmp_path: Path) -> None:
    one = identify(tmp_path, {})
    assert one is not None
    assert one.unchanged()
    (tmp_path / "b.jsonl").write_text('{"text": "more"}\n', encoding="utf-8")
    assert not one.unchanged()
    two = identify(data, {})
    assert two is not None
    with data.open("a", encoding="utf-8") as file:
        file.write('{"text": "more"}\n')
    assert not two.unchanged()
    data.unlink()
    assert not two.unchanged()


def test_what_can_be_read_only_once_is_not_known(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    assert identify(pipe, {}) is None
    assert identify("-", {}) is None
    assert identify("owner/name", {}) is None
    with pytest.raises(DataError, match="no such file"):
        identify(tmp_path / "none.jsonl", {})
