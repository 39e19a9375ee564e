"""One set of dataclasses for flags and YAML, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.cli.inspect import parser as inspect_parser
from rango.cli.parsing import collect, nearest_key, parse, with_columns
from rango.cli.train import parser
from rango.data.config import DataConfig
from rango.data.reading.columns import parse_columns
from rango.errors import ConfigError
from rango.training.config import RunConfig

NEEDED = ["--base.model", "m", "--data.train", "t", "--output", "o"]


def run_config(words: list[str]) -> RunConfig:
    return collect(RunConfig, parse(parser(), [*with_columns(words)]))


def written(folder: Path, text: str) -> list[str]:
    path = folder / "run.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def test_flags_and_yaml_give_the_same(tmp_path: Path) -> None:
    flags = run_config(
        [
            *NEEDED,
            "--adapter.r=8",
            '--adapter.target_modules=["q_proj","v_proj"]',
            '--adapter.rank_pattern={"mlp.*": 4}',
            "--training.learning_rate=2e-4",
            "--base.quantize=nf4",
        ]
    )
    file = run_config(
        written(
            tmp_path,
            "base: {model: m, quantize: nf4}\ndata: {train: t}\noutput: o\n"
            "adapter:\n  r: 8\n  target_modules: [q_proj, v_proj]\n  rank_pattern: {mlp.*: 4}\n"
            "training: {learning_rate: 2e-4}\n",
        )
    )
    assert flags == file
    assert file.adapter == LoraConfig(
        r=8, target_modules=["q_proj", "v_proj"], rank_pattern={"mlp.*": 4}
    )
    assert file.training.learning_rate == 2e-4


def test_flags_after_the_file_win(tmp_path: Path) -> None:
    file = written(tmp_path, "base: {model: m}\ndata: {train: t}\noutput: o\n")
    assert run_config([*file, "--output", "elsewhere"]).output == "elsewhere"


def test_defaults_are_those_of_the_classes() -> None:
    assert run_config(NEEDED).adapter == LoraConfig()


def test_only_the_command_keeps_what_it_makes() -> None:
    found = run_config(NEEDED)
    assert (found.base.cache, found.data.cache) == (True, True)
    assert (BaseConfig("m").cache, DataConfig("t").cache) == (False, False)
    for word, meant in (("false", False), ("true", True), ("some/folder", "some/folder")):
        assert run_config([*NEEDED, "--data.cache", word]).data.cache == meant


@pytest.mark.parametrize(
    "words",
    [
        ["--data.columns", "prompt=question, completion=the.answer"],
        ["--data.columns=prompt=question,completion=the.answer"],
        ["--data.columns", '{"prompt": "question", "completion": "the.answer"}'],
        ['--data.columns={"prompt": "question", "completion": "the.answer"}'],
    ],
)
def test_columns_are_a_word_or_json(words: list[str]) -> None:
    columns = {"prompt": "question", "completion": "the.answer"}
    assert run_config([*NEEDED, *words]).data.columns == columns


@pytest.mark.parametrize("word", ["prompt", "prompt=", "prompt=a,prompt=b", ""])
def test_columns_that_say_nothing(word: str) -> None:
    with pytest.raises(ConfigError) as expected:
        parse_columns(word)
    for words in (["--data.columns", word], [f"--data.columns={word}"]):
        with pytest.raises(ConfigError) as found:
            run_config([*NEEDED, *words])
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainng.epochs", "3"], "unknown flag --trainng.epochs; nearest: --training.epochs"),
        (["--training.epoch=3"], "unknown flag --training.epoch; nearest: --training.epochs"),
        (["--lora_alpha", "3"], "nearest: --adapter.lora_alpha"),
        (["--rseume"], "nearest: --resume"),
        (["--training.epochs", "many"], "training.epochs: expected float, found many"),
        (["--training.schedule", "cosinus"], "expected one of 'constant', 'linear', 'cosine'"),
        (["--config", "/nonexistent.yaml"], "/nonexistent.yaml: cannot be read: No such file"),
        (["stray"], "stray"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as found:
        run_config([*NEEDED, *words])
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  trian: t\n", ":2: unknown key 'data.trian'; nearest: data.train"),
        ("trainig: {epochs: 3}\n", ":1: unknown key 'trainig'; nearest: training"),
        ("epoch: 3\n", ":1: unknown key 'epoch'; nearest: training.epochs"),
        ("output: a\noutput: b\n", ":2: the key 'output' is given twice"),
        ("training: 3\n", ":1: 'training' holds keys of its own"),
        ("resume: true\n", ":1: unknown key 'resume'"),
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("base: {model: m\n", "not YAML"),
        ("training:\n  epochs: many\n", "training.epochs: expected float, found many"),
    ],
)
def test_mistakes_in_a_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        run_config([*written(tmp_path, text), *NEEDED])
    assert message in str(found.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"base\.model, data\.train"):
        run_config(["--output", "o"])
    with pytest.raises(ConfigError, match="path"):
        parse(inspect_parser(), [])


def test_a_value_may_look_like_a_flag() -> None:
    assert run_config([*NEEDED, "--base.revision=--x"]).base.revision == "--x"


def test_nearest_says_nothing_of_what_is_far() -> None:
    assert nearest_key("zzz", ["training.epochs"]) == ""
