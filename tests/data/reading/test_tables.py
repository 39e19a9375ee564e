"""CSV, Parquet and Arrow: what is written is read back, and damage is named."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rango.data.faults import FileFault
from rango.data.reading import stream
from rango.data.reading.read import read_examples, stream_examples
from rango.data.samples import Example, Message
from rango.errors import ConfigError, DataError

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
PAIRS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(5)]


def as_csv(entries: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(entries[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(entries)
    return buffer.getvalue().encode()


def as_parquet(entries: list[dict[str, Any]], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(entries), sink, **options)
    return bytes(sink.getvalue())


def as_arrow(
    entries: list[dict[str, Any]], maker: Callable[..., Any] = pa.ipc.new_file, rows: int = 2
) -> bytes:
    table = pa.Table.from_pylist(entries)
    sink = pa.BufferOutputStream()
    with maker(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return bytes(sink.getvalue())


def as_arrow_stream(entries: list[dict[str, Any]]) -> bytes:
    return as_arrow(entries, pa.ipc.new_stream)


WRITERS: dict[str, Callable[..., bytes]] = {
    "csv": as_csv,
    "parquet": as_parquet,
    "arrow": as_arrow,
    "arrow stream": as_arrow_stream,
}
BINARY = {name: write for name, write in WRITERS.items() if name != "csv"}


def contents(examples: list[Example]) -> list[tuple[str, ...]]:
    return [tuple(message.content for message in example.messages) for example in examples]


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(path, **options)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def begin(path: Path) -> tuple[list[Example], str]:
    """What comes before a fault, and the fault; "" for none."""
    found: list[Example] = []
    try:
        for each in stream_examples(path):
            found.append(each)
    except DataError as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.arrow", "data", "data.jsonl"])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_rows_are_entries_whatever_the_name(write, name, writer):
    found = read_examples(write(writer(PAIRS), name))
    assert contents(found) == [(f"q{i}", f"a{i}") for i in range(5)]
    first = 2 if writer is as_csv else 1
    assert [each.origin.line for each in found] == list(range(first, first + 5))
    assert {each.format for each in found} == {"completion"}


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
ENTRIES = st.lists(
    st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS.map(lambda text: f"{text}.")}),
    min_size=1,
    max_size=6,
)


@RELAXED
@given(ENTRIES, st.sampled_from([3, 1 << 20]))
@example([{"prompt": 'a "b",\r\n\n;\t\r', "completion": "\ufeff\u2028."}], 3)
def test_what_is_written_is_read_back(write, entries, chunk):
    expected = [(entry["prompt"], entry["completion"]) for entry in entries]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK", chunk)
        for name, writer in WRITERS.items():
            assert contents(read_examples(write(writer(entries), "data"))) == expected, name
        for delimiter in ";\t":
            assert contents(read_examples(write(as_csv(entries, delimiter), "a.csv"))) == expected
        marked = b"\xef\xbb\xbf" + as_csv(entries)
        assert contents(read_examples(write(marked, "a.csv"))) == expected


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_cell_may_hold_a_conversation(write, key):
    expected = (Message("user", "Hi"), Message("assistant", "Ho"))
    packed = [{key: json.dumps(TURNS)}] * 2
    for writer in WRITERS.values():
        assert [each.messages for each in read_examples(write(writer(packed), "a.csv"))] == [
            expected
        ] * 2
    for writer in BINARY.values():
        assert read_examples(write(writer([{key: TURNS}])))[0].messages == expected


def test_labels_of_tables_are_strings(write):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    for writer in WRITERS.values():
        assert [each.label for each in read_examples(write(writer(rows)))] == ["1", "0"]
    for writer in BINARY.values():
        (found,) = read_examples(write(writer([{"text": "a", "label": True}])))
        assert found.label == "true"


def test_other_names_and_groups_of_tables(write):
    rows = [{"q": "a", "r": "b", "meta": {"who": "x"}, "blob": b"\xff"}]
    for writer in BINARY.values():
        path = write(writer(rows))
        (found,) = read_examples(
            path, columns={"prompt": "q", "completion": "r"}, group_column="meta.who"
        )
        assert (contents([found]), found.group) == ([("a", "b")], "x")
    path = write(as_csv([{"q": "a", "r": "b", "who": "x"}]))
    columns = {"prompt": "q", "completion": "r"}
    (found,) = read_examples(path, columns=columns, group_column="who")
    assert found.group == "x"
    path = write(as_csv([{"q": "a", "r": "b"}]), "a.csv")
    assert "no column 'whom' to serve as group" in refused(path, group_column="whom")


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_columns_that_fit_nothing_are_named_once(write, writer):
    path = write(writer([{"prompt": "a", "completoin": "b"}] * 20), "data.csv")
    message = refused(path)
    assert "did you mean 'completion' where it says 'completoin'" in message
    assert "\n" not in message
    with pytest.raises(FileFault):
        read_examples(path, skip=lambda error: None)


@pytest.mark.parametrize("writer", BINARY.values(), ids=BINARY)
def test_cells_without_a_value_are_faults_of_their_row(write, writer):
    rows = [{"text": "a"}, {"text": None}, {"text": "c"}]
    path = write(writer(rows))
    assert refused(path) == f"{path}:2: 'text' should be a string, not null"
    seen: list[DataError] = []
    assert contents(read_examples(path, skip=seen.append)) == [("a",), ("c",)]
    assert len(seen) == 1


@pytest.mark.parametrize("writer", BINARY.values(), ids=BINARY)
def test_a_cell_that_is_not_utf8_is_a_fault_of_its_row(write, writer):
    rows = [{"text": text} for text in ("aaaa", "bQQb", "cccc")]
    content = writer(rows, compression="none") if writer is as_parquet else writer(rows)
    path = write(content.replace(b"QQ", b"\xff\xfe"))
    seen: list[DataError] = []
    assert contents(read_examples(path, skip=seen.append)) == [("aaaa",), ("cccc",)]
    assert str(seen[0]).startswith(f"{path}:2: a damaged row")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text,label\na,b\nc\n", [":3: 1 cells where the first row names 2 columns"]),
        (b"text,label\na,b,c\n", [":2: 3 cells", "put quotes"]),
        (b"text,label\na,\n", [":2: 'label' is empty"]),
        (b"text,label\n\xf1,b\n", [":2: not UTF-8 (byte 0xf1 in column 'text')"]),
        (b"text,label\na,b\0\n", [":2: a NUL byte in column 'label'"]),
        (b'text,label\na,b\n"c,d\ne,f\n', [":3: malformed CSV", "every quote is closed"]),
        (b'text,label\n"a"b,c\n', [":2: malformed CSV", "written twice"]),
        (b"text,text\na,b\n", ["two columns have the name 'text'"]),
        (b"text,label\n", ["no samples"]),
        (b"texts,labels\na,b\n", [":1: expected an entry with the keys", "'texts'"]),
        (b"\xff\xfet\0e\0x\0t\0", ["UTF-16"]),
    ],
)
def test_damage_to_csv_is_named(write, content, words):
    message = refused(write(content, "data.csv"))
    for word in words:
        assert word in message


def test_bad_rows_of_csv_are_skipped_alone(write):
    content = b'text\none\n\xff\n"two\nlines"\na,b\n\nthree\n'
    seen: list[DataError] = []
    path = write(content, "data.csv")
    found = read_examples(path, skip=seen.append)
    assert contents(found) == [("one",), ("two\nlines",), ("three",)]
    assert [each.origin.line for each in found] == [2, 4, 8]
    assert [str(error).split(": ")[0] for error in seen] == [f"{path}:3", f"{path}:6"]


def test_a_quote_that_is_not_closed_is_not_skipped(write):
    path = write(b'text,label\na,b\n"c,d\ne,f\n', "data.csv")
    with pytest.raises(FileFault, match=":3: malformed CSV"):
        read_examples(path, skip=lambda error: None)


def test_long_cells_leave_the_limit_of_the_process_alone(write):
    before = csv.field_size_limit()
    long = "x" * (before + 10)
    reading = stream_examples(write(as_csv([{"text": long}, {"text": "b"}]), "data.csv"))
    assert next(reading).messages[0].content == long
    assert csv.field_size_limit() == before
    assert len(list(reading)) == 1
    assert csv.field_size_limit() == before


def test_rows_and_cells_that_are_too_long(write, monkeypatch):
    monkeypatch.setattr(stream, "LONGEST", 100)
    seen: list[DataError] = []
    content = f'text,label\na,b\n{"x" * 200},b\nc,d\n"e\n{"y" * 200}\nf",g\nh,i\n'
    path = write(content, "data.csv")
    found = read_examples(path, skip=seen.append)
    assert contents(found) == [("a",), ("c",), ("h",)]
    assert [str(error).split(" a line")[0] for error in seen] == [f"{path}:3:", f"{path}:6:"]
    path = write('text\n"' + "x\n" * 200 + '"\n', "data.csv")
    assert ":2: malformed CSV" in refused(path)


@pytest.mark.parametrize("writer", BINARY.values(), ids=BINARY)
def test_a_file_cut_anywhere_gives_a_beginning_or_a_fault(write, writer):
    content = writer(PAIRS)
    whole = contents(read_examples(write(content)))
    faults = 0
    for length in range(0, len(content), 3):
        found, fault = begin(write(content[:length]))
        assert not fault or "data.jsonl" in fault
        faults += bool(fault)
        assert contents(found) == whole[: len(found)]
    assert faults > len(content) / 6
    assert "cut short" in refused(write(content[: len(content) // 2]))


@RELAXED
@given(st.data(), st.sampled_from(sorted(BINARY)))
def test_damaged_tables_are_read_or_refused(write, data, name):
    content = bytearray(BINARY[name](PAIRS))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = write(bytes(content))
    found, fault = begin(path)
    assert str(path) in (fault or str(found[0].origin))


@RELAXED
@given(
    st.sampled_from(
        [b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\x1f\x8b\x08", b"text,label\n"]
    ),
    st.binary(max_size=80),
    st.sampled_from([b"", b"PAR1", b"ARROW1"]),
    st.sampled_from(["a.csv", "a.parquet", "a"]),
)
def test_any_bytes_are_read_or_refused(write, head, body, tail, name):
    path = write(head + body + tail, name)
    found, fault = begin(path)
    assert str(path) in (fault or str(found[0].origin))


@pytest.mark.parametrize("writer", BINARY.values(), ids=BINARY)
def test_what_is_missing_without_the_extra_is_named(write, monkeypatch, writer):
    path = write(writer(PAIRS))
    for name in ("pyarrow", "pyarrow.ipc", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'rango\[data\]'"):
        read_examples(path)


def test_progress_through_tables(write, monkeypatch):
    monkeypatch.setattr("rango.data.reading.read._REPORT_EVERY", 10)
    monkeypatch.setattr("rango.data.reading.arrow._ROWS", 8)
    rows = [{"text": f"text {i}"} for i in range(40)]
    for writer in BINARY.values():
        path = write(writer(rows))
        seen: list[tuple[Any, ...]] = []
        read_examples(path, progress=lambda *report, to=seen: to.append(report))
        done = [report[1] for report in seen]
        assert done == sorted(done)
        assert 0 < done[0] < done[-1] == path.stat().st_size
