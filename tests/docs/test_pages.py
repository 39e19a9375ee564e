"""The pages of docs/: their code runs, and what they name exists."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import rango
from rango.cli.main import COMMANDS, EXIT_CODES

EXECUTED = ["tutorial", "lora-or-qlora", "python-api"]


@pytest.mark.parametrize("name", EXECUTED)
def test_python_blocks_print_what_is_shown(documents: Any, name: str) -> None:
    names: dict[str, Any] = {}
    printed = ""
    for block in documents.blocks(documents.root / "docs" / f"{name}.md"):
        if block.kind == "python":
            assert not printed, f"not shown on the page: {printed}"
            printed = documents.run(block.text, names)
        elif block.kind == "text":
            documents.check_alike(printed, block.text)
            printed = ""


def test_every_page_with_python_is_executed(documents: Any) -> None:
    with_python = [
        page.stem
        for page in documents.pages
        if page.parent.name == "docs"
        and any(block.kind == "python" for block in documents.blocks(page))
    ]
    assert sorted(with_python) == sorted(EXECUTED)


def test_notations_of_the_tutorial(documents: Any) -> None:
    """Each row's lora_A (r, in) and lora_B (out, r) give the row's ΔW (out, in)."""
    size = {"r": 2, "in": 5, "out": 7}
    page = (documents.root / "docs" / "tutorial.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.partition("| Written")[2].partition("\n\n")[0].splitlines()[2:]
    ]
    assert len(rows) == 4
    for _, shapes, *expressions in rows:
        given = {
            name: torch.randn(size[first], size[second])
            for name, first, second in re.findall(r"(\w+) \((\w+), (\w+)\)", shapes)
        }
        delta, lora_A, lora_B = (eval(code.strip("`"), dict(given)) for code in expressions)
        assert lora_A.shape == (size["r"], size["in"])
        assert lora_B.shape == (size["out"], size["r"])
        torch.testing.assert_close(lora_B @ lora_A, delta)


def test_relative_links_resolve(documents: Any) -> None:
    missing = [
        f"{page.name}: {link}"
        for page in documents.pages
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if not link.startswith(("http:", "https:", "#"))
        and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert not missing


def test_names_exist(documents: Any) -> None:
    """Every `rango.NAME` that a page mentions is public or a module."""
    for page in documents.pages:
        text = page.read_text(encoding="utf-8")
        for name in set(re.findall(r"\brango\.([A-Za-z_]\w*)", text)) - {"json"}:
            known = name in rango.__all__ or importlib.util.find_spec(f"rango.{name}")
            assert known, f"{page.name}: rango.{name}"


def test_files_exist(documents: Any) -> None:
    """So does every source file that a page names."""
    for page in documents.pages:
        text = page.read_text(encoding="utf-8")
        for name in set(re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)`", text)):
            places = (documents.root, documents.root / "src", documents.root / "src" / "rango")
            assert any((place / name).is_file() for place in places), f"{page.name}: {name}"


def test_flags_exist(documents: Any) -> None:
    reference = (documents.root / "docs" / "cli.md").read_text(encoding="utf-8")
    known = set(re.findall(r"--[a-z][a-z_.]+\w", reference))
    for page in documents.pages:
        if page.name in ("cli.md", "CONTRIBUTING.md", "CHANGELOG.md"):
            continue
        used = set(re.findall(r"(?<![-\w])--[a-z][a-z_.]+\w", page.read_text(encoding="utf-8")))
        assert used <= known, page.name


def test_shell_blocks(documents: Any) -> None:
    """Targets are the Makefile's, and commands parse."""
    makefile = (documents.root / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):", makefile, re.MULTILINE)
    for page in documents.pages:
        blocks = documents.blocks(page)
        for block in blocks:
            if block.kind == "yaml":
                _write_config(block.text)
        for line in (line for b in blocks if b.kind == "sh" for line in b.text.splitlines()):
            program, *words = shlex.split(line, comments=True)
            if program == "make":
                assert words[0] in targets, f"{page.name}: {line}"
            elif program == "source":
                assert words == [".venv/bin/activate"]
                assert "VENV := .venv\n" in makefile
            else:
                assert program == "rango", f"{page.name}: {line}"
                assert words[0] in COMMANDS, f"{page.name}: {line}"
                many = words[0] == "train" and not words[1].startswith("-")
                command = importlib.import_module(f"rango.cli.{words[0]}{'_many' * many}")
                command.parser().parse_args(words[1:])


def _write_config(text: str) -> None:
    """As its own name, and as the config.yaml of a run."""
    run = Path("runs/first/config.yaml")
    run.parent.mkdir(parents=True, exist_ok=True)
    for path in (Path(text.splitlines()[0].removeprefix("# ")), run):
        path.write_text(text)


def test_exit_codes_are_all_told(documents: Any) -> None:
    text = (documents.root / "docs" / "training.md").read_text(encoding="utf-8")
    told = text.partition("## Exit codes")[2]
    assert {int(code) for code in re.findall(r"\b(\d+) [a-z]", told)} == set(EXIT_CODES)


def test_the_house_is_whole(documents: Any) -> None:
    """Page and picture name every package there is."""
    page = (documents.root / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = (documents.root / "docs" / "images" / "house.svg").read_text(encoding="utf-8")
    for folder in (documents.root / "src" / "rango").iterdir():
        if (folder / "__init__.py").is_file():
            assert f"| `{folder.name}/` |" in page
            assert f">{folder.name}</text>" in picture
