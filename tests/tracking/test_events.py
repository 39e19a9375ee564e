"""The event log: whole lines, whatever happens."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rango.errors import DataError, OutputExistsError, StorageError
from rango.tracking.events import EventLog, read_events


def test_events_come_back_in_order(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        written = [log.append("start", 0, total=2), log.append("step", 1, loss=0.5)]
        log.sync()
        assert read_events(log.path) == written
    assert [event["event"] for event in written] == ["start", "step"]
    assert written[1]["step"] == 1
    assert written[1]["loss"] == 0.5
    assert written[1]["time"] >= written[0]["time"] > 1e9


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append("step", 1, loss=float("nan"), parts={"a": [float("inf"), 1.0]})
    record = json.loads(log.path.read_text())
    assert record["loss"] is None
    assert record["parts"] == {"a": [None, 1.0]}


def test_a_torn_line_is_ignored_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append("step", 1)
    with path.open("a") as file:
        file.write('{"event": "st')
    assert [event["step"] for event in read_events(path)] == [1]
    with EventLog(path) as log:
        log.append("step", 2)
    assert [event["step"] for event in read_events(path)] == [1, 2]


def test_truncate_goes_back_to_a_former_size(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append("step", 1)
        size = log.size
        log.append("step", 2)
        log.truncate(size)
        log.append("step", 3)
    assert [event["step"] for event in read_events(log.path)] == [1, 3]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append("step", 1)
        write = os.write

        def half_then_full(file: int, data: Any) -> int:
            monkeypatch.setattr(os, "write", full)
            return write(file, data[:5])

        def full(file: int, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", half_then_full)
        with pytest.raises(
            StorageError, match=r"events\.jsonl: cannot be written: the disk is full"
        ):
            log.append("step", 2)
        monkeypatch.setattr(os, "write", write)
        log.append("step", 3)
    assert [event["step"] for event in read_events(log.path)] == [1, 3]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path), pytest.raises(OutputExistsError, match="another process"):
        EventLog(path)
    EventLog(path).close()


def test_a_folder_that_is_not_there_is_a_plain_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        EventLog(tmp_path / "nowhere" / "events.jsonl")


@pytest.mark.parametrize("line", ["[]", "{}", "nonsense", "\xff"])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "start"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=r"events\.jsonl:2: expected a JSON object"):
        read_events(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"events\.jsonl: cannot be read: No such file"):
        read_events(tmp_path / "events.jsonl")
