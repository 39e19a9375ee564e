"""README.md and README.es.md: the same code in both, and it runs and prints what is shown."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rango.cli.main import main

_CAPTURE = 'rango() { printf "%s\\0" "$@" > .argv; cat > .stdin; }\n'
"""A shell function in place of the program: the command then runs in this process."""


def test_both_languages_show_the_same_code(documents: Any) -> None:
    english, spanish = (documents.blocks(documents.root / f"README{x}.md") for x in ("", ".es"))
    assert english == spanish
    assert {block.kind for block in english} == {"sh", "console", "python", "yaml"}


@pytest.mark.parametrize("name", ["README.md", "README.es.md"])
def test_place_of_the_demo_table(documents: Any, name: str) -> None:
    text = (documents.root / name).read_text(encoding="utf-8")
    assert re.findall(r"<!-- (/?demo-table) -->", text) == ["demo-table", "/demo-table"]


def test_prose_names_the_same_code(documents: Any) -> None:
    def spans(name: str) -> set[str]:
        text = (documents.root / name).read_text(encoding="utf-8")
        text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"<!-- demo-table -->.*<!-- /demo-table -->", "", text, flags=re.DOTALL)
        return {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)}

    assert spans("README.md") == spans("README.es.md")


@pytest.mark.slow
def test_the_code_runs(
    documents: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks in their order, in one folder."""
    assignments: list[str] = []
    names: dict[str, Any] = {}
    for block in documents.blocks(documents.root / "README.md"):
        if block.kind == "python":
            documents.run(block.text, names)
        elif block.kind == "yaml":
            Path(block.text.splitlines()[0].removeprefix("# ")).write_text(block.text)
        elif block.kind == "console":
            for command, shown in _commands(block.text):
                if re.match(r"\w+=", command):
                    assignments.append(command)
                    continue
                _run("\n".join([*assignments, command]), monkeypatch)
                _check_shown(shown, "".join(capsys.readouterr()), command)


def _commands(text: str) -> list[tuple[str, list[str]]]:
    """Each command with the lines of output shown under it."""
    commands: list[tuple[str, list[str]]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            commands.append((line.removeprefix("$ "), []))
        else:
            commands[-1][1].append(line)
    return commands


def _run(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        ["bash", "-euc", _CAPTURE + script],
        check=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PATH": path},
    )
    arguments = Path(".argv")
    if not arguments.exists():
        return
    words = arguments.read_text().split("\0")[:-1]
    arguments.unlink()
    monkeypatch.setattr(sys, "stdin", io.StringIO(Path(".stdin").read_text()))
    assert main(words) == 0, shlex.join(words)


def _check_shown(shown: list[str], printed: str, command: str) -> None:
    """Every line shown is among the output, in order; numbers and widths may differ."""
    words = _words(printed)
    place = 0
    for line in shown:
        wanted = _words(line)
        while words[place : place + len(wanted)] != wanted:
            place += 1
            assert place < len(words), f"{command}: no {line.strip()!r} in its output:\n{printed}"
        place += len(wanted)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d]{2,}", text)
