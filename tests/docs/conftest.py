"""Reading the documents: their fenced blocks, and whether an output is the one they show."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\d[\d,]*\.?\d*")


@dataclass(frozen=True)
class Block:
    """A fenced block. What its kind means here:

    python: run, all of a page in one namespace; a text block right after it is what it prints.
    console: lines after `$ ` are run, the others are their output.
    sh: `make` targets, which must exist, and `rango` commands, which must parse.
    yaml: the first line names the file that it is.
    """

    kind: str
    text: str


class Documents:
    """The Markdown pages of the repository."""

    root = ROOT
    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

    @staticmethod
    def blocks(path: Path) -> list[Block]:
        return [Block(*found) for found in _FENCE.findall(path.read_text(encoding="utf-8"))]

    @staticmethod
    def run(code: str, names: dict[str, Any]) -> str:
        """Execute a block; what it printed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "<document>", "exec"), names)
        return printed.getvalue()

    @staticmethod
    def check_alike(found: str, expected: str) -> None:
        """The same words, and numbers that agree to 2 % or one unit of their last digit."""
        words = [_NUMBER.sub("#", text).split() for text in (found, expected)]
        assert words[0] == words[1], f"printed:\n{found}"
        pairs = zip(_NUMBER.findall(found), _NUMBER.findall(expected), strict=True)
        for got, shown in pairs:
            value, wanted = (float(text.replace(",", "")) for text in (got, shown))
            last = 10.0 ** -len(shown.partition(".")[2])
            allowed = max(0.02 * abs(wanted), 1.01 * last)
            assert abs(value - wanted) <= allowed, f"{got} for {shown}; printed:\n{found}"


@pytest.fixture(scope="session")
def documents() -> Documents:
    return Documents()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a document writes, it writes into a folder of the test."""
    monkeypatch.chdir(tmp_path)
