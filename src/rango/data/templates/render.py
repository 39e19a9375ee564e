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

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from rango.data.samples import Message
from rango.data.templates.built_in import BUILT_IN
from rango.data.templates.dates import pinned
from rango.errors import DataError, TokenizerError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SENTINEL = re.compile("\ue000([0-9]+)([\ue001\ue002])")
_PART = {"\ue001": 0, "\ue002": 1}
_OPEN, _CLOSE = "<think>", "</think>"
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
class _Parts:
    """A content as literal text (`frame`) around the parts whose places are sought."""

    frame: tuple[str, ...]
    parts: tuple[str, ...]
    """One fewer than `frame` has: nothing, the content, or the reasoning and what follows it."""


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
        for split in (_whole, _apart) if any(map(_thinks, messages)) else (_whole,):
            try:
                found = self._found(messages, [split(message) for message in messages], text)
            except DataError as error:
                fault = error
                continue
            if found is not None:
                return found
        raise fault

    def _found(
        self, messages: Sequence[Message], split: Sequence[_Parts], text: str
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
            _forms(split[message].parts[part], roles[message]) for message, part in skeleton.slots
        ]
        spans = _match(skeleton.pieces, forms, text)
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
            Message(role, _with_sentinels(number, frame))
            for number, (role, frame) in enumerate(zip(roles, frames, strict=True))
        ]
        text = self.text(messages)
        found = list(_SENTINEL.finditer(text))
        slots = tuple((int(match[1]), _PART[match[2]]) for match in found)
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
            for match in _SENTINEL.finditer(text, begin, end):
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


def _whole(message: Message) -> _Parts:
    """The content as one part. A blank one that no one writes is literal text: templates often
    treat it otherwise than any other."""
    if message.role == "assistant" or message.content.strip():
        return _Parts(("", ""), (message.content,))
    return _Parts((message.content,), ())


def _thinks(message: Message) -> bool:
    return message.role == "assistant" and message.content.count(_CLOSE) == 1


def _apart(message: Message) -> _Parts:
    """An answer's reasoning and its text as two parts, the tags and white space between them being
    literal; other messages as one."""
    head, _, answer = message.content.partition(_CLOSE)
    before, opened, reasoning = head.rpartition(_OPEN)
    if not _thinks(message) or before.strip():
        return _whole(message)
    written, thought = answer.lstrip(), reasoning.strip()
    between = f"{_CLOSE}{answer[: len(answer) - len(written)]}"
    if not thought:
        return _Parts((f"{head}{between}", ""), (written,))
    begin = reasoning.index(thought)
    end = begin + len(thought)
    opening = f"{before}{opened}{reasoning[:begin]}"
    return _Parts((opening, f"{reasoning[end:]}{between}", ""), (thought, written))


def _with_sentinels(message: int, frame: tuple[str, ...]) -> str:
    sentinels = [f"\ue000{message}{mark}" for mark in list(_PART)[: len(frame) - 1]]
    pairs = zip(frame, [*sentinels, ""], strict=True)
    return "".join(literal + sentinel for literal, sentinel in pairs)


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
    if len(frame) < 3 or _OPEN not in frame[0] or not before.endswith(_OPEN):
        return 0
    return len(piece) - len(before) + len(_OPEN)


def _match(
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


def _forms(content: str, role: str) -> list[str]:
    """How a template may write a content: as it is, or trimmed; the result of a tool also as the
    inside of a JSON string."""
    trimmed = [content]
    if content != content.strip():
        trimmed += [content.strip(), content.lstrip(), content.rstrip()]
        trimmed += [content.strip("\n"), content.lstrip("\n"), content.rstrip("\n")]
    if role == "tool":
        trimmed += [json.dumps(form, ensure_ascii=False)[1:-1] for form in trimmed]
    return list(dict.fromkeys(trimmed))
