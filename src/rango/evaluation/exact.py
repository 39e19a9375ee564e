"""Exact match: does the model write the reference answer, word for word?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rango.data.samples import Example
from rango.data.tokens.encode import token_ids
from rango.data.tokens.tokenize import render_prompt
from rango.errors import DataError
from rango.generation.decode import positions
from rango.generation.generate import Completion, Prompt, generate
from rango.progress import Progress, silent

_SLACK = 8
"""Tokens beyond the reference's own: other white space, another split of a word, the end."""


@dataclass(frozen=True)
class Answer:
    """A generated answer beside the reference."""

    prompt: str
    """Text of the last message before the answer."""
    reference: str
    answer: str
    matched: bool
    """Equal up to white space, and ended by the model itself."""


@dataclass(frozen=True)
class ExactMatch:
    """Share of answers that match, and the answers."""

    score: float
    matched: int
    total: int
    answers: tuple[Answer, ...]


def exact_match(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    progress: Progress = silent,
) -> ExactMatch:
    """Answer each example greedily and compare with its last message, the assistant's.

    Without max_new_tokens each answer may be a little longer than its reference (a longer one
    cannot match), as far as the model's positions go. Raises DataError for an example without an
    answer, and what generate() raises.
    """
    if not examples:
        raise DataError("exact match: expected at least one example, found none")
    questions = [_question(example) for example in examples]
    if max_new_tokens is None:
        limits = [_limit(model, tokenizer, *question) for question in questions]
    else:
        limits = [max_new_tokens] * len(questions)
    completions = generate(
        model,
        tokenizer,
        [prompt for prompt, _ in questions],
        max_new_tokens=limits,
        batch_size=batch_size,
        progress=progress,
    )
    answers = tuple(
        _answer(prompt, reference, completion)
        for (prompt, reference), completion in zip(questions, completions, strict=True)
    )
    matched = sum(answer.matched for answer in answers)
    return ExactMatch(matched / len(answers), matched, len(answers), answers)


def normalised(text: str) -> str:
    """Runs of white space as one space, none at the ends."""
    return " ".join(text.split())


def _question(example: Example) -> tuple[Prompt, str]:
    """The prompt and the reference answer."""
    *before, last = example.messages
    if example.kind == "text" or not before or last.role != "assistant":
        raise DataError(
            f"{example.origin}: expected a conversation or completion that ends with the "
            "assistant's answer; exact match needs a reference to compare with"
        )
    prompt: Prompt = before[0].content if example.kind == "completion" else before
    return prompt, last.content


def _limit(model: nn.Module, tokenizer: Any, prompt: Prompt, reference: str) -> int:
    wanted = len(token_ids(tokenizer, reference)) + _SLACK
    room = positions(model)
    if room is None:
        return wanted
    return max(1, min(wanted, room - len(render_prompt(tokenizer, prompt))))


def _answer(prompt: Prompt, reference: str, completion: Completion) -> Answer:
    shown = prompt if isinstance(prompt, str) else prompt[-1].content
    matched = completion.stopped and normalised(completion.text) == normalised(reference)
    return Answer(shown, reference, completion.text, matched)
