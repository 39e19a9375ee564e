"""`rango merge`: a checkpoint with the adapter in its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from jsonargparse import ArgumentParser

import rango
from rango.base.config import BaseDtype
from rango.cli.output import as_facts, print_json, show
from rango.cli.parsing import add_json_flag, collect, new_parser, parse, say
from rango.cli.progress import ProgressBars

DESCRIPTION = """\
Writes a Hugging Face checkpoint whose weights are those of the base plus the adapter's update, so
that no adapter is needed any more. Merging onto nf4 rounds most of a small update away, onto int8
less: how much of it survives is measured and printed."""

EXAMPLE = "  rango merge --base BASE --adapter runs/first/adapter --output merged"


@dataclass(frozen=True)
class MergeOptions:
    """What to merge."""

    base: str
    """Folder of the base checkpoint, or its name on the hub."""
    adapter: str
    """Folder of the adapter."""
    output: str
    """Folder to write, which must not exist yet."""
    dtype: BaseDtype = "as stored"
    """Type of the merged weights."""
    onto: Literal["stored", "nf4", "int8"] = "stored"
    """stored merges into the weights as the base stores them; nf4 and int8 merge into the quantized
    ones and quantize the sum again."""


def parser() -> ArgumentParser:
    """The flags of `rango merge`."""
    made = new_parser("merge", DESCRIPTION, EXAMPLE)
    made.add_class_arguments(MergeOptions)
    add_json_flag(made, "the report")
    return made


def main(words: Sequence[str]) -> None:
    """Parse, merge, print."""
    parsed = parse(parser(), words)
    options = collect(MergeOptions, parsed)
    with ProgressBars() as progress:
        report = rango.merge_checkpoint(
            options.base,
            options.adapter,
            options.output,
            dtype=options.dtype,
            onto=options.onto,
            progress=progress,
        )
    if parsed.json:
        print_json({**asdict(options), **as_facts(report)})
        return
    from rango.report.tables import inspection_view

    show(inspection_view("Merged", as_facts(report)))
    say(f"written: {options.output}")
