"""`rango generate`: answer one prompt, or every prompt of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jsonargparse import ArgumentParser

import rango
from rango.cli.models import load, refuse_classifier, tokenizer_of
from rango.cli.options import AnswerOptions, ModelOptions
from rango.cli.output import print_json, show
from rango.cli.parsing import add_json_flag, collect, new_parser, parse
from rango.cli.progress import ProgressBars
from rango.data.samples import Example, Message
from rango.errors import ConfigError

DESCRIPTION = """\
Answers a prompt, or each prompt of a data file (chat messages, prompt/completion, Alpaca: what
stands before the last answer; plain text: each paragraph), with the base, an adapter, several
adapters, or (--compare) base and adapters side by side."""

EXAMPLE = """\
  rango generate --base BASE --adapter runs/first/adapter --prompt 'Why is the sky blue?' --compare
  rango generate --base BASE --adapter A --adapter B --file questions.jsonl --json"""


@dataclass(frozen=True)
class GenerateOptions:
    """What to answer."""

    prompt: str | None = None
    """The prompt: a message to the model, rendered by its chat template."""
    file: str | None = None
    """A data file whose prompts are answered."""
    columns: str | None = None
    """Names that the file uses for ours, such as prompt=question,completion=answer."""
    batch_size: int = 8
    """Prompts answered at once."""


def parser() -> ArgumentParser:
    """The flags of `rango generate`."""
    made = new_parser("generate", DESCRIPTION, EXAMPLE)
    made.add_class_arguments(ModelOptions)
    made.add_argument(
        "--adapter",
        action="append",
        type=str,
        default=[],
        help="folder of an adapter; may be given several times",
    )
    made.add_class_arguments(GenerateOptions)
    made.add_class_arguments(AnswerOptions)
    made.add_argument("--compare", action="store_true", help="let the base answer too")
    made.add_argument(
        "--raw",
        action="store_true",
        help="continue plain text as it is, without the chat template",
    )
    add_json_flag(made, "prompts and answers")
    return made


def main(words: Sequence[str]) -> None:
    """Parse, answer, print."""
    parsed = parse(parser(), words)
    options = collect(GenerateOptions, parsed)
    if parsed.compare and not parsed.adapter:
        raise ConfigError("--compare lets the base answer beside an adapter: give --adapter")
    prompts = _prompts(options, parsed.raw)
    with ProgressBars() as progress:
        first = parsed.adapter[0] if parsed.adapter else None
        refuse_classifier(parsed.adapter)
        base = load(collect(ModelOptions, parsed), first, progress)
        answers = _answers(base, parsed, prompts, options, progress)
    texts = {name: [completion.text for completion in found] for name, found in answers.items()}
    if parsed.json:
        print_json(
            [
                {
                    "prompt": _text(prompt),
                    "answers": {name: found[index] for name, found in texts.items()},
                }
                for index, prompt in enumerate(prompts)
            ]
        )
        return
    from rango.report.tables import answers_view

    show(answers_view([_text(prompt) for prompt in prompts], texts))


def _prompts(options: GenerateOptions, raw: bool) -> list[Any]:
    if (options.prompt is None) == (options.file is None):
        raise ConfigError("give either --prompt TEXT or --file FILE; see rango generate --help")
    if options.prompt is not None:
        return [options.prompt if raw else [Message("user", options.prompt)]]
    from rango.data.reading.columns import parse_columns

    columns = parse_columns(options.columns) if options.columns else None
    examples = rango.read_examples(str(options.file), columns=columns)
    return [prompt_of(example, raw) for example in examples]


def prompt_of(example: Example, raw: bool) -> str | list[Message]:
    """What stands before the last answer; a text, labelled or not, is itself the prompt."""
    if example.kind in ("text", "labelled"):
        text = example.messages[0].content
        return text if raw else [Message("user", text)]
    before = list(example.messages[:-1])
    return before[0].content if example.kind == "completion" else before


def _answers(
    base: Any, parsed: Any, prompts: list[Any], options: GenerateOptions, progress: ProgressBars
) -> dict[str, list[Any]]:
    """By who answers: base, and each adapter's folder."""
    model = collect(ModelOptions, parsed)

    def complete(adapter: str | None) -> list[Any]:
        return list(
            rango.generate(
                base.model,
                tokenizer_of(model, base, adapter),
                prompts,
                batch_size=options.batch_size,
                **asdict(collect(AnswerOptions, parsed)),
                progress=progress,
            )
        )

    answers = {"base": complete(None)} if parsed.compare or not parsed.adapter else {}
    for folder in parsed.adapter:
        adapted = rango.load_adapter(base, folder)
        answers[folder] = complete(folder)
        adapted.detach()
    return answers


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(
        message.content if message.role == "user" else f"[{message.role}] {message.content}"
        for message in prompt
    )
