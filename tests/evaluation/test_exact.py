"""Exact match of generated answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest

from rango.base.tokenizer import load_tokenizer
from rango.data.samples import Example, Message, Origin
from rango.errors import DataError
from rango.evaluation.exact import exact_match, normalised
from rango.generation.generate import generate


@pytest.fixture(scope="module")
def tokenizer(demo_base: Path) -> Any:
    return load_tokenizer(demo_base)


@pytest.fixture(scope="module")
def model() -> Any:
    return models.build("llama", vocab_size=4096, eos_token_id=0, max_position_embeddings=48)


def chat(question: str, answer: str, line: int = 1) -> Example:
    messages = (Message("user", question), Message("assistant", answer))
    return Example("chat", messages, Origin("test.jsonl", line))


def test_an_answer_matches_up_to_white_space_if_it_ends(model: Any, tokenizer: Any) -> None:
    # what this random model writes is made the reference, and its fourth token the end
    (free,) = generate(model, tokenizer, [[Message("user", "def")]], max_new_tokens=8)
    answer = tokenizer.decode(free.token_ids[:3])
    model.generation_config.eos_token_id = free.token_ids[3]
    try:
        examples = [chat("def", f" {answer}\n"), chat("def", "something else", 2)]
        found = exact_match(model, tokenizer, examples)
    finally:
        model.generation_config.eos_token_id = 0
    assert (found.score, found.matched, found.total) == (0.5, 1, 2)
    assert [a.matched for a in found.answers] == [True, False]
    assert found.answers[0].prompt == "def"
    assert found.answers[1].reference == "something else"
    assert normalised(found.answers[1].answer) == normalised(answer)
    # the same words, but the model did not stop there
    assert exact_match(model, tokenizer, examples, max_new_tokens=3).score == 0


def test_completions_are_continued_as_they_are(model: Any, tokenizer: Any) -> None:
    messages = (Message("user", "def f"), Message("assistant", "(x):"))
    found = exact_match(
        model, tokenizer, [Example("completion", messages, Origin("a.jsonl", 1))], max_new_tokens=4
    )
    (expected,) = generate(model, tokenizer, ["def f"], max_new_tokens=4)
    assert found.answers[0].answer == expected.text


def test_answers_stay_within_the_models_positions(model: Any, tokenizer: Any) -> None:
    found = exact_match(model, tokenizer, [chat("def f(): " * 6, "word " * 60)])
    assert found.score == 0


@pytest.mark.parametrize(
    "example",
    [
        Example("text", (Message("user", "some text"),), Origin("a.txt", 7)),
        Example("chat", (Message("user", "hi"),), Origin("a.txt", 7)),
        Example("chat", (Message("assistant", "hi"),), Origin("a.txt", 7)),
    ],
)
def test_examples_without_a_reference(model: Any, tokenizer: Any, example: Example) -> None:
    with pytest.raises(DataError, match=r"a\.txt:7"):
        exact_match(model, tokenizer, [example])
    with pytest.raises(DataError, match="at least one"):
        exact_match(model, tokenizer, [])
