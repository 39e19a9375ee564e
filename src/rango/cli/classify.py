"""`rango classify`: the label of one text, or of every text of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

import rango
from rango.cli.models import load, tokenizer_of
from rango.cli.options import ModelOptions
from rango.cli.output import as_facts, print_json, show
from rango.cli.parsing import add_json_flag, collect, new_parser, parse, say
from rango.cli.progress import ProgressBars
from rango.errors import ConfigError
from rango.files.atomic import refuse_existing, write_text

DESCRIPTION = """\
Labels a text, or each text of a data file (of text+label data the text, of plain text each
paragraph, of others the first message), with a classifier: a base and the adapter that `rango
train` made of text+label data, or a base that is a classifier itself, such as what `rango merge`
writes of the two."""

EXAMPLE = """\
  rango classify --base BASE --adapter runs/reviews/adapter --text 'A quiet triumph.'
  rango classify --base merged --file texts.csv --output labels.jsonl"""


@dataclass(frozen=True)
class ClassifyOptions:
    """What to label."""

    adapter: str | None = None
    """Folder of a classifier's adapter."""
    text: str | None = None
    """The text."""
    file: str | None = None
    """A data file whose texts are labelled."""
    columns: str | None = None
    """Names that the file uses for ours, such as text=review."""
    output: str | None = None
    """File to write, which must not exist yet: a JSON line a text (text, label, probability,
    probabilities)."""
    too_long: Literal["error", "truncate"] = "error"
    """What to do with a text of more tokens than the model has positions."""
    micro_tokens: int = 2048
    """Most tokens computed at once."""


def parser() -> ArgumentParser:
    """The flags of `rango classify`."""
    made = new_parser("classify", DESCRIPTION, EXAMPLE)
    made.add_class_arguments(ModelOptions)
    made.add_class_arguments(ClassifyOptions)
    add_json_flag(made, "texts and labels")
    return made


def main(words: Sequence[str]) -> None:
    """Parse, classify, print or write."""
    parsed = parse(parser(), words)
    options, model = collect(ClassifyOptions, parsed), collect(ModelOptions, parsed)
    output = Path(options.output) if options.output else None
    if output is not None:
        refuse_existing(output)  # before the work rather than after it
    texts = _texts(options)
    with ProgressBars() as progress:
        base = load(model, options.adapter, progress)
        tokenizer = tokenizer_of(model, base, options.adapter)
        if options.adapter:
            rango.load_adapter(base, options.adapter)
        found = rango.classify(
            base,
            tokenizer,
            texts,
            too_long=options.too_long,
            micro_tokens=options.micro_tokens,
            progress=progress,
        )
    entries: list[dict[str, Any]] = [
        {"text": text, **as_facts(entry)} for text, entry in zip(texts, found, strict=True)
    ]
    if output is not None:
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
        write_text(output, "".join(lines))
        say(f"written: {output}")
    if parsed.json:
        print_json(entries)
    elif output is None:
        from rango.report.tables import classified_table

        show(classified_table(entries))


def _texts(options: ClassifyOptions) -> list[str]:
    if (options.text is None) == (options.file is None):
        raise ConfigError("give either --text TEXT or --file FILE; see rango classify --help")
    if options.text is not None:
        return [options.text]
    from rango.data.reading.columns import parse_columns

    columns = parse_columns(options.columns) if options.columns else None
    examples = rango.read_examples(str(options.file), columns=columns)
    return [example.messages[0].content for example in examples]
