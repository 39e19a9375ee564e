"""Files of samples: every shape they come in, and every way they are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rango.data.faults import FileFault
from rango.data.reading import stream
from rango.data.reading.read import read_examples, stream_examples
from rango.data.samples import Message, Origin
from rango.errors import DataError

CHAT = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}'
PAIR = '{"prompt": "Hi", "completion": "Ho"}'
ALPACA = '{"instruction": "Add", "input": "1 2", "output": "3"}'
TEXT = '{"text": "Hi"}'
PLAIN = {"chat": CHAT, "alpaca": ALPACA, "pair": PAIR, "text": TEXT}


def fault(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(path)
    return str(caught.value)


def test_formats_by_content(write):
    kinds = {}
    for name, line in PLAIN.items():
        (found,) = read_examples(write(line))
        kinds[name] = found.kind
        assert found.origin == Origin(str(write(line)), 1)
    assert kinds == {"chat": "chat", "alpaca": "chat", "pair": "completion", "text": "text"}
    (found,) = read_examples(write(ALPACA))
    assert found.messages == (Message("user", "Add\n\n1 2"), Message("assistant", "3"))
    (found,) = read_examples(write('{"instruction": "Add", "input": "", "output": "3"}'))
    assert found.messages[0] == Message("user", "Add")
    (found,) = read_examples(write('{"instruction": "Add", "output": "3", "text": "all"}'))
    assert found.kind == "chat"


@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "train", "train.data"])
@pytest.mark.parametrize("line", PLAIN.values(), ids=PLAIN)
def test_lines_and_lists_whatever_the_name(write, name, line):
    value = json.loads(line)
    listed = json.dumps([value, value | {"source": "here"}], indent=2)
    lines = f"{line}\n\n{line}\n"
    from_list, from_lines = read_examples(write(listed, name)), read_examples(write(lines, name))
    assert [e.messages for e in from_list] == [e.messages for e in from_lines]
    assert [e.origin.line for e in from_lines] == [1, 3]
    begins = [i + 1 for i, row in enumerate(listed.splitlines()) if row == "  {"]
    assert [e.origin.line for e in from_list] == begins


def test_one_object_over_several_lines(write):
    assert len(read_examples(write(json.dumps(json.loads(CHAT), indent=2), "one.json"))) == 1


@pytest.mark.parametrize("form", [f"{PAIR}\n{PAIR}\n", f"[{PAIR},\n{PAIR}]\n", "Hi\n\nHo\n"])
def test_bom_and_windows_line_ends(write, form):
    name = "data.txt" if form.startswith("H") else "data.json"
    plain = read_examples(write(form, name))
    marked = read_examples(write(b"\xef\xbb\xbf" + form.replace("\n", "\r\n").encode(), name))
    assert marked == plain
    assert len(plain) == 2


def test_text_file_is_a_sample_a_paragraph(write):
    found = read_examples(write("\n\nOne\nline.\n \nÑandú\n\n\n{x", "book.txt"))
    assert [e.messages[0].content for e in found] == ["One\nline.", "Ñandú", "{x"]
    assert [e.origin.line for e in found] == [3, 6, 9]
    assert {e.kind for e in found} == {"text"}


def test_unicode_line_separators_end_no_line(write):
    value = {"prompt": "a\u2028b\u0085c", "completion": "\x0b\x1c"}
    (found,) = read_examples(write(json.dumps({**value, "completion": "x"}, ensure_ascii=False)))
    assert found.messages[0].content == value["prompt"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["no samples", "empty", "expected"]),
        (b"\n  \n\xef\xbb\xbf", [":3: neither JSON"]),
        (b"\xef\xbb\xbf\n", ["no samples"]),
        (b"[]", ["no samples"]),
        (b"question,answer\na,b\n", [":1: neither JSON", "'question,answer"]),
        (b"\xff\xfe{\x00", ["UTF-16", "UTF-8"]),
        (b"\x89PNG\r\n", [":1: neither JSON"]),
        (b'{"text": "\xf1"}', [":1: not UTF-8 (byte 0xf1 at column 11)"]),
        (b'{"text": "a"}\n{"text": "b', [":2: malformed", "cut short"]),
        (b'[{"text": "a"},\n{"text": "b"}', [":2: expected ',' or ']'", "cut short"]),
        (b'[{"text": "a"},\n{"text": ', [":2: malformed", "cut short"]),
        (b'[{"text": "a"},\n\n{"text": x}]', [":3: malformed", "column 10"]),
        (b'[{"text": "a"}\n{"text": "b"}]', [":2: expected ','", "found '{'"]),
        (b'[{"text": "a"}]\n\nmore', [":3: text after the end"]),
        (b'{"text": NaN}', [":1: NaN is not JSON"]),
        (b'{"text": "a", "score": -Infinity}', [":1: -Infinity is not JSON"]),
        (b'[{"text": "a"}, {"text": NaN}]', [":1: NaN"]),
        (b'{"text": "\\ud800"}', [":1: 'text' holds half of a character", "\\ud800"]),
        (b'{"text": 3}', [":1: 'text' should be a string, not a number"]),
        (b'{"text": null}', ["not null"]),
        (b'{"text": " \\n"}', ["'text' is empty"]),
        (b'{"prompt": "a", "completion": ""}', ["'completion' is empty"]),
        (b'{"prompt": "a", "completion": ["b"]}', ["'completion' should be a string, not a list"]),
        (b'{"prompt": "a", "completoin": "b"}', ["did you mean 'completion'", "'completoin'"]),
        (b'{"mesages": []}', ["did you mean 'messages'", "'mesages'"]),
        (b'{"a": 1}', ["with the keys 'messages'; or 'conversations'; or 'instruction', 'output'"]),
        (b"{}", ["found none"]),
        (b"[[1]]", [":1: expected an object {…}, found a list"]),
        (b'{"text": "a"}\n"b"\n', [":2: expected an object {…}, found a string"]),
        (b'{"messages": "hi"}', ["list of messages, not a string"]),
        (b'{"messages": []}', ["not an empty list"]),
        (b'{"messages": ["hi"]}', ["messages[0] should be an object"]),
        (b'{"messages": [{"role": "user", "contnet": "a"}]}', ["no 'content'", "'contnet'"]),
        (b'{"messages": [{"role": "asistant", "content": "a"}]}', ["nearest: assistant"]),
        (b'{"messages": [{"role": "user", "content": null}]}', ["messages[0].content", "null"]),
        (b'{"messages": [{"role": "user", "content": "a"}]}', ["last message", "'user'"]),
        (
            b'{"messages": [{"role": "assistant", "content": ""}]}',
            ["messages[0].content' is empty"],
        ),
        (
            b'{"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]}',
            ["'tool_calls' is not supported"],
        ),
        (b'{"instruction": "a", "output": "b", "imput": "c"}', ["'imput'", "rename it to 'input'"]),
        (b'{"instruction": "", "output": "b"}', ["'instruction' is empty"]),
        (b'{"text": "a"}\n' + PAIR.encode(), [":2: mixed formats", "plain text", "prompt/compl"]),
        (b'{"text": "a"}\n{"txet": "b"}', [":2: missing 'text'", "did you mean 'text'"]),
        (b"[" * 100_000, [":1: malformed JSON: nested too deeply"]),
        (b'{"text": ' + b"[" * 100_000, [":1: malformed JSON: nested too deeply"]),
        (b'{"text": ' + b"9" * 5000 + b"}", [":1: "]),
    ],
)
def test_damage_is_named(write, content, words):
    path = write(content)
    message = fault(path)
    assert message.startswith(str(path))
    for word in words:
        assert word in message


def test_missing_files_and_folders(tmp_path):
    assert "no such file" in fault(tmp_path / "none.jsonl")
    assert "a folder" in fault(tmp_path)
    assert "cannot be read" in fault(tmp_path / "nul\0.jsonl")
    assert "cannot be read" in fault(tmp_path / ("x" * 300))


def test_faults_are_gathered_up_to_ten(write):
    lines = [TEXT, '{"text": 1}', TEXT, "{", '{"txt": "a"}', '{"text": "\xff"}']
    message = fault(path := write("\n".join(lines).encode("latin-1")))
    assert message.startswith(f"{path}: 4 faults:")
    assert [f"{path}:{line}: " in message for line in (1, 2, 3, 4, 5, 6)] == [
        False, True, False, True, True, True
    ]  # fmt: skip
    message = fault(path := write('{"text": 1}\n' * 50))
    assert message.startswith(f"{path}: the first 10 faults:")
    assert message.count("\n") == 10


def test_progress_of_long_files_is_in_bytes(write, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 4096)
    seen: list[tuple[str, float, float, str]] = []
    paths = [write(f"{TEXT}\n" * 15_000, name) for name in ("a.jsonl", "b.jsonl")]
    read_examples(paths, progress=lambda *report, **_: seen.append(report))
    total = sum(path.stat().st_size for path in paths)
    done = [report[1] for report in seen]
    assert {(task, of, unit) for task, _, of, unit in seen} == {("read", total, "B")}
    assert done == sorted(done)
    assert total * 0.3 < done[0] < total * 0.4
    assert done[-1] == total
    assert len(done) == 4


WHOLE = ["\n".join([line] * 3).encode() for line in PLAIN.values()] + [
    json.dumps([json.loads(line)] * 3, indent=1).encode() for line in PLAIN.values()
]
BITS = st.sampled_from(
    [
        b"\xff",
        b"\x00",
        b"NaN",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\ud83d",
        b"\n",
        b"\r",
        b",",
        b"null",
    ]
)
RELAXED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def reads_or_names_the_file(path: Path) -> None:
    try:
        outcome = [example.origin.file for example in read_examples(path)]
    except DataError as error:
        outcome = str(error).splitlines()[:1]
    assert outcome
    assert str(path) in outcome[0]


@RELAXED
@given(st.binary(max_size=200), st.sampled_from(["a.jsonl", "a.json", "a.txt"]))
@example(b'{"text": "a"}\n{"text": "a"}\x0c', "a.json")
def test_any_bytes_are_read_or_refused(write, content, name):
    reads_or_names_the_file(write(content, name))


@RELAXED
@given(st.data(), st.sampled_from(WHOLE))
def test_damaged_files_are_read_or_refused(write, data, content):
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(begin, min(len(content), begin + 5)))
        content = content[:begin] + data.draw(BITS | st.just(b"")) + content[end:]
    reads_or_names_the_file(write(content))


@RELAXED
@given(st.sampled_from(WHOLE), st.integers(0, 400))
def test_files_cut_short_are_read_or_refused(write, content, length):
    reads_or_names_the_file(write(content[:length]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "prompt", "completion", "text", "output"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@RELAXED
@given(st.lists(VALUES, max_size=4))
def test_any_json_is_read_or_refused(write, values):
    reads_or_names_the_file(write("\n".join(json.dumps(value) for value in values)))
    reads_or_names_the_file(write(json.dumps(values)))


def texts(examples) -> list[str]:
    return [example.messages[-1].content for example in examples]


def test_examples_come_while_the_file_is_read(write):
    reading = stream_examples(write(f'{TEXT}\n{{"text": 1}}\n{TEXT}\n'))
    assert texts([next(reading), next(reading)]) == ["Hi", "Hi"]
    with pytest.raises(DataError, match=r":2: 'text' should be a string"):
        next(reading)
    assert list(reading) == []


def test_the_tenth_fault_ends_the_reading(write):
    reading = stream_examples(write(f"{TEXT}\n" + '{"text": 1}\n' * 12 + TEXT))
    assert texts([next(reading)]) == ["Hi"]
    with pytest.raises(DataError, match="the first 10 faults"):
        next(reading)


def test_bad_entries_are_skipped_and_each_one_is_told(write):
    lines = [TEXT, '{"text": 1}', '{"text": "b"}', "{", '{"text": "\xff"}', '{"text": "\0"}', "3"]
    seen: list[DataError] = []
    path = write("\n".join(lines).encode("latin-1"))
    assert texts(read_examples(path, skip=seen.append)) == ["Hi", "b"]
    assert [str(error).split(": ")[0] for error in seen] == [f"{path}:{i}" for i in (2, 4, 5, 6, 7)]
    assert all(error.__traceback__ is None and error.__context__ is None for error in seen)


def test_more_than_ten_may_be_skipped_but_not_all(write):
    seen: list[DataError] = []
    path = write('{"text": 1}\n' * 30 + TEXT)
    assert len(read_examples(path, skip=seen.append)) == 1
    assert len(seen) == 30
    with pytest.raises(DataError, match="no samples are left: each of 3 entries was skipped"):
        read_examples(write('{"text": 1}\n' * 3), skip=seen.append)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no samples"),
        (b"\xff\xfe{", "UTF-16"),
        (b'[{"text": "a"}, {"text": "b"', "cut short"),
        (b'[{"text": "a"} {"text": "b"}]', "expected ','"),
        (b'[{"text": "a}, {"text": "b"}]', "malformed"),
        (b'{\n"text": "a"\n}\n{\n"text": b\n}\n{\n"text": "c"}', ":5: malformed"),
    ],
)
def test_what_ends_a_file_is_never_skipped(write, content, words):
    """What comes after such a fault can't be told apart, so it would be lost uncounted."""
    with pytest.raises(FileFault, match=words):
        read_examples(write(content), skip=lambda error: None)


