"""`rango chat`: talk with a model, its adapter, or both side by side."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jsonargparse import ArgumentParser

import rango
from rango.cli.models import load, refuse_classifier, tokenizer_of
from rango.cli.options import AnswerOptions, ModelOptions
from rango.cli.parsing import collect, new_parser, parse, say
from rango.cli.progress import ProgressBars
from rango.data.samples import Message
from rango.errors import ConfigError, RangoError
from rango.report.format import printable

DESCRIPTION = """\
Talks with a model: type a message and Enter; the answer appears as it is made, and Ctrl-C ends it.
/reset forgets the conversation, /quit (or Ctrl-D) ends. With --compare the base answers too, each
keeping its own conversation."""

EXAMPLE = "  rango chat --base BASE --adapter runs/first/adapter --compare"


@dataclass(frozen=True)
class ChatOptions:
    """Who talks."""

    adapter: str | None = None
    """Folder of an adapter."""
    system: str | None = None
    """A system message to begin with."""


def parser() -> ArgumentParser:
    """The flags of `rango chat`."""
    made = new_parser("chat", DESCRIPTION, EXAMPLE)
    made.add_class_arguments(ModelOptions)
    made.add_class_arguments(ChatOptions)
    made.add_class_arguments(AnswerOptions)
    made.add_argument("--compare", action="store_true", help="let the base answer too")
    return made


def main(words: Sequence[str]) -> None:
    """Parse, load, talk."""
    parsed = parse(parser(), words)
    options = collect(ChatOptions, parsed)
    if parsed.compare and not options.adapter:
        raise ConfigError("--compare lets the base answer beside an adapter: give --adapter")
    with ProgressBars() as progress:
        model = collect(ModelOptions, parsed)
        refuse_classifier([options.adapter] if options.adapter else [])
        base = load(model, options.adapter, progress)
        tokenizers = {"base": tokenizer_of(model, base, None)}
        if options.adapter:
            tokenizers["adapted"] = tokenizer_of(model, base, options.adapter)
        adapted = rango.load_adapter(base, options.adapter) if options.adapter else None
    speakers = {"adapted" if adapted else "base": contextlib.nullcontext}
    if adapted and parsed.compare:
        speakers = {"base": adapted.disabled, **speakers}
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() its line editing
    answers = asdict(collect(AnswerOptions, parsed))
    # what would fail at every message (no chat template, an encoder, a bad option) fails now
    first = answers | {"max_new_tokens": min(1, answers["max_new_tokens"])}
    for name in speakers:
        rango.generate(base.model, tokenizers[name], [[Message("user", "?")]], **first)
    say("/reset forgets the conversation, /quit ends")
    Conversation(base.model, tokenizers, speakers, options.system, answers).talk()


class Conversation:
    """Reads messages and lets every speaker answer, until the end of the input.

    speakers: for each name a context in which the model speaks as that one. tokenizers: by the same
    names. answers: options of `rango.stream`.
    """

    def __init__(
        self,
        model: Any,
        tokenizers: dict[str, Any],
        speakers: dict[str, Any],
        system: str | None,
        answers: dict[str, Any],
    ) -> None:
        self.model, self.tokenizers, self.speakers = model, tokenizers, speakers
        self.system, self.answers = system, answers
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        opening = [Message("system", self.system)] if self.system else []
        self.histories = {name: list(opening) for name in self.speakers}

    def talk(self) -> None:
        """Until /quit or the end of the input."""
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                sys.stdout.write("\n")
                return
            if line == "/quit":
                return
            if line == "/reset":
                self.reset()
                say("(forgotten)")
            elif line.startswith("/"):
                say(f"no command {line.split()[0]!r}: /reset forgets, /quit ends")
            elif line:
                for name in self.speakers:
                    self._answer(name, line)

    def _answer(self, name: str, line: str) -> None:
        history = self.histories[name]
        history.append(Message("user", line))
        if len(self.speakers) > 1:
            sys.stdout.write(f"[{name}] ")
        pieces: list[str] = []
        try:
            with self.speakers[name]():
                tokenizer = self.tokenizers[name]
                for piece in rango.stream(self.model, tokenizer, history, **self.answers):
                    pieces.append(piece)
                    sys.stdout.write(printable(piece))
                    sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stdout.write(" …")
        except RangoError as error:  # such as a conversation grown too long: the talk goes on
            history.pop()
            say(f"rango: error: {error}")
            return
        sys.stdout.write("\n")
        history.append(Message("assistant", "".join(pieces)))
