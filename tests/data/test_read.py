"""Files of samples: every shape they come in, and every way they are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rango.data.read import read_examples
from rango.data.samples import Message, Origin
from rango.errors import DataError

CHAT = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}'
PAIR = '{"prompt": "Hi", "completion": "Ho"}'
ALPACA = '{"instruction": "Add", "input": "1 2", "output": "3"}'
TEXT = '{"text": "Hi"}'
PLAIN = {"chat": CHAT, "alpaca": ALPACA, "pair": PAIR, "text": TEXT}


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


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
        (b"prompt,completion\na,b\n", [":1: neither JSON", "'prompt,completion"]),
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
        (b'{"a": 1}', ["expected an entry with the keys 'messages'; or 'instruction', 'output'"]),
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


def test_progress_of_a_long_file(write):
    seen: list[tuple[str, float, float, str]] = []
    path = write(f"{TEXT}\n" * 20_000)
    read_examples(path, progress=lambda *report, **_: seen.append(report))
    assert seen == [("read", 10_000, 20_001, "lines"), ("read", 20_000, 20_001, "lines")]


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
