"""The tokenizer's chat template, and where in its text each answer stands.

The template is rendered once per sequence of roles with a sentinel for each message's content. What
is left is the template's own text, the *skeleton*: pieces of text around the messages. A
conversation is then rendered as it is and matched against its skeleton, which gives the exact
characters of every answer, however often its words occur elsewhere. What a template's
``{% generation %}`` markers or its generation prompt say about where an answer begins is read from
the skeleton too.

Some templates cut the reasoning (all up to ``</think>``) out of earlier answers. Where an answer is
not found whole, its reasoning and the text after it get a sentinel each: what the template keeps of
an answer is what is learnt of it. The last answer must be kept whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from rango.data.samples import Message
from rango.data.templates.built_in import BUILT_IN
from rango.data.templates.dates import pinned
from rango.data.templates.parts import (
    OPEN,
    PART,
    SENTINEL,
    Parts,
    apart,
    placed,
    thinks,
    whole,
    with_sentinels,
    written_as,
)
from rango.errors import DataError, TokenizerError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# what a template that does its own arithmetic on the messages can raise, besides its own refusals
_TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)
_REORDERED = "the chat template drops, repeats or reorders the assistant's messages"
_SKELETONS = 1024
"""Skeletons that are kept; conversations mostly have few shapes."""


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
    """A conversation as text, its answers, and where the messages' own text stands."""

    text: str
    turns: tuple[Turn, ...]
    contents: tuple[tuple[int, int, int], ...]
    """(message, begin, end), ascending."""


@dataclass(frozen=True)
class _Answer:
    """An answer among the slots of a skeleton; its lengths in characters."""

    message: int
    first: int
    last: int
    lead: int
    """Just before it, what the model is to write."""
    opening: int
    """Of that, the tag that opens its reasoning, where the content has one."""
    trail: int
    """Just after it, what the template marks as generated."""


@dataclass(frozen=True)
class _Skeleton:
    pieces: tuple[str, ...]
    """Text before each slot, and after the last: one more than there are slots."""
    slots: tuple[tuple[int, int], ...]
    """(message, part) in the order in which the template writes them."""
    answers: tuple[_Answer, ...]