@pytest.mark.parametrize(
    ("element", "words"),
    [
        ('{"text": NaN}', "NaN is not JSON"),
        ('{"text": x}', "malformed JSON at column 12"),
        ('{"text": ["}", "\\"]}"], "a" "b"}', "malformed"),
        ("", "malformed"),
        ('{"text": "\xff"}', "not UTF-8 (byte 0xff at column 13)"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ('{"text": 1}', "should be a string"),
    ],
)
def test_broken_elements_of_a_list_are_skipped_alone(write, element, words):
    content = f'[{{"text": "a"}},\n  {element},\n{{"text": "c"}}]'.encode("latin-1")
    seen: list[DataError] = []
    path = write(content)
    assert texts(read_examples(path, skip=seen.append)) == ["a", "c"]
    assert str(seen[0]).startswith(f"{path}:2: ")
    assert words in str(seen[0])
    assert len(seen) == 1
    assert words in fault(path)


def test_objects_that_span_lines_may_follow_each_other(write):
    pretty = json.dumps({"prompt": "a", "completion": "b"}, indent=1)
    found = read_examples(write(f"{pretty}\n{pretty}\n\n{pretty}"))
    assert [example.origin.line for example in found] == [1, 5, 10]


def test_a_first_line_that_is_broken_is_still_a_line(write):
    seen: list[DataError] = []
    for first in ('{"text": ', '{"text": "a', '{"text": "a"},', '{"text": NaN}', "{"):
        seen.clear()
        path = write(f"{first}\n{TEXT}\n{TEXT}\n")
        assert len(read_examples(path, skip=seen.append)) == 2, first
        assert [str(error).split(": ")[0] for error in seen] == [f"{path}:1"]


def test_ten_thousand_levels_are_refused_by_line(write):
    deep = "[" * 10_000 + "]" * 10_000
    seen: list[DataError] = []
    path = write(f'{TEXT}\n{{"text": "a", "more": {deep}}}\n{TEXT}\n')
    assert len(read_examples(path, skip=seen.append)) == 2
    assert "nested too deeply" in str(seen[0])
    assert str(seen[0]).startswith(f"{path}:2: ")


def test_every_file_of_several_is_named(write):
    good, bad = write(TEXT, "a.jsonl"), write("[", "b.json")
    empty, other = write("", "c.jsonl"), write('{"text": 1}', "d.jsonl")
    with pytest.raises(DataError, match="3 faults") as caught:
        read_examples([good, bad, empty, other])
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip().split(":")[0] for line in lines] == [str(bad), str(empty), str(other)]


