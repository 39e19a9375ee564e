"""The example of a sweep: its file is one, and its comparison reads what a sweep writes."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from rango.cli.parsing import collect, parse
from rango.cli.sweep import parser
from rango.training.sweep.check import check_sweep
from rango.training.sweep.config import SweepConfig

FOLDER = Path(__file__).parents[2] / "examples" / "sweep"


@pytest.fixture
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare", FOLDER / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    page = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^rango sweep (.*)$", page, re.MULTILINE)
    assert len(commands) == 1
    words = shlex.split(commands[0])
    options = parse(parser(), ["--config", *words])
    space, count = check_sweep(collect(SweepConfig, options))
    assert (list(space.dimensions), count) == (["learning_rate"], 12)


def test_the_comparison(compare: ModuleType, tmp_path: Path, demo_base: Path) -> None:
    data = tmp_path / "chats.jsonl"
    lines = compare.TRAIN.read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(lines[:20]), encoding="utf-8")
    quick = ["--data.valid", str(data), "--training.max_steps", "2", "--candidates", "2"]
    quick += ["--training.batch_size", "2", "--halvings", "0"]
    result = compare.run(tmp_path / "out", *quick, "--data.max_length", "128")
    grid = {"seconds": 4 * result["seconds"], "candidates": result["candidates"]}
    line = compare.line("seed 0", result, grid)
    assert re.match(r"seed 0 +2 candidates +\d+ s \( 25%\)  learning rate .* \(1\.00x\)", line)
