"""`rango sweep`: search for the best options."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jsonargparse import ArgumentParser

import rango
from rango.cli.output import as_facts, print_json, show
from rango.cli.parsing import add_json_flag, collect, new_parser, parse, say, with_columns
from rango.errors import ConfigError
from rango.training.sweep.config import SweepConfig

HELD_OUT = 0.1
"""Share of the data to judge on, unless told otherwise."""

DESCRIPTION = """\
Tries values of learning rate, rank and other options: candidates train at once over one base, on
the same batches; losers are pruned at rungs, and their rows of the bank go to new candidates. FILE
is a YAML file with any of these options; flags win.

--try learning_rate=1e-5..1e-2 draws from a range, --try r=4,8,16 from a list; a range may end in
:linear or :log, or in a number of values, such as :9. OUTPUT then holds the best adapter (best/),
the recipe that trains it again (recipe.yaml), report.html, and study.db for Optuna's dashboard.
Needs pip install 'rango[sweep]'.

An interrupted sweep continues with: rango sweep OUTPUT/config.yaml --resume"""

EXAMPLE = """\
  rango sweep --base.model BASE --data.train chats.jsonl --try learning_rate=1e-5..1e-2 \\
      --try r=4,8,16 --candidates 24 --output runs/sweep
  rango sweep sweep.yaml --sampler random --output runs/again"""


def parser() -> ArgumentParser:
    """The flags of `rango sweep`."""
    made = new_parser("sweep", DESCRIPTION, EXAMPLE, "[FILE] ")
    made.add_argument("file", metavar="FILE", nargs="?", help="a YAML file; the same as --config")
    made.add_argument("--config", action="config", help="YAML file with any of these options")
    made.add_argument(
        "--resume", action="store_true", help="continue the interrupted sweep in the output folder"
    )
    add_json_flag(made, "the result")
    made.add_argument(
        "--try",
        action="append",
        default=[],
        type=str,
        metavar="NAME=VALUES",
        help="values to try of an option: a range LOW..HIGH, or a list; once for each option",
    )
    made.add_class_arguments(SweepConfig)
    made.set_defaults({"base.cache": True, "data.cache": True, "data.valid_share": HELD_OUT})
    return made


def main(words: Sequence[str]) -> None:
    """Parse, search, print."""
    from rango.cli.fleet import FleetView
    from rango.training.sweep.written import option_name, parse_try

    words = [*with_columns(words)]
    if words and not words[0].startswith("-"):
        words = ["--config", *words]
    options = parse(parser(), words)
    if options.file:
        raise ConfigError(
            f"FILE stands first: rango sweep {options.file} …, found it after other options"
        )
    config = collect(SweepConfig, options)
    written = {option_name(name): values for name, values in config.space.items()}
    config = replace(config, space=written | parse_try(options["try"]))
    with FleetView() as view:
        result = rango.sweep(
            config, resume=options.resume, watch=view.watch, progress=view.progress
        )
    if options.json:
        print_json(result)
    else:
        _print(config, as_facts(result))


def _print(config: SweepConfig, result: dict[str, Any]) -> None:
    from rango.report.sweep import gain_plot, sweep_table
    from rango.report.sweep_page import judged_on

    show(sweep_table(result))
    plot = gain_plot(result)
    if plot is not None:
        show(plot)
    say(judged_on(result), *result["advice"])
    say(f"report: {config.output}/report.html", f"saved: {result['saved']}")
    say(f"again: {shlex.join(['rango', 'train', '--config', result['recipe']])}")
    chat = ["rango", "chat", "--base", config.base.model, "--adapter", result["saved"], "--compare"]
    say(f"next: {shlex.join(chat)}")