def test_files_put_together_keep_their_marks(write):
    mark = "\ufeff"
    assert len(read_examples(write(f"{mark}{TEXT}\n{mark}{TEXT}\r\n"))) == 2


def test_many_blank_lines_come_first(write):
    found = read_examples(write("\n" * 200_000 + TEXT))
    assert found[0].origin.line == 200_001
    (found,) = read_examples(write(" \n" * 200_000 + f"[\n{TEXT}]"))
    assert found.origin.line == 200_002


ENTRIES = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.text(max_size=8), "completion": st.text(max_size=8).map(lambda t: f"{t}.")}
    ),
    min_size=1,
    max_size=6,
)


@RELAXED
@given(ENTRIES, st.sampled_from([None, 0, 1, "\t"]), st.booleans(), st.sampled_from([3, 64, 4096]))
def test_lists_and_lines_give_back_what_was_written(write, entries, indent, plain, chunk):
    listed = json.dumps(entries, indent=indent, ensure_ascii=plain)
    lines = "\n".join(json.dumps(entry, ensure_ascii=plain) for entry in entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rango.data.reading.json_list.CHUNK", chunk)
        patch.setattr(stream, "CHUNK", chunk)
        for content in (listed, lines, listed.replace("\n", "\r\n"), "\n".join([listed, " "])):
            found = read_examples(write(content))
            assert [example.messages[0].content for example in found] == [
                entry["prompt"] for entry in entries
            ]
            assert texts(found) == [entry["completion"] for entry in entries]


@pytest.mark.parametrize("content", WHOLE)
def test_a_file_cut_anywhere_gives_a_beginning_and_a_fault(write, content):
    whole = read_examples(write(content))
    for length in range(len(content)):
        found, message = [], ""
        path = write(content[:length])
        try:
            for each in stream_examples(path):
                found.append(each)
        except DataError as error:
            message = str(error)
        whole_lines = content[:1] == b"{" and b"\n" in content[length - 1 : length + 1]
        assert str(path) in message or (whole_lines and found)
        assert found == whole[: len(found)]
