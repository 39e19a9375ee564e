"""docs/cli.md: every command's help page. `python -m rango.cli.reference` writes it again."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rango.cli import train_many
from rango.cli.main import COMMANDS, help_text
from rango.files.atomic import write_text

WIDTH = "100"


def reference() -> str:
    """The page as Markdown; the same whatever the terminal."""
    with _plain_terminal():
        pages = {}
        for name in COMMANDS:
            pages[name] = importlib.import_module(f"rango.cli.{name}").parser().format_help()
            if name == "train":
                pages["train JOBS"] = train_many.parser().format_help()
    head = [
        "# The command line",
        "This page is generated: `.venv/bin/python -m rango.cli.reference`.",
        "Results go to standard output, all else (progress, hints, errors) to standard error.\n"
        "With `--json` standard output is exactly one JSON document.",
        f"```text\n{help_text().rstrip()}\n```",
    ]
    sections = [
        f"## rango {name}\n\n```text\n{_trimmed(page)}\n```" for name, page in pages.items()
    ]
    return "\n\n".join([*head, *sections]) + "\n"


def main() -> int:
    """Write docs/cli.md under the current folder, or at the path given."""
    given = sys.argv[1] if len(sys.argv) > 1 else "docs/cli.md"
    if given.startswith("-"):
        raise SystemExit("usage: python -m rango.cli.reference [PATH]")
    path = Path(given)
    write_text(path, reference(), overwrite=True)
    return 0


def _trimmed(page: str) -> str:
    return "\n".join(line.rstrip() for line in page.rstrip().splitlines())


@contextmanager
def _plain_terminal() -> Iterator[None]:
    """Fixed width, no colour: what help pages otherwise take from the terminal."""
    fixed = {"COLUMNS": WIDTH, "NO_COLOR": "1"}
    before = {name: os.environ.get(name) for name in fixed}
    os.environ.update(fixed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


if __name__ == "__main__":
    sys.exit(main())
