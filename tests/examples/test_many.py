"""The example of a hundred customers in small: its data, its command, its comparison."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import rango
from rango.adapters.routing import NO_ROW
from rango.cli.main import main
from rango.cli.parsing import parse_given
from rango.cli.train_many import parser
from rango.training.many.files import read_many

FOLDER = Path(__file__).parents[2] / "examples" / "many"
FEW = ("de", "ja", "si")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"many_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def phrases(folder: str) -> dict[str, list[str]]:
    return {
        path.stem: [
            json.loads(line)["instruction"] for line in path.read_text("utf-8").splitlines()
        ]
        for path in (FOLDER / folder).glob("*.jsonl")
    }


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """The example with three of its customers."""
    folder = tmp_path / "many"
    for part in ("train", "heldout"):
        (folder / part).mkdir(parents=True)
        for name in FEW:
            shutil.copy(FOLDER / part / f"{name}.jsonl", folder / part)
    shutil.copy(FOLDER / "many.yaml", folder)
    return folder


def test_the_data_are_what_the_script_says() -> None:
    make = script("make")
    train, held_out = phrases("train"), phrases("heldout")
    assert set(train) == set(held_out)
    assert len(train) == 100
    assert set(make.FROM_CLDR) < set(train)
    assert not set(make.LIKE_OTHERS) & set(train)
    for some, most in ((train, make.TRAIN), (held_out, make.TEST)):
        assert all(most * 0.8 <= len(each) <= most for each in some.values())
        assert all(len(set(each)) == len(each) for each in some.values())
    learnt = {phrase for each in train.values() for phrase in each}
    kept_back = {phrase for each in held_out.values() for phrase in each}
    assert not learnt & kept_back
    assert all(make.place(phrase) < make.HELD_OUT for phrase in kept_back)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 3e6


def test_the_script_keeps_short_plain_phrases() -> None:
    make = script("make")
    pairs = [("Sign in", "Anmelden"), ("Sign in", "Einloggen"), ("%s days", "%s Tage")]
    pairs += [("Name", "Name"), ("Go", "Los"), ("A" * 41, "B"), ("Long", "ä" * 49)]
    assert make.phrases(iter(pairs)) == {"Sign in": "Anmelden"}


def test_every_customer_has_its_own_files() -> None:
    values = read_many(FOLDER)
    assert Path(values["base"]["model"], "config.json").is_file()
    assert len(values["jobs"]) == 100
    for job in values["jobs"]:
        for key, folder in (("train", "train"), ("valid", "heldout")):
            assert job["data"][key] == str(FOLDER / folder / f"{job['name']}.jsonl")


def test_a_few_customers_for_two_steps(
    few: Path, demo_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    flags = ["--base.model", str(demo_base), "--training.max_steps", "2"]
    assert main(["train", str(few), "--output", str(output), *flags]) == 0
    assert "better than the base on what was held out: 3 of 3" in capsys.readouterr().err
    compare = script("compare")
    folders = [output / "jobs" / name / "adapter" for name in FEW]
    base = rango.load_base(demo_base)
    adapted = compare.bank_of(base, folders)
    tokenizer = rango.load_tokenizer(demo_base)
    found = {}
    for name in FEW:
        examples = rango.read_examples(str(few / "heldout" / f"{name}.jsonl"))
        samples = rango.tokenize(examples, tokenizer).samples
        found[name] = compare.losses_under(
            adapted, samples, [NO_ROW, 0, 1, 2], True, tokenizer.pad_token_id
        )
        facts = json.loads((output / "jobs" / name / "result.json").read_text())["evaluation"]
        assert found[name][0] == pytest.approx(facts["base"]["loss"], rel=1e-5)
        own = found[name][1 + FEW.index(name)]
        assert own == pytest.approx(facts["adapted"]["loss"], rel=1e-5)


def test_the_summary_counts() -> None:
    compare = script("compare")
    losses = {
        "a": {"base": 3.0, "a": 1.0, "b": 2.0, "c": 0.5},
        "b": {"base": 3.0, "a": 2.0, "b": 1.0, "c": 2.0},
        "c": {"base": 1.0, "a": 3.0, "b": 4.0, "c": 2.0},
    }
    found = compare.summary(losses)
    assert found["better_than_the_base"] == 2
    assert found["not_better"] == ["c"]
    assert found["sets_where_beaten"] == {"a": 2, "b": 2, "c": 1}
    text = compare.told(found)
    assert "2 of 3" in text
    assert "5 of 6 cases" in text
    assert "at least 1 of 2 sets (fewest: c)" in text


def test_the_readmes_commands_parse() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    trained = [shlex.split(line) for line in lines if line.startswith("rango train ")]
    assert len(trained) >= 1
    for _, _, *words in trained:
        parse_given(parser(), words)
    for line in lines:
        if line.startswith("python "):
            assert (FOLDER.parents[1] / shlex.split(line)[1]).is_file()


@pytest.mark.slow
def test_killed_at_random_the_adapters_are_the_same(
    few: Path, demo_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base.model", str(demo_base), "--training.max_steps", "6", "--rows", "2"]
    words = [str(tmp_path / "runs"), "--jobs", str(few), "--times", "2"]
    assert script("kill").main([*words, "--", *flags]) == 0
    assert "killed 2 times; 3 adapters, 0 of them differ" in capsys.readouterr().out
