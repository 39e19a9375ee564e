"""The tokenizer's chat template, and where in its text each answer stands.

The template is rendered once per sequence of roles with a sentinel for each message's content. What
is left is the template's own text, the *skeleton*: pieces of text around the messages. A
conversation is then rendered as it is and matched against its skeleton, which gives the exact
characters of every answer, however often its words occur elsewhere. What a template's
``{% generation %}`` markers or its generation prompt say about where an answer begins is read from
the skeleton too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from rango.data.samples import Message
from rango.errors import DataError, TokenizerError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SENTINEL = re.compile("\ue000([0-9]+)\ue001")
# what a template that does its own arithmetic on the messages can raise, besides its own refusals
_TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True)
class Turn:
    """One answer in a rendered conversation; all in characters.

    The model is to write from `start` on; the answer itself is from `begin` to `end`, and the
    end-of-turn token follows. With generation markers, all up to `marked` is to be learnt.
    """

    message: int
    start: int
    begin: int
    end: int
    marked: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and its answers."""

    text: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class _Skeleton:
    pieces: tuple[str, ...]
    """Text before each message, and after the last: one more than there are messages."""
    messages: tuple[int, ...]
    """The messages in the order in which the template writes them."""
    lead: dict[int, int]
    """Per answer, characters just before it that the model is to write."""
    trail: dict[int, int]
    """Per answer, characters just after it that the template marks as generated."""


class Renderer:
    """A tokenizer's chat template. Raises TokenizerError where the tokenizer has none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._skeletons: dict[tuple[str, ...], _Skeleton] = {}
        if not tokenizer.chat_template:
            raise TokenizerError(
                "the tokenizer has no chat template, which chat messages and Alpaca entries need; "
                "use an instruction-tuned base, put a chat_template.jinja beside the tokenizer's "
                "files, or write the data as prompt/completion"
            )

    def text(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, up to where the assistant's answer begins.

        Raises DataError where the template refuses the conversation.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=prompt
            )
        except _TEMPLATE_FAULTS as error:
            raise DataError(
                f"the chat template refuses the conversation (roles "
                f"{', '.join(message.role for message in messages)}): {error}"
            ) from error
        return text

    def render(self, messages: Sequence[Message]) -> Rendered:
        """The conversation as text with its answers found.

        Raises DataError where the template refuses it, or changes or drops an answer.
        """
        roles = tuple(message.role for message in messages)
        if roles not in self._skeletons:
            self._skeletons[roles] = self._skeleton(roles)
        skeleton = self._skeletons[roles]
        text = self.text(messages)
        spans = _match(skeleton, [message.content for message in messages], text)
        if spans is None:
            raise DataError(
                "the chat template changes the messages' text (it may cut reasoning out of "
                "answers), so what is to be learnt can't be found in it; write the data in the "
                "form that the template keeps, or as prompt/completion"
            )
        turns = [
            Turn(message, begin - skeleton.lead[message], begin, end, end + skeleton.trail[message])
            for message, (begin, end) in zip(skeleton.messages, spans, strict=True)
            if message in skeleton.lead
        ]
        return Rendered(text, tuple(turns))

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton:
        messages = [Message(role, f"\ue000{i}\ue001") for i, role in enumerate(roles)]
        text = self.text(messages)
        found = list(_SENTINEL.finditer(text))
        order = [int(match[1]) for match in found]
        answers = [i for i, role in enumerate(roles) if role == "assistant"]
        if [i for i in order if i in answers] != answers:
            raise DataError("the chat template drops, repeats or reorders the assistant's messages")
        bounds = [0, *(edge for match in found for edge in match.span()), len(text)]
        pieces = [text[begin:end] for begin, end in zip(bounds[::2], bounds[1::2], strict=True)]
        spans = self._generated(messages, text)
        lead, trail = {}, {}
        for place, (match, message) in enumerate(zip(found, order, strict=True)):
            if message in answers:
                begin, end = spans[message] if spans else (match.start(), match.end())
                if not begin <= match.start() < match.end() <= end:
                    raise DataError(
                        f"the chat template's generation markers leave out messages[{message}], an "
                        "answer of the assistant"
                    )
                if not spans:
                    begin = self._prompt_end(messages[:message], text, match.start())
                lead[message] = min(match.start() - begin, len(pieces[place]))
                trail[message] = min(end - match.end(), len(pieces[place + 1]))
        return _Skeleton(tuple(pieces), tuple(order), lead, trail)

    def _prompt_end(self, before: list[Message], text: str, begin: int) -> int:
        """Where the generation prompt ends, if the conversation goes on from it."""
        if not before:
            return begin
        try:
            prompt = self.text(before, prompt=True)
        except DataError:  # some templates demand an answer, or a user's message
            return begin
        return len(prompt) if text.startswith(prompt) and len(prompt) <= begin else begin

    def _generated(self, messages: list[Message], text: str) -> dict[int, tuple[int, int]]:
        """Per answer, the span that the template marks as generated; empty without markers."""
        template = self._tokenizer.get_chat_template()
        if not _GENERATION.search(template):
            return {}
        turns = [{"role": message.role, "content": message.content} for message in messages]
        _, spans = render_jinja_template(
            [turns],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        marked = {i: (0, 0) for i, message in enumerate(messages) if message.role == "assistant"}
        for begin, end in spans[0]:
            for match in _SENTINEL.finditer(text, begin, end):
                marked[int(match[1])] = (begin, end)
        return marked


def _match(skeleton: _Skeleton, contents: list[str], text: str) -> list[tuple[int, int]] | None:
    """The characters of each message in the text, in the skeleton's order, or None.

    Templates may trim contents: every way of trimming is followed, so that white space shared by
    a content's edge and the template's own text can't mislead.
    """
    if not text.startswith(skeleton.pieces[0]):
        return None
    ways: dict[int, list[tuple[int, int]]] = {len(skeleton.pieces[0]): []}
    for place, message in enumerate(skeleton.messages):
        following: dict[int, list[tuple[int, int]]] = {}
        after = skeleton.pieces[place + 1]
        for begin, spans in ways.items():
            for content in _trimmed(contents[message]):
                end = begin + len(content)
                if text.startswith(content, begin) and text.startswith(after, end):
                    following.setdefault(end + len(after), [*spans, (begin, end)])
        ways = following
    return ways.get(len(text))


def _trimmed(content: str) -> list[str]:
    if content == content.strip():
        return [content]
    forms = (content, content.strip(), content.lstrip(), content.rstrip())
    return list(dict.fromkeys((*forms, content.strip("\n"), content.lstrip("\n"))))
