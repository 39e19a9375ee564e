"""Data with other names, and the column that groups."""

from __future__ import annotations

import pytest

from rango.data.reading.columns import Columns, parse_columns
from rango.data.reading.read import read_examples
from rango.data.samples import Message
from rango.errors import ConfigError, DataError

ASKED = '{"question": "a", "answer": "b", "meta": {"who": "x", "deep": {"note": "c"}}}\n'
PAIR = {"prompt": "question", "completion": "answer"}


def test_names_are_put_under_ours(write):
    (found,) = read_examples(write(ASKED), columns=PAIR)
    assert found.messages == (Message("user", "a"), Message("assistant", "b"))
    assert found.format == "completion"


def test_dots_reach_into_objects_unless_a_name_has_them(write):
    (found,) = read_examples(write(ASKED), columns={"text": "meta.deep.note"})
    assert found.messages[0].content == "c"
    content = '{"meta.note": "flat", "meta": {"note": "deep"}}'
    (found,) = read_examples(write(content), columns={"text": "meta.note"})
    assert found.messages[0].content == "flat"


def test_names_may_change_places(write):
    (found,) = read_examples(
        write('{"prompt": "a", "completion": "b"}'),
        columns={"prompt": "completion", "completion": "prompt"},
    )
    assert [message.content for message in found.messages] == ["b", "a"]


def test_the_mapping_decides_the_format(write):
    content = '{"messages": [], "instruction": "i", "output": "o", "body": "b", "label": 1}'
    (found,) = read_examples(write(content), columns={"text": "body"})
    assert (found.kind, found.label) == ("labelled", "1")
    (found,) = read_examples(write(content), columns={"input": "body"})
    assert (found.format, found.messages[0].content) == ("alpaca", "i\n\nb")


def test_a_name_of_ours_that_is_mapped_is_not_read_from_the_data(write):
    (found,) = read_examples(
        write('{"prompt": "wrong", "question": "a", "completion": "b"}'),
        columns={"prompt": "question"},
    )
    assert found.messages[0].content == "a"


def test_a_missing_column_is_named_with_the_nearest(write):
    path = write(ASKED + '{"qestion": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match=r":2: no column 'question'.*nearest: qestion"):
        read_examples(path, columns=PAIR)
    with pytest.raises(DataError, match=r"no column 'meta\.when' to serve as 'text'"):
        read_examples(path, columns={"text": "meta.when"})


def test_a_column_that_entries_may_lack_is_there_once_at_least(write):
    with_one = '{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": "b", "c": "d"}'
    found = read_examples(write(with_one), columns={"input": "c"})
    assert [example.messages[0].content for example in found] == ["a", "a\n\nd"]
    with pytest.raises(DataError, match=r":1: no column 'context' to serve as 'input'"):
        read_examples(write(with_one), columns={"input": "context"})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"promt": "question"}, "unknown name 'promt'.*nearest: prompt"),
        ({"question": "prompt"}, "unknown name 'question'.*write it as prompt=question"),
        ({"prompt": ""}, "needs the name of a column"),
        ({"prompt": "a", "label": "b"}, "no format has 'prompt', 'label' together"),
    ],
)
def test_mappings_that_make_no_sense(columns, words):
    with pytest.raises(ConfigError, match=words):
        Columns(columns)


def test_the_mapping_is_checked_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError):
        read_examples(tmp_path / "none.jsonl", columns={"promt": "a"})


@pytest.mark.parametrize(
    ("value", "group"), [('"x"', "x"), ("3", "3"), ("true", "true"), ('"ñ"', "ñ")]
)
def test_groups_are_strings(write, value, group):
    (found,) = read_examples(write(f'{{"text": "a", "who": {value}}}'), group_column="who")
    assert found.group == group


def test_groups_may_stand_deeper(write):
    (found,) = read_examples(write(ASKED), columns=PAIR, group_column="meta.who")
    assert found.group == "x"


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ('"whom": "x"', "no column 'who' to serve as group.*nearest: whom"),
        ('"who": null', "'who' should be a string, an integer or a boolean, not null"),
        ('"who": ""', "'who' is empty"),
    ],
)
def test_an_entry_without_a_group_is_a_fault(write, rest, words):
    with pytest.raises(DataError, match=words):
        read_examples(write(f'{{"text": "a", {rest}}}'), group_column="who")


def test_plain_text_has_no_columns(write):
    path = write("One.\n\nTwo.\n", "book.txt")
    with pytest.raises(DataError, match="plain text has no columns"):
        read_examples(path, group_column="who")


def test_the_words_of_a_flag():
    assert parse_columns("prompt=question, completion = a=b") == {
        "prompt": "question",
        "completion": "a=b",
    }
    for wrong in ("", "prompt", "prompt=", "=a", "prompt=a,", "prompt=a,prompt=b"):
        with pytest.raises(ConfigError, match="columns: "):
            parse_columns(wrong)
