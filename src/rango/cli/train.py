"""`rango train`: fine-tune a model on a data file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

import rango
from rango.cli.output import as_facts, print_json, show
from rango.cli.parsing import add_json_flag, collect, new_parser, parse, say, with_columns
from rango.cli.progress import ProgressBars
from rango.training.config import RunConfig

DESCRIPTION = """\
Fine-tunes a model on a data file: LoRA, QLoRA (--base.quantize nf4) or, as a baseline, full
fine-tuning (--training.method full). Data of text+label train a classifier, over an encoder or a
causal model. Every option may stand in a YAML file too (--config), under
the same name; flags after it win. The run's folder then holds the adapter, its model card, the
events, the checkpoints, config.yaml as resolved, and report.html.

What is on disk is read back at the end and proved to compute what was trained. An interrupted run
continues with: rango train --config OUTPUT/config.yaml --resume

rango train JOBS, with a folder or a file of many jobs, trains many adapters at once: see
rango train JOBS --help."""

EXAMPLE = """\
  rango train --base.model BASE --base.quantize nf4 --data.train chats.jsonl --output runs/first
  rango train --config run.yaml --training.learning_rate 1e-4 --output runs/second"""


def parser() -> ArgumentParser:
    """The flags of `rango train`."""
    made = new_parser("train", DESCRIPTION, EXAMPLE)
    made.add_argument("--config", action="config", help="YAML file with any of these options")
    made.add_argument(
        "--resume", action="store_true", help="continue the interrupted run in the output folder"
    )
    add_json_flag(made, "the result")
    made.add_class_arguments(RunConfig)
    made.set_defaults({"base.cache": True, "data.cache": True})
    return made


def main(words: Sequence[str]) -> None:
    """Parse, train, print."""
    if words and not words[0].startswith("-"):
        from rango.cli import train_many

        train_many.main(words)
        return
    options = parse(parser(), [*with_columns(words)])
    config = collect(RunConfig, options)
    with ProgressBars() as progress:
        result = rango.train(config, resume=options.resume, progress=progress)
    if options.json:
        print_json(result)
    else:
        print_result(config, as_facts(result))


def print_result(config: RunConfig, result: dict[str, Any]) -> None:
    """Why it ended; evaluation, forgetting and proof as tables; what to do next."""
    from rich.text import Text

    from rango.report.classes import is_classification
    from rango.report.tables import evaluation_table, forgetting_table, labels_view, proof_view

    if result.get("stopped"):
        show(Text(result["stopped"]))
    evaluation = {
        name: values
        for name, values in (result.get("evaluation") or {}).items()
        if values.get("loss") is not None
    }
    if evaluation:
        show(evaluation_table(evaluation))
        if is_classification(evaluation.get("adapted")):
            show(labels_view(evaluation["adapted"]))
    if result.get("forgetting"):
        show(forgetting_table(result["forgetting"]))
    if result.get("proof"):
        show(proof_view(result["proof"]))
    saved = result["saved"]
    say(f"report: {config.output}/report.html", f"saved: {saved}")
    labels = (result.get("data") or {}).get("labels")
    following = ["rango", "classify" if labels else "chat", "--base"]
    if config.training.method == "lora":
        following += [config.base.model, "--adapter", saved]
        following += [] if labels else ["--compare"]
    else:
        following += [saved]
    following += ["--text", "TEXT"] if labels else []
    say(f"next: {shlex.join(following)}")
