"""`rango verify`: does an adapter on disk belong to a base, and compute what was trained?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jsonargparse import ArgumentParser

import rango
from rango.cli.output import as_facts, print_json, show
from rango.cli.parsing import add_json_flag, collect, new_parser, parse
from rango.cli.progress import ProgressBars
from rango.errors import VerificationError

DESCRIPTION = """\
Repeats the proof of a training: the adapter's base is this base (by fingerprint, where it is
known), every tensor finds its place, every lora_B has moved, and the merged model computes what
the adapted one does. Exit code 9 where a check fails."""

EXAMPLE = "  rango verify --base BASE --adapter runs/first/adapter"


@dataclass(frozen=True)
class VerifyOptions:
    """What to verify."""

    base: str
    """Folder of the base checkpoint, or its name on the hub."""
    adapter: str
    """Folder of the adapter."""


def parser() -> ArgumentParser:
    """The flags of `rango verify`."""
    made = new_parser("verify", DESCRIPTION, EXAMPLE)
    made.add_class_arguments(VerifyOptions)
    add_json_flag(made, "the proof")
    return made


def main(words: Sequence[str]) -> None:
    """Parse, verify, print; raises VerificationError where a check fails."""
    parsed = parse(parser(), words)
    options = collect(VerifyOptions, parsed)
    with ProgressBars() as progress:
        proof = rango.verify(options.base, options.adapter, progress=progress)
    if parsed.json:
        print_json(proof)
    else:
        from rango.report.tables import proof_view

        show(proof_view(as_facts(proof)))
    if not proof.passed:
        raise VerificationError(f"{options.adapter}: a check failed; see the proof above")
