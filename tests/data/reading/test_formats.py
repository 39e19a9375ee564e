"""The formats: how each is recognised, what it becomes, and what is said of a faulty entry."""

from __future__ import annotations

import json

import pytest

from rango.data.reading.formats import FORMATS, NAMES, parse_entry, recognise
from rango.data.reading.read import read_examples
from rango.data.samples import Example, Message, Origin
from rango.errors import DataError

HERE = Origin("data.jsonl", 7)


def parsed(entry: object) -> Example:
    return parse_entry(entry, recognise(entry, HERE), HERE)


def refused(entry: object) -> str:
    with pytest.raises(DataError) as caught:
        parsed(entry)
    assert str(caught.value).startswith("data.jsonl:7: ")
    return str(caught.value)


def said(*turns: tuple[str, str]) -> dict[str, object]:
    return {"conversations": [{"from": speaker, "value": words} for speaker, words in turns]}


@pytest.mark.parametrize(
    ("entry", "kind", "key"),
    [
        ({"messages": [{"role": "assistant", "content": "a"}]}, "chat", "chat"),
        (said(("human", "a"), ("gpt", "b")), "chat", "sharegpt"),
        ({"instruction": "a", "output": "b", "text": "all"}, "chat", "alpaca"),
        ({"prompt": "a", "completion": "b"}, "completion", "completion"),
        ({"text": "a", "label": "b"}, "labelled", "labelled"),
        ({"text": "a"}, "text", "text"),
    ],
)
def test_each_format_has_its_name(entry, kind, key):
    found = parsed(entry)
    assert (found.kind, found.format, found.group) == (kind, key, None)
    assert found.origin == HERE


def test_the_names_are_those_of_the_formats():
    assert set(NAMES) == {key for each in FORMATS for key in (*each.required, *each.optional)}
    assert len({each.key for each in FORMATS}) == len(FORMATS)


def test_every_role_of_a_long_conversation():
    turns = [
        ("system", "s"), ("developer", "d"), ("user", "u"), ("assistant", "a"), ("tool", "t"),
        ("assistant", "b"), ("user", ""), ("assistant", "c"),
    ]  # fmt: skip
    entry = {"messages": [{"role": role, "content": words} for role, words in turns]}
    assert parsed(entry).messages == tuple(Message(*turn) for turn in turns)


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("human", "user"), ("user", "user"), ("gpt", "assistant"), ("chatgpt", "assistant"),
        ("bing", "assistant"), ("bard", "assistant"), ("assistant", "assistant"),
        ("system", "system"), ("tool", "tool"), ("function", "tool"), ("observation", "tool"),
    ],
)  # fmt: skip
def test_the_speakers_of_sharegpt(speaker, role):
    found = parsed(said((speaker, "words"), ("gpt", "end")))
    assert found.messages == (Message(role, "words"), Message("assistant", "end"))


def test_turns_are_read_by_their_own_keys():
    turns = [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}]
    expected = (Message("user", "a"), Message("assistant", "b"))
    assert parsed({"conversations": turns}).messages == expected
    assert parsed({"messages": turns}).messages == expected


@pytest.mark.parametrize(
    "entry", [said(("human", "a"), ("gpt", "b")), {"instruction": "a", "output": "b"}]
)
def test_a_system_message_beside_the_conversation(entry):
    plain = parsed(entry).messages
    assert parsed(entry | {"system": "Be brief."}).messages == (
        Message("system", "Be brief."),
        *plain,
    )
    assert parsed(entry | {"system": " "}).messages == plain
    assert parsed(entry | {"system": None}).messages == plain
    assert "'system' should be a string" in refused(entry | {"system": 3})
    assert "rename it to 'system'" in refused(entry | {"sytem": "Be brief."})


@pytest.mark.parametrize(
    ("label", "text"), [("good", "good"), (3, "3"), (0, "0"), (True, "true"), (False, "false")]
)
def test_labels_are_strings(label, text):
    found = parsed({"text": "a", "label": label})
    assert found.label == text
    assert found.messages == (Message("user", "a"),)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"text": "a", "label": None}, ["'label' should be a string, an integer", "null"]),
        ({"text": "a", "label": 1.5}, ["'label'", "a number"]),
        ({"text": "a", "label": " "}, ["'label' is empty"]),
        ({"text": "", "label": "b"}, ["'text' is empty"]),
        (said(("human", "a")), ["last message should be the assistant's", "'user'"]),
        (said(("humna", "a"), ("gpt", "b")), ["unknown role 'humna'", "nearest: human"]),
        (said(("human", "a"), ("gpt", "")), ["'conversations[1].value' is empty"]),
        (said(("system", "a"), ("gpt", "b")) | {"system": "c"}, ["two system messages"]),
        ({"conversations": []}, ["'conversations' should be a list of messages", "empty list"]),
        ({"conversations": ["a"]}, ["conversations[0] should be an object with 'from' and"]),
        ({"conversations": [{"from": "gpt", "vlaue": "a"}]}, ["no 'value'", "'vlaue'"]),
        ({"conversatons": []}, ["did you mean 'conversations'"]),
        ({"messages": "[1"}, ["'messages' holds malformed JSON"]),
        ({"messages": "[{'role': 'user'}]"}, ["single quotes", "json.dumps"]),
        ({"messages": "[" * 10_000}, ["nested too deeply"]),
        ({"text": b"a"}, ["a value of type bytes"]),
    ],
)
def test_what_is_said_of_a_faulty_entry(entry, words):
    message = refused(entry)
    for word in words:
        assert word in message


def test_conversations_may_be_text_of_json():
    turns = [{"role": "user", "content": "ñ"}, {"role": "assistant", "content": "b"}]
    packed = json.dumps(turns)
    assert parsed({"messages": packed}).messages == parsed({"messages": turns}).messages


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content", "weight"])
def test_what_would_be_lost_is_refused_and_what_is_empty_is_not(key):
    def entry(value: object) -> dict[str, object]:
        return {"messages": [{"role": "assistant", "content": "a", key: value}]}

    assert f"'{key}' is not supported" in refused(entry(0))
    for empty in (None, [], ""):
        assert parsed(entry(empty)).messages == (Message("assistant", "a"),)


def test_text_and_labelled_text_do_not_mix(write):
    labelled, plain = '{"text": "a", "label": 1}\n', '{"text": "b"}\n'
    for content in (labelled + plain, plain + labelled):
        with pytest.raises(DataError, match=r":2: mixed formats .*text\+label|:2: mixed .*plain"):
            read_examples(write(content))


def test_the_ai_toolkits_names(write):
    """train.json and test.json of the AI Toolkit are JSON Lines."""
    line = json.dumps({"messages": [{"role": "assistant", "content": "a"}]})
    for name in ("train.json", "test.json"):
        assert len(read_examples(write(f"{line}\n{line}\n", name))) == 2
