"""Hold out by a hash of the prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rango.data.samples import Example, Message, Origin
from rango.data.split import HeldOut
from rango.errors import ConfigError


def hold_out(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    held = HeldOut(iter(examples), share)
    train = [example for example in examples if example not in held]
    valid = [example for example in examples if example in held]
    assert (held.rest, held.count) == (len(train), len(valid))
    return train, valid


def ask(question: str, answer: str = "yes") -> Example:
    messages = (Message("user", question), Message("assistant", answer))
    return Example("chat", messages, Origin("data.jsonl", 1))


def test_share_order_and_stability():
    many = [ask(f"question {i}") for i in range(2000)]
    train, valid = hold_out(many, 0.1)
    assert 150 < len(valid) < 250
    assert sorted([*train, *valid], key=many.index) == many
    chosen = set(train)
    assert train == [example for example in many if example in chosen]
    fewer_train, fewer_valid = hold_out(many[:1000], 0.1)
    assert set(fewer_train) <= set(train)
    assert set(fewer_valid) <= set(valid)
    assert set(valid) <= set(hold_out(many, 0.2)[1])


def test_the_same_questions_are_always_held_out():
    """The hash is a promise to data sets that grow: it may not change between versions."""
    many = [ask(f"q{i}") for i in range(60)]
    assert [many.index(example) for example in hold_out(many, 0.1)[1]] == [
        7,
        10,
        19,
        23,
        24,
        31,
        49,
    ]


def test_copies_of_a_prompt_stay_together():
    copies = [ask("same", "one"), ask("same", "two"), ask(" same\n", "three"), ask("other")]
    train, valid = hold_out(copies, 0.5)
    sides = [{m.messages[0].content.strip() for m in side} for side in (train, valid)]
    assert sides[0].isdisjoint(sides[1])
    assert all(sides)


def test_conversations_with_one_beginning_stay_together():
    begin = (Message("user", "hello"), Message("assistant", "hi"))
    going_on = (*begin, Message("user", "bye"), Message("assistant", "bye"))
    same = [Example("chat", m, Origin("a", 1)) for m in (begin, going_on)]
    _, valid = hold_out([*same, ask("other")], 0.5)
    assert len(valid) in (1, 2)
    assert (same[0] in valid) == (same[1] in valid)


def test_nothing_to_share():
    assert hold_out([ask("a"), ask("b")], 0) == ([ask("a"), ask("b")], [])
    assert hold_out([], 0.5) == ([], [])
    train, valid = hold_out([ask("a"), ask("a", "no")], 0.5)
    assert {len(train), len(valid)} == {0, 2}


@pytest.mark.parametrize("share", [-0.1, 1, 2, float("nan")])
def test_share_out_of_range(share):
    with pytest.raises(ConfigError, match="valid_share"):
        hold_out([ask("a")], share)


@given(
    st.lists(st.text("ab ", max_size=3), min_size=1, max_size=12),
    st.floats(0.001, 0.999),
    st.sampled_from(["chat", "text"]),
)
def test_both_sides_have_some_and_none_straddles(prompts, share, kind):
    if kind == "chat":
        examples = [ask(prompt) for prompt in prompts]
    else:
        examples = [Example("text", (Message("assistant", p),), Origin("a", 1)) for p in prompts]
    train, valid = hold_out(examples, share)
    assert len(train) + len(valid) == len(examples)
    keys = [{" ".join(e.messages[0].content.split()) for e in side} for side in (train, valid)]
    assert keys[0].isdisjoint(keys[1])
    if len(keys[0] | keys[1]) > 1:
        assert train
        assert valid


def of_group(question: str, group: str | None) -> Example:
    return Example("chat", (Message("user", question),), Origin("a", 1), group=group)


def test_a_group_stands_on_one_side():
    many = [of_group(f"q{i}", f"customer {i % 40}") for i in range(800)]
    train, valid = hold_out(many, 0.2)
    sides = [{example.group for example in side} for side in (train, valid)]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[0]) + len(sides[1]) == 40
    assert 2 <= len(sides[1]) <= 16


def test_a_group_is_chosen_by_its_name_alone():
    one = [of_group(f"q{i}", f"g{i % 30}") for i in range(60)]
    other = [of_group(f"other {i}", f"g{i % 30}") for i in range(300)]
    chosen = [{example.group for example in hold_out(each, 0.3)[1]} for each in (one, other)]
    assert chosen[0] == chosen[1] == {f"g{i}" for i in (1, 5, 10, 12, 13, 15, 19, 27, 28, 29)}


def test_examples_without_a_group_go_by_their_prompt():
    plain = [of_group(f"q{i}", None) for i in range(100)]
    held = {example.messages for example in hold_out(plain, 0.2)[1]}
    mixed = [*plain, *(of_group(f"q{i}", "g") for i in range(100))]
    valid = hold_out(mixed, 0.2)[1]
    assert {example.messages for example in valid if example.group is None} == held
    assert len({example.group for example in valid if example.group}) <= 1


@given(st.text(min_size=1), st.floats(0.01, 0.99))
def test_a_single_prompt_is_learnt(prompt: str, share: float):
    train, valid = hold_out([ask(prompt)], share)
    assert (len(train), len(valid)) == (1, 0)
