"""Samples without content: empty ones, and those that say one thing over and over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from rango.data.audit.checks import Tally, of_all
from rango.data.audit.drops import Drops
from rango.data.audit.result import Finding
from rango.data.audit.view import View

_VISIBLE = re.compile("[^\\s\u00ad\u200b-\u200f\u2060\ufeff]")
_LEAST_CHARACTERS = 20
_LEAST_DIGITS = 65
"""A word of 64 equal bits is no fault."""
_LEAST_WORDS, _LEAST_LINES = 12, 6
_LONGEST_PERIOD = 8
_PART = 4000
"""Words of a message looked at for repetition."""


class Degenerate:
    """Counts empty and repetitive samples."""

    def __init__(self) -> None:
        self._empty = Tally("empty samples")
        self._unasked = Tally("empty prompts")
        self._characters = Tally("repeated characters")
        self._words = Tally("repeated words")

    def add(self, view: View, drops: Drops) -> None:
        """Look at the next sample."""
        example = view.example
        learnt = [
            message.content
            for message in example.messages
            if message.role == "assistant" or example.kind in ("text", "labelled")
        ]
        if not any(_VISIBLE.search(content) for content in learnt):
            self._empty.hit(view)
            what = "text" if example.kind in ("text", "labelled") else "answer"
            drops.add(view.index, "empty samples", f"its {what} is empty")
            return
        if not view.asked and example.kind in ("chat", "completion"):
            self._unasked.hit(view)
        at = 0
        for message in example.messages:
            content = message.content
            if content and message.role not in ("system", "developer"):
                if char := repeated_character(content):
                    self._characters.hit(view, at)
                    drops.add(
                        view.index, "repeated characters", f"repeats {char!r} and says little else"
                    )
                    return
                if repeats_words(content):
                    self._words.hit(view, at)
                    return
            at += len(content) + 1

    def findings(self, total: int) -> Iterator[Finding]:
        """What was found in `total` samples."""
        yield from self._empty.finding(
            f"{of_all(self._empty.count, total)} are empty or only white space: there is nothing "
            "to learn from them",
            "leave them out (--fix does)",
        )
        yield from self._characters.finding(
            f"{of_all(self._characters.count, total)} have a message that is one character over "
            "and over",
            "leave them out (--fix does), unless the model is to learn just that",
        )
        yield from self._words.finding(
            f"{of_all(self._words.count, total)} have a message that repeats the same words or "
            "lines over and over",
            "read them: generated text that got into a loop should be left out; --fix leaves them "
            "as they are",
        )
        yield from self._unasked.finding(
            f"{of_all(self._unasked.count, total)} have an empty prompt",
            "good where the model is to write unasked; else look for the column that was lost",
        )


def repeated_character(content: str) -> str:
    """The character that makes up nine tenths of what is visible, if there is one."""
    if len(content) < _LEAST_CHARACTERS:
        return ""
    # the one looked for must be among any nine characters, or white space is
    likely = set(content[:: len(content) // 9])
    if max(map(content.count, likely)) * 5 < len(content) * 2:
        return ""
    visible = "".join(content.split())
    if not visible:
        return ""
    char, count = Counter(visible).most_common(1)[0]
    least = _LEAST_DIGITS if char.isdigit() else _LEAST_CHARACTERS
    return char if count >= least and count * 10 >= len(visible) * 9 else ""


def repeats_words(content: str) -> bool:
    """Whether most of a message repeats a run of up to 8 words, or one line."""
    words = content.split(None, _PART)[:_PART]
    if len(words) >= _LEAST_WORDS and len(set(words)) * 2 <= len(words):
        for period in range(1, _LONGEST_PERIOD + 1):
            later = len(words) - period
            same = sum(map(str.__eq__, words[period:], words))
            if same * 10 >= later * 9 and sum(map(_worded, words)) * 2 >= len(words):
                return True
    if content.count("\n") >= _LEAST_LINES - 1:
        lines = [line for line in map(str.strip, content.split("\n", _PART)[:_PART]) if line]
        if len(lines) >= _LEAST_LINES:
            line, count = Counter(lines).most_common(1)[0]
            return count >= 5 and count * 2 > len(lines) and sum(map(str.isalpha, line)) >= 8
    return False


def _worded(word: str) -> bool:
    """Whether it has letters: columns of numbers or marks may well repeat."""
    return any(map(str.isalpha, word))
