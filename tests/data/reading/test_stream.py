"""Memory stays bounded, whatever is read; what is too long is refused by its line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from rango.data.faults import Faults, FileFault
from rango.data.reading import stream
from rango.data.reading.read import read_examples, stream_examples
from rango.data.reading.stream import ByteStream
from rango.errors import DataError

MIB = 1 << 20


def texts(path: Path, seen: list[DataError]) -> list[str]:
    return [each.messages[0].content for each in read_examples(path, skip=seen.append)]


def test_a_look_ahead_takes_nothing_away():
    content = bytes(range(256)) * 20
    found = ByteStream("here", io.BytesIO(content))
    assert found.peek(300) == content[:300]
    assert found.peek(10_000) == content
    assert found.read(5) + found.peek(7) == content[:12]
    assert found.read(10_000) == content[5:]
    assert (found.peek(1), found.read(1)) == (b"", b"")
    assert found.position == len(content)


def test_lines_and_their_numbers():
    found = ByteStream("here", io.BytesIO(b"a\n\nb\r\nc"))
    faults = Faults("here")
    assert list(found.lines(faults)) == [(1, b"a\n"), (2, b"\n"), (3, b"b\r\n"), (4, b"c")]


def test_a_file_that_fails_while_it_is_read():
    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise OSError(5, "input/output error")

    with pytest.raises(FileFault, match=r"here: cannot be read: .*input/output error"):
        ByteStream("here", Failing())


@pytest.mark.parametrize("size", [99, 100, 101, 150, 250])
def test_lines_over_the_limit_are_passed_over(write, monkeypatch, size):
    monkeypatch.setattr(stream, "LONGEST", 100)
    monkeypatch.setattr(stream, "CHUNK", 32)
    long = json.dumps({"text": "x" * (size - 12)})
    assert len(long) == size
    for end in ("\n", ""):
        seen: list[DataError] = []
        path = write(f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n{long}{end}')
        found = texts(path, seen)
        if size <= 100:
            assert (len(found), seen) == (4, [])
        else:
            assert found == ["a", "b"]
            assert [str(error).split(", over")[0] for error in seen] == [
                f"{path}:2: a line of {size + 1:,} bytes",
                f"{path}:4: a line of {size + len(end):,} bytes",
            ]


def test_elements_over_the_limit_are_passed_over(write, monkeypatch):
    monkeypatch.setattr(stream, "LONGEST", 100)
    monkeypatch.setattr("rango.data.reading.json_list.CHUNK", 32)
    words = ["a", 'q"\\{[' * 100, "b", "x" * 85, "y" * 500]
    path = write(json.dumps([{"text": word} for word in words], indent=0))
    seen: list[DataError] = []
    assert texts(path, seen) == ["a", "b", "x" * 85]
    assert [str(error).split(" over")[0] for error in seen] == [
        f"{path}:5: an entry", f"{path}:14: an entry"
    ]  # fmt: skip


def test_paragraphs_over_the_limit_are_passed_over(write, monkeypatch):
    monkeypatch.setattr(stream, "LONGEST", 100)
    paragraphs = ["a\nb", "x\n" * 80, "c", "d\n" + "y" * 200 + "\ne", "f\n\0", "g\nh"]
    path = write("\n\n".join(paragraphs), "book.txt")
    seen: list[DataError] = []
    assert texts(path, seen) == ["a\nb", "c", "g\nh"]
    assert len(seen) == 3


def test_a_line_of_a_gigabyte_is_not_held(tmp_path):
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n{"text": "')
        file.seek(1 << 30, os.SEEK_CUR)  # a hole: nothing on the disk
        file.write(b'"}\n{"text": "b"}\n')
    seen: list[DataError] = []
    tracemalloc.start()
    try:
        assert texts(path, seen) == ["a", "b"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(seen[0]).startswith(f"{path}:2: a line of 1,073,741,837 bytes, over the limit")
    assert peak < 160 * MIB


def test_an_element_of_seventy_mebibytes_is_not_held(write):
    path = write(b'[{"text": "a"},\n{"text": "' + b"x" * (70 * MIB) + b'"},\n{"text": "b"}]')
    seen: list[DataError] = []
    tracemalloc.start()
    try:
        assert texts(path, seen) == ["a", "b"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(seen[0]).startswith(f"{path}:2: an entry over the limit")
    assert peak < 400 * MIB


READ = """
import sys
from rango.data.reading.read import stream_examples

def high():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

for warm in sys.argv[2:]:
    list(stream_examples(warm))
before = high()
count = sum(1 for _ in stream_examples(sys.argv[1]))
print(count, (high() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's to tell")
@pytest.mark.parametrize("form", ["lines", "list", "parquet"])
def test_two_hundred_megabytes_pass_through_little_memory(tmp_path, form):
    path, small = tmp_path / "data", tmp_path / "small"
    entries, words = 25_000, "ñandú y más " * 590
    entry = json.dumps({"text": words}, ensure_ascii=False).encode()
    if form == "lines":
        small.write_bytes(entry)
        with path.open("wb") as file:
            file.writelines(entry + b"\n" for _ in range(entries))
    elif form == "list":
        small.write_bytes(b"[" + entry + b"]")
        with path.open("wb") as file:
            file.write(b"[" + entry)
            file.writelines(b",\n" + entry for _ in range(entries - 1))
            file.write(b"]")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        options = {"use_dictionary": False, "compression": "none"}
        pq.write_table(pa.table({"text": [words]}), small, **options)
        table = pa.table({"text": pa.repeat(pa.scalar(words), entries)})
        pq.write_table(table, path, row_group_size=entries, **options)
    assert path.stat().st_size > 200e6
    result = subprocess.run(
        [sys.executable, "-c", READ, str(path), str(small)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, mebibytes = map(int, result.stdout.split())
    path.unlink()
    assert count == entries
    assert mebibytes < 64


def test_a_reading_left_alone_closes_its_file(write):
    path = write('{"text": "a"}\n' * 100)
    reading = stream_examples(path)
    next(reading)
    held = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
    reading.close()
    if held:
        assert len(os.listdir("/proc/self/fd")) < len(held)


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("blanks", [0, stream.HEAD])
def test_an_object_that_spans_more_lines_than_are_looked_at(write, before, blanks):
    """Wherever the part that is looked at ends: within a word, a number, a letter."""
    body = '{{\n"prompt": "{}",\n"completion": "ñ\\u00f1",\n"wanted": true,\n"rate": 1.25\n}}\n'
    length = len(body.format("").encode())
    for rest in range(1, length):
        text = body.format("x" * (stream.HEAD - rest))
        content = before + b" " * blanks + text.encode()
        (one,) = read_examples(write(content, "big.json"))
        assert one.messages[1].content == "ññ"
