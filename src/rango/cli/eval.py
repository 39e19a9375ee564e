"""`rango eval`: what a model is worth on a data file, and what it has forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse import ArgumentParser

import rango
from rango.cli.models import load, tokenizer_of
from rango.cli.options import ModelOptions
from rango.cli.output import as_facts, print_json, show
from rango.cli.parsing import add_json_flag, collect, new_parser, parse
from rango.cli.progress import ProgressBars
from rango.errors import ConfigError

DESCRIPTION = """\
Measures loss, perplexity and accuracy on a data file, of the base and (--adapter) of the adapted
model; of a classifier, on text+label data, accuracy and F1 by label, and what it takes for what.
With --general, also what the adapter made the base forget: both losses and the KL divergence from
the base on general text."""

EXAMPLE = """\
  rango eval --base BASE --adapter runs/first/adapter --data held-out.jsonl --general text.txt
  rango eval --base BASE --quantize nf4 --data held-out.jsonl --json"""


@dataclass(frozen=True)
class EvalOptions:
    """What to measure."""

    data: str
    """Data file: chat messages, prompt/completion, Alpaca, plain text, or text+label."""
    adapter: str | None = None
    """Folder of an adapter to measure beside the base."""
    general: str | None = None
    """File of general text on which forgetting is measured."""
    columns: str | None = None
    """Names that the data uses for ours, such as prompt=question,completion=answer."""
    max_length: int = 1024
    """Longest sample in tokens."""
    too_long: Literal["error", "skip", "truncate"] = "error"
    """What to do with a longer sample."""
    loss_on: Literal["completion", "last", "all"] = "completion"
    """Which tokens count: the assistant's, those of its last answer, or every one."""
    micro_tokens: int = 2048
    """Most tokens computed at once."""


def parser() -> ArgumentParser:
    """The flags of `rango eval`."""
    made = new_parser("eval", DESCRIPTION, EXAMPLE)
    made.add_class_arguments(ModelOptions)
    made.add_class_arguments(EvalOptions)
    made.add_argument(
        "--exact_match",
        action="store_true",
        help="generate every answer, and count those that equal the file's",
    )
    add_json_flag(made, "the measures")
    return made


def main(words: Sequence[str]) -> None:
    """Parse, measure, print."""
    parsed = parse(parser(), words)
    options = collect(EvalOptions, parsed)
    if options.general and not options.adapter:
        raise ConfigError("--general measures what an adapter made the base forget: give --adapter")
    with ProgressBars() as progress:
        found = _measure(collect(ModelOptions, parsed), options, parsed.exact_match, progress)
    if parsed.json:
        print_json(found)
        return
    from rango.report.classes import is_classification
    from rango.report.tables import evaluation_table, forgetting_table, labels_view

    show(evaluation_table(found["evaluation"]))
    last = list(found["evaluation"].values())[-1]
    if is_classification(last):
        show(labels_view(last))
    if "forgetting" in found:
        show(forgetting_table(found["forgetting"]))


def _measure(
    model: ModelOptions, options: EvalOptions, exact: bool, progress: ProgressBars
) -> dict[str, Any]:
    from rango.data.reading.columns import parse_columns

    columns = parse_columns(options.columns) if options.columns else None
    examples = rango.read_examples(options.data, columns=columns, progress=progress)
    general = rango.read_examples(options.general) if options.general else None
    base = load(model, options.adapter, progress)
    if base.kind == "classifier" and (exact or general):
        raise ConfigError(
            "--exact_match and --general measure a model that writes; leave them out for a "
            "classifier"
        )
    if base.kind != "classifier" and any(example.label is not None for example in examples):
        raise ConfigError(
            f"{options.data} has labels, and {base.source} is no classifier; give the --adapter of "
            "one, or a merged classifier as --base"
        )
    tokenizer = tokenizer_of(model, base, options.adapter)
    fitted = {"max_length": options.max_length, "progress": progress}
    samples = rango.tokenize(
        examples,
        tokenizer,
        too_long=options.too_long,
        loss_on=options.loss_on,
        labels=base.labels,
        **fitted,
    )
    computed = {
        "micro_tokens": options.micro_tokens,
        "pad_id": tokenizer.pad_token_id,
        "progress": progress,
    }

    def evaluation() -> dict[str, Any]:
        values: dict[str, Any] = as_facts(rango.evaluate(base.model, samples.samples, **computed))
        if exact:
            match = rango.exact_match(base.model, tokenizer, examples, progress=progress)
            values["exact_match"] = match.score
        return values

    found: dict[str, Any] = {
        "data": {"digest": samples.digest, "skipped": len(samples.skipped)},
        "evaluation": {"base": evaluation()},
    }
    if options.adapter:
        adapted = rango.load_adapter(base, options.adapter)
        found["evaluation"]["adapted"] = evaluation()
        if general:
            text = rango.tokenize(general, tokenizer, too_long="truncate", loss_on="all", **fitted)
            moved = rango.forgetting(adapted, text.samples, **computed)
            found["forgetting"] = as_facts(moved)
    return found
