"""`rango check`: what is wrong with data, before a model learns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

import rango
from rango.cli.output import as_facts, print_json, show
from rango.cli.parsing import add_json_flag, collect, new_parser, parse, say
from rango.cli.progress import ProgressBars
from rango.errors import ConfigError, DataError

DESCRIPTION = """\
Reads a data set once and tells what is wrong with it: entries that cannot be read, empty and
repeated samples, copies and near copies, overlap with the held-out data, contradictions, damaged
encoding, personal data, samples over the limit; each with its place and what to do. DATA is a file,
several, a folder, a glob, - for standard input, or a data set's name on the hub.

Without --model, lengths are in characters. With it they are in tokens, the supervision of every
sample is verified (what is learnt is the assistant's text and the end of its turn), and some
samples are shown with what is learnt coloured.

Exit code 0: clean, or nothing worse than notes and warnings; 3: there are errors; 10: there are
warnings, under --strict. What --fix writes does not change it."""

EXAMPLE = """\
  rango check chats.jsonl
  rango check chats.jsonl --model BASE --max_length 1024 --report check.html
  rango check data/ --valid held-out.jsonl --strict --fix cleaned/"""

WARNED = 10
"""Exit code for warnings, under --strict."""


@dataclass(frozen=True)
class CheckOptions:
    """What to look at, and where to write what is found."""

    valid: str | None = None
    """Held-out data, in which no sample of DATA should be found again."""
    model: str | None = None
    """Folder of a base checkpoint, or its name on the hub: its tokenizer and chat template."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    chat_template: str | None = None
    """Chat template: a built-in one by its name, or a .jinja file; by default the tokenizer's."""
    loss_on: Literal["completion", "last", "all"] = "completion"
    """What is learnt: every answer with its end of turn, the last one only, or all tokens."""
    columns: str | None = None
    """Names that the data uses for ours, such as prompt=question,completion=answer."""
    rank: int | None = None
    """Rank of the adapter to be trained, for advice on the number of samples."""
    words: str | None = None
    """File of words and phrases to look for, one a line; lines that begin with # are ignored."""
    fix: str | None = None
    """Write a cleaned copy, without what cannot be read or learnt and without copies: a file for a
    file, a folder for anything else. JSON Lines keep their lines byte for byte; other formats
    become JSON Lines of the original entries. FIX.dropped.jsonl lists what is left out, and why.
    DATA itself is never touched."""
    report: str | None = None
    """Write the report as one HTML file."""
    show: int = 3
    """Samples to show, with --model: the shortest, the longest that fits, and between."""


def parser() -> ArgumentParser:
    """The flags of `rango check`."""
    made = new_parser("check", DESCRIPTION, EXAMPLE, "DATA ")
    made.add_argument("data", nargs="+", type=str, help="what to check")
    made.add_class_arguments(CheckOptions)
    made.add_argument(
        "--max_length",
        "--max-length",
        type=int,
        default=None,
        help="longest sample in training: tokens with --model, else characters",
    )
    made.add_argument(
        "--ignore",
        action="append",
        type=str,
        default=[],
        help="a check to leave out, by its name in the report; may be given several times",
    )
    made.add_argument(
        "--skip_bad",
        "--skip-bad",
        action="store_true",
        help="entries that cannot be read are a warning, as training would leave them out",
    )
    made.add_argument("--strict", action="store_true", help="warnings too have an exit code: 10")
    add_json_flag(made, "the findings")
    return made


def main(words: Sequence[str]) -> int:
    """Parse, check, print; returns the exit code."""
    parsed = parse(parser(), words)
    options = collect(CheckOptions, parsed)
    source = parsed.data[0] if len(parsed.data) == 1 else list(parsed.data)
    from rango.data.check import check
    from rango.data.fix import refuse_fix, write_fixed
    from rango.data.reading.columns import parse_columns
    from rango.data.templates.choose import use_template
    from rango.files.atomic import refuse_existing
    from rango.report.audit import audit_view
    from rango.report.audit_html import write_audit_report

    # what could not be written at the end is refused before any work
    if options.fix:
        refuse_fix(source, options.fix)
    if options.report:
        refuse_existing(Path(options.report))
    if options.chat_template and not options.model:
        raise ConfigError("--chat_template is rendered with a tokenizer: give --model")
    columns = parse_columns(options.columns) if options.columns else None
    tokenizer = None
    if options.model:
        tokenizer = rango.load_tokenizer(options.model, options.revision)
        tokenizer = use_template(tokenizer, options.chat_template)
    previews: list[Any] = []
    with ProgressBars() as progress:
        audit = check(
            source,
            valid=options.valid,
            tokenizer=tokenizer,
            loss_on=options.loss_on,
            columns=columns,
            max_length=parsed.max_length,
            rank=options.rank,
            words=read_words(options.words) if options.words else (),
            ignore=parsed.ignore,
            skip_bad=parsed.skip_bad,
            show=previews.append,
            shown=options.show,
            progress=progress,
        )
    # files first: whoever reads our output may stop reading
    if options.report:
        write_audit_report(options.report, audit, previews)
    fixed = None
    try:
        if options.fix:
            with ProgressBars() as progress:
                fixed = write_fixed(source, audit, options.fix, columns=columns, progress=progress)
    finally:
        if not parsed.json:
            show(audit_view(audit, previews))
    if options.report:
        say(f"report: {options.report}")
    if fixed:
        say(f"fixed: {fixed.out} ({fixed.kept:,} kept)")
        say(f"left out: {fixed.log} ({fixed.dropped:,})")
    if parsed.json:
        counts = {"errors": audit.errors, "warnings": audit.warnings}
        facts = as_facts(audit) | counts | {"shown": previews, "report": options.report}
        print_json(_encodable(as_facts(facts | {"fixed": fixed})))
    if audit.errors:
        return DataError.exit_code
    return WARNED if audit.warnings and parsed.strict else 0


def read_words(path: str) -> list[str]:
    """The words and phrases of a file, one a line. Raises ConfigError where there are none."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"--words {path}: cannot be read: {reason}") from error
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise ConfigError(f"--words {path}: no words in it; expected one a line")
    return words


def _encodable(value: Any) -> Any:
    """The same with every half of a character replaced, so that it can be written as UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return value
