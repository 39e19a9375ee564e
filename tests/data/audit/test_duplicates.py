"""Copies, near copies and contradictions, whatever the order."""

from __future__ import annotations

import random
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from rango.data.audit.duplicates import Collected
from rango.data.audit.view import view_of
from rango.data.samples import Example, Message, Origin


def copies_of(examples, hasher):
    views = [view_of(index, example) for index, example in enumerate(examples)]
    with Collected() as collected:
        for begin in range(0, len(views), 3):
            part = views[begin : begin + 3]
            collected.add(part, hasher.signatures([view.body for view in part]))
        return collected.close()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_exact_copies_are_found_in_any_order(hasher, ask, numbers):
    spaces = [" ", "  ", "\n", "\t "]
    examples = [
        ask(f"question{spaces[place % 4]}number {number}", f" answer {number * 7919}", place)
        for place, number in enumerate(numbers)
    ]
    copies = copies_of(examples, hasher)
    expected = [place for place, number in enumerate(numbers) if number in numbers[:place]]
    assert copies.exact.tolist() == expected
    assert [copies.first[i] for i in expected] == [numbers.index(numbers[i]) for i in expected]
    assert copies.distinct <= len(set(numbers))


def test_what_makes_a_copy(hasher, ask, label, text):
    spanish = "¿Dónde está el pingüino?"
    base = ask(spanish, "En el salón.")
    same = [
        ask(unicodedata.normalize("NFD", spanish), "En  el\nsalón. "),
        ask(spanish, "En el salón.", 9, file="other.jsonl"),
    ]
    other = [
        ask(spanish, "en el salón."),
        ask(spanish, "En el salón.", system="Sé breve."),
        label(spanish, "En el salón."),
        text(f"{spanish}\nEn el salón."),
        Example(
            "chat", (Message("assistant", spanish), Message("user", "En el salón.")), Origin("a", 1)
        ),
        Example(
            "chat",
            (*base.messages, Message("user", "¿Y?"), Message("assistant", "Sí.")),
            Origin("a", 2),
        ),
    ]
    assert copies_of([base, *same, *other], hasher).exact.tolist() == [1, 2]


def test_near_copies_point_to_the_first_of_their_group(hasher, ask):
    generator = random.Random(0)
    words = [f"{generator.getrandbits(30):x}" for _ in range(100)]
    examples = [
        ask("Something else", "entirely different from the rest of them"),
        ask("Tell me", " ".join(words)),
        ask("Tell me!", " ".join(words) + " so"),
        ask("Tell me!", " ".join(words) + " so"),
        ask("Tell me now", " ".join(words[1:])),
    ]
    copies = copies_of(examples, hasher)
    assert copies.exact.tolist() == [3]
    assert copies.near.tolist() == [2, 4]
    assert copies.group.tolist() == [0, 1, 1, 1, 1]
    assert copies.clusters == (1, 4)
    assert copies.distinct == 2


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=20))
def test_contradictions_are_prompts_with_several_answers(hasher, ask, pairs):
    examples = [ask(f"prompt {p * 7919}", f"reply {a * 104729}") for p, a in pairs]
    copies = copies_of(examples, hasher)
    answers = {p: {a for q, a in pairs if q == p} for p, _ in pairs}
    torn = [p for p in answers if len(answers[p]) > 1]
    assert copies.prompts == len(torn)
    assert copies.contradictory == sum(p in torn for p, _ in pairs)
    for place, (prompt, answer) in enumerate(pairs):
        first = next(i for i, (p, _) in enumerate(pairs) if p == prompt)
        assert copies.head[place] == (first if pairs[first][1] != answer else -1)


def test_what_is_no_contradiction(hasher, ask, text):
    completion = [
        Example("completion", (Message("user", ""), Message("assistant", answer)), Origin("a", 1))
        for answer in ("one thing", "quite another")
    ]
    examples = [
        ask("Hello", "Hi", system="You are kind."),
        ask("Hello", "What?", system="You are rude."),
        text("Hello"),
        *completion,
    ]
    assert copies_of(examples, hasher).contradictory == 0


def test_one_text_with_two_labels(hasher, label):
    copies = copies_of([label("so so", "good"), label("so so", "bad"), label("ok", "good")], hasher)
    assert (copies.contradictory, copies.near.tolist()) == (2, [])
    assert copies.head.tolist() == [-1, 0, -1]
