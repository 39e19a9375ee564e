"""`rango demo`: LoRA, QLoRA and full fine-tuning of an embedded model, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

import rango
from rango.cli.output import as_facts, print_json, show
from rango.cli.parsing import add_json_flag, new_parser, parse, say
from rango.cli.progress import ProgressBars

DESCRIPTION = """\
Trains LoRA, QLoRA, full fine-tuning and a control (LoRA on shuffled pairs) on an embedded model and
its data, then compares them: held-out loss and accuracy, forgetting, memory, time, samples before
and after, and the merged model. Needs no network and, on two cores, under ten minutes."""

EXAMPLE = """\
  rango demo --output demo-run
  rango demo --output demo-seeds --seeds 0 1 2"""

_QUESTION_LINES = 12


def parser() -> ArgumentParser:
    """The flags of `rango demo`."""
    made = new_parser("demo", DESCRIPTION, EXAMPLE)
    made.add_argument(
        "--output", type=str, default="demo-run", help="folder to write, which must not exist yet"
    )
    made.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="one run of every method for each; several give a mean and a spread",
    )
    made.add_argument(
        "--max_steps", type=int, default=None, help="cut every run short, to see how it goes"
    )
    add_json_flag(made, "the comparison")
    return made


def main(words: Sequence[str]) -> None:
    """Parse, run, print."""
    options = parse(parser(), words)
    with ProgressBars() as progress:
        result = rango.run_demo(
            options.output, seeds=options.seeds, max_steps=options.max_steps, progress=progress
        )
    if options.json:
        print_json(result)
    else:
        print_result(as_facts(result))


def print_result(result: Mapping[str, Any]) -> None:
    """Samples, the merged model's check, the comparison; where the pages are."""
    from rango.report.comparison import comparison_view
    from rango.report.tables import answers_view, inspection_view

    samples = result["samples"]
    if samples:
        names = [name for name in samples[0] if name != "question"]
        show(
            answers_view(
                [_first_lines(sample["question"]) for sample in samples],
                {name: [sample[name] for sample in samples] for name in names},
            ),
            "",
        )
    if result["merged"]:
        show(inspection_view("LoRA, merged into the base", result["merged"]))
    show(comparison_view(result["rows"]))
    output = result["output"]
    say(f"comparison: {output}/comparison.html", f"each run: {output}/*/report.html")


def _first_lines(text: str) -> str:
    lines = text.splitlines()
    if len(lines) <= _QUESTION_LINES:
        return text
    return "\n".join([*lines[:_QUESTION_LINES], f"… ({len(lines) - _QUESTION_LINES} more lines)"])
