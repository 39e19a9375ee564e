"""Where a run's events go: one JSON object a line, appended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rango.errors import DataError, OutputExistsError
from rango.files.atomic import storage_errors

Event = dict[str, Any]


class EventLog:
    """Appends events to a file that only this process writes.

    Every line is whole: one that the disk refuses is taken back, and one torn by a crash is cut
    off when the log is opened again. Raises OutputExistsError where another process holds the
    file, StorageError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with storage_errors(self.path):
            self._file = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
            )
        try:
            self._lock()
            self.truncate(_whole_lines(self.path))
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes written."""
        return os.fstat(self._file).st_size

    def append(self, event: str, step: int, **values: Any) -> Event:
        """Write ``{"event": …, "step": …, "time": unix seconds, …}``; numbers that JSON lacks
        (NaN, infinity) become null. Returns what was written."""
        first = {"event": event, "step": step, "time": round(time.time(), 3)}
        record = json_numbers(first | values)
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        before = self.size
        with storage_errors(self.path):
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                os.ftruncate(self._file, before)
                raise
        return record

    def sync(self) -> None:
        """Make sure that every event is on the disk."""
        with storage_errors(self.path):
            os.fsync(self._file)

    def truncate(self, size: int) -> None:
        """Forget what comes after the first `size` bytes (a `size` from before)."""
        if size < self.size:
            with storage_errors(self.path):
                os.ftruncate(self._file, size)

    def close(self) -> None:
        """Let the file go; may be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputExistsError(
                f"{self.path}: another process is writing to it; wait for that run to end, or "
                "choose another output folder"
            ) from error


def read_events(path: Path) -> list[Event]:
    """All events of a run, also of one still going (a line half written is left out).

    Raises DataError naming file and line for anything that is not an event.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    events: list[Event] = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        record: Any = None
        with contextlib.suppress(ValueError):  # not JSON, or not UTF-8: refused below
            record = json.loads(line)
        if not isinstance(record, dict) or "event" not in record:
            raise DataError(f"{path}:{number}: expected a JSON object with an 'event' on each line")
        events.append(record)
    return events


def json_numbers(value: Any) -> Any:
    """`value` with every number that JSON lacks (NaN, infinity) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: json_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_numbers(inner) for inner in value]
    return value


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1