class Renderer:
    """A tokenizer's chat template. Raises TokenizerError where the tokenizer has none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._skeletons: dict[tuple[Any, ...], _Skeleton] = {}
        template = template_of(tokenizer)
        if template is None:
            raise TokenizerError(
                "the tokenizer has no chat template, which chat messages and Alpaca entries need; "
                f"choose one with data.chat_template (a built-in one: {', '.join(BUILT_IN)}; or "
                "the path to a .jinja file), use an instruction-tuned base, or write the data as "
                "prompt/completion"
            )
        self._template = template

    def text(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, up to where the assistant's answer begins.

        Raises DataError where the template refuses the conversation.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except _TEMPLATE_FAULTS as error:
            raise DataError(
                f"the chat template refuses the conversation (roles "
                f"{', '.join(message.role for message in messages)}): {error}"
            ) from error
        return text

    def render(self, messages: Sequence[Message]) -> Rendered:
        """The conversation as text with its answers found.

        Raises DataError where the template refuses it, changes or drops a message, or drops the
        reasoning of the last answer.
        """
        text = self.text(messages)
        fault = DataError(
            "the chat template changes the messages' text (it may cut reasoning out of answers), "
            "so what is to be learnt can't be found in it; write the data in the form that the "
            "template keeps, or as prompt/completion"
        )
        for split in (whole, apart) if any(map(thinks, messages)) else (whole,):
            try:
                found = self._found(messages, [split(message) for message in messages], text)
            except DataError as error:
                fault = error
                continue
            if found is not None:
                return found
        raise fault

    def _found(
        self, messages: Sequence[Message], split: Sequence[Parts], text: str
    ) -> Rendered | None:
        """The answers in the text, the contents being split so; None where they don't match."""
        roles = tuple(message.role for message in messages)
        frames = tuple(content.frame for content in split)
        if (roles, frames) not in self._skeletons:
            if len(self._skeletons) >= _SKELETONS:
                self._skeletons.clear()
            self._skeletons[roles, frames] = self._skeleton(roles, frames)
        skeleton = self._skeletons[roles, frames]
        forms = [
            written_as(split[message].parts[part], roles[message])
            for message, part in skeleton.slots
        ]
        spans = placed(skeleton.pieces, forms, text)
        if spans is None:
            return None
        turns = tuple(
            Turn(
                answer.message,
                spans[answer.first][0] - answer.lead,
                spans[answer.first][0] - answer.opening,
                spans[answer.last][1],
                spans[answer.last][1] + answer.trail,
            )
            for answer in skeleton.answers
        )
        contents = tuple(
            (message, *span) for (message, _), span in zip(skeleton.slots, spans, strict=True)
        )
        return Rendered(text, turns, contents)

    def _skeleton(self, roles: tuple[str, ...], frames: Sequence[tuple[str, ...]]) -> _Skeleton:
        messages = [
            Message(role, with_sentinels(number, frame))
            for number, (role, frame) in enumerate(zip(roles, frames, strict=True))
        ]
        text = self.text(messages)
        found = list(SENTINEL.finditer(text))
        slots = tuple((int(match[1]), PART[match[2]]) for match in found)
        _check_kept(roles, frames, slots)
        bounds = [0, *(edge for match in found for edge in match.span()), len(text)]
        pieces = [text[begin:end] for begin, end in zip(bounds[::2], bounds[1::2], strict=True)]
        marked = self._generated(messages, text)
        answers = []
        for message, role in enumerate(roles):
            if role != "assistant":
                continue
            last = slots.index((message, len(frames[message]) - 2))
            first = slots.index((message, 0)) if (message, 0) in slots else last
            if last - first > 1:
                raise DataError(_REORDERED)
            begin, end = found[first].start(), found[last].end()
            if marked is None:
                start, stop = self._prompt_end(messages[:message], text, begin), end
            else:
                start, stop = marked.get(message, (end, begin))
            if not start <= begin < end <= stop:
                raise DataError(
                    f"the chat template's generation markers leave out messages[{message}], an "
                    "answer of the assistant"
                )
            lead = min(begin - start, len(pieces[first]))
            answers.append(
                _Answer(
                    message,
                    first,
                    last,
                    lead,
                    min(lead, _opening(pieces[first], frames[message])),
                    min(stop - end, len(pieces[last + 1])),
                )
            )
        return _Skeleton(tuple(pieces), slots, tuple(answers))

    def _prompt_end(self, before: list[Message], text: str, begin: int) -> int:
        """Where the generation prompt ends, if the conversation goes on from it."""
        if not before:
            return begin
        try:
            prompt = self.text(before, prompt=True)
        except DataError:  # some templates demand an answer, or a user's message
            return begin
        return len(prompt) if text.startswith(prompt) and len(prompt) <= begin else begin

    def _generated(self, messages: list[Message], text: str) -> dict[int, tuple[int, int]] | None:
        """Per answer, the span that the template marks as generated; None without markers."""
        if not _GENERATION.search(self._template):
            return None
        turns = [{"role": message.role, "content": message.content} for message in messages]
        _, spans = render_jinja_template(
            [turns],
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        marked: dict[int, tuple[int, int]] = {}
        for begin, end in spans[0]:
            for match in SENTINEL.finditer(text, begin, end):
                known = marked.get(int(match[1]), (begin, end))
                marked[int(match[1])] = (min(begin, known[0]), max(end, known[1]))
        return marked


def template_of(tokenizer: Any) -> str | None:
    """The text of the tokenizer's chat template as it is rendered, its date fixed; None without
    one. Raises TokenizerError where it has several and none is the default."""
    own = tokenizer.chat_template
    if not own:
        return None
    if isinstance(own, dict):
        if "default" not in own:
            raise TokenizerError(
                f"the tokenizer has several chat templates ({', '.join(own)}) and none is named "
                "default; choose one with data.chat_template (the path to a .jinja file)"
            )
        own = own["default"]
    return pinned(own)


def _check_kept(
    roles: tuple[str, ...],
    frames: Sequence[tuple[str, ...]],
    slots: tuple[tuple[int, int], ...],
) -> None:
    """Raise DataError unless the template writes every message, and the answers once and in order;
    of answers before the last the reasoning may be missing."""
    answers = [message for message, role in enumerate(roles) if role == "assistant"]
    for message in range(len(roles)):
        if message not in answers and len(frames[message]) > 1 and (message, 0) not in slots:
            raise DataError(
                f"the chat template drops messages[{message}] ({roles[message]}); take such "
                "messages out of the data, or choose a template that keeps them with "
                "data.chat_template"
            )
    kept = [slot for slot in slots if slot[0] in answers]
    wanted: list[tuple[int, int]] = []
    for message in answers:
        parts = [(message, part) for part in range(len(frames[message]) - 1)]
        cut = len(parts) > 1 and message != answers[-1] and parts[0] not in slots
        wanted += parts[1:] if cut else parts
    if kept == wanted:
        return
    if len(wanted) > 1 and kept == [*wanted[:-2], wanted[-1]] and wanted[-1][1] == 1:
        raise DataError(
            "the chat template drops the reasoning of the last answer (all before </think>), so "
            "it can't be learnt; remove it from the data, or choose a template that keeps it with "
            "data.chat_template"
        )
    raise DataError(_REORDERED)


def _opening(piece: str, frame: tuple[str, ...]) -> int:
    """Length of the tag that opens a reasoning, with the white space after it, at a piece's end;
    0 where the content has none."""
    before = piece.rstrip()
    if len(frame) < 3 or OPEN not in frame[0] or not before.endswith(OPEN):
        return 0
    return len(piece) - len(before) + len(OPEN)
