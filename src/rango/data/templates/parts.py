"""The parts of a message's content whose places in a rendered text are sought, and the search.

A content is one part, or, where the template may treat an answer's reasoning otherwise than the
text after it, two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rango.data.samples import Message

SENTINEL = re.compile("\ue000([0-9]+)([\ue001\ue002])")
"""What stands for a part while the template's own text is looked at: message, part."""
PART = {"\ue001": 0, "\ue002": 1}
OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Parts:
    """A content as literal text (`frame`) around the parts whose places are sought."""

    frame: tuple[str, ...]
    parts: tuple[str, ...]
    """One fewer than `frame` has: nothing, the content, or the reasoning and what follows it."""


def whole(message: Message) -> Parts:
    """The content as one part. A blank one that no one writes is literal text: templates often
    treat it otherwise than any other."""
    if message.role == "assistant" or message.content.strip():
        return Parts(("", ""), (message.content,))
    return Parts((message.content,), ())


def thinks(message: Message) -> bool:
    """Whether it is an answer with a reasoning."""
    return message.role == "assistant" and message.content.count(CLOSE) == 1


def apart(message: Message) -> Parts:
    """An answer's reasoning and its text as two parts, the tags and white space between them being
    literal; other messages as one."""
    head, _, answer = message.content.partition(CLOSE)
    before, opened, reasoning = head.rpartition(OPEN)
    if not thinks(message) or before.strip():
        return whole(message)
    written, thought = answer.lstrip(), reasoning.strip()
    between = f"{CLOSE}{answer[: len(answer) - len(written)]}"
    if not thought:
        return Parts((f"{head}{between}", ""), (written,))
    begin = reasoning.index(thought)
    end = begin + len(thought)
    opening = f"{before}{opened}{reasoning[:begin]}"
    return Parts((opening, f"{reasoning[end:]}{between}", ""), (thought, written))


def with_sentinels(message: int, frame: tuple[str, ...]) -> str:
    """A content of which only the literal text is left, with a sentinel for each part."""
    sentinels = [f"\ue000{message}{mark}" for mark in list(PART)[: len(frame) - 1]]
    pairs = zip(frame, [*sentinels, ""], strict=True)
    return "".join(literal + sentinel for literal, sentinel in pairs)


def placed(
    pieces: tuple[str, ...], forms: Sequence[Sequence[str]], text: str
) -> list[tuple[int, int]] | None:
    """The characters of each slot in the text, or None; a slot holds one of its forms.

    Every form is followed, so that white space shared by a content's edge and the template's own
    text can't mislead.
    """
    if not text.startswith(pieces[0]):
        return None
    ways: dict[int, list[tuple[int, int]]] = {len(pieces[0]): []}
    for ways_of_slot, after in zip(forms, pieces[1:], strict=True):
        following: dict[int, list[tuple[int, int]]] = {}
        for begin, spans in ways.items():
            for form in ways_of_slot:
                end = begin + len(form)
                if text.startswith(form, begin) and text.startswith(after, end):
                    following.setdefault(end + len(after), [*spans, (begin, end)])
        ways = following
    return ways.get(len(text))


def written_as(content: str, role: str) -> list[str]:
    """How a template may write a content: as it is, or trimmed; the result of a tool also as the
    inside of a JSON string."""
    trimmed = [content]
    if content != content.strip():
        trimmed += [content.strip(), content.lstrip(), content.rstrip()]
        trimmed += [content.strip("\n"), content.lstrip("\n"), content.rstrip("\n")]
    if role == "tool":
        trimmed += [json.dumps(form, ensure_ascii=False)[1:-1] for form in trimmed]
    return list(dict.fromkeys(trimmed))
