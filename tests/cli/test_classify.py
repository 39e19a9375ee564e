"""The commands over a classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from labelled_texts import LABELS, save_encoder, write_data

from rango.cli.main import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, texts.csv, and the adapter in run/."""
    folder = tmp_path_factory.mktemp("classifier")
    save_encoder(folder / "base")
    write_data(folder / "texts.csv", range(60))
    words = [
        "train",
        "--base.model",
        str(folder / "base"),
        "--data.train",
        str(folder / "texts.csv"),
    ]
    words += ["--output", str(folder / "run"), "--adapter.r", "4", "--data.valid_share", "0.2"]
    words += ["--training.learning_rate", "3e-3", "--training.epochs", "6"]
    words += ["--training.batch_size", "8"]
    assert main(words) == 0
    return folder


def over(folder: Path) -> list[str]:
    return ["--base", str(folder / "base"), "--adapter", str(folder / "run" / "adapter")]


def test_train_tells_what_to_do_next(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config", str(trained / "run" / "config.yaml"), "--training.max_steps", "2"]
    assert main([*words, "--output", str(trained / "second")]) == 0
    output = capsys.readouterr()
    assert "macro F1" in output.out
    assert "perplexity" not in output.out
    assert "next: rango classify --base" in output.err


def test_classify_a_text(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", *over(trained), "--text", "ten ten", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["text"], entry["label"]) == ("ten ten", "zero")
    assert sum(entry["probabilities"].values()) == pytest.approx(1.0)
    assert main(["classify", *over(trained), "--text", "ten ten"]) == 0
    assert "zero" in capsys.readouterr().out


def test_classify_a_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "labels.jsonl"
    words = ["classify", *over(trained), "--file", str(trained / "texts.csv")]
    assert main([*words, "--output", str(output)]) == 0
    entries = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(entries) == 60
    assert {entry["label"] for entry in entries} == set(LABELS)
    assert main([*words, "--output", str(output)]) == 6


def test_classify_with_a_merged_model(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = str(tmp_path / "merged")
    assert main(["merge", *over(trained), "--output", merged]) == 0
    capsys.readouterr()
    assert main(["classify", "--base", merged, "--text", "two four", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["label"] == "even"


def test_eval_inspect_verify(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(trained / "texts.csv")
    assert main(["eval", *over(trained), "--data", data]) == 0
    shown = capsys.readouterr().out
    assert "macro F1" in shown
    assert "precision" in shown
    assert main(["eval", *over(trained), "--data", data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluation"]
    assert found["adapted"]["accuracy"] > 0.9 > found["base"]["accuracy"]
    assert main(["verify", *over(trained)]) == 0
    assert "What is on disk computes what was trained" in capsys.readouterr().out
    assert main(["inspect", str(trained / "run" / "adapter")]) == 0
    shown = capsys.readouterr().out
    assert "classifier" in shown
    assert "zero" in shown


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["classify", "--base", "BASE", "--text", "one"], 2, "gives no labels"),
        (["classify", "--base", "BASE", "--adapter", "ADAPTER"], 2, "give either --text TEXT"),
        (
            ["generate", "--base", "BASE", "--adapter", "ADAPTER", "--prompt", "one"],
            2,
            "rango classify",
        ),
        (["chat", "--base", "BASE", "--adapter", "ADAPTER"], 2, "rango classify"),
        (["eval", "--base", "BASE", "--data", "DATA"], 2, "is no classifier"),
        (
            ["eval", "--base", "BASE", "--adapter", "ADAPTER", "--data", "DATA", "--exact_match"],
            2,
            "for a classifier",
        ),
    ],
)
def test_what_makes_no_sense_is_said(
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    names = {
        "BASE": str(trained / "base"),
        "ADAPTER": str(trained / "run" / "adapter"),
        "DATA": str(trained / "texts.csv"),
    }
    assert main([names.get(word, word) for word in words]) == code
    assert message in capsys.readouterr().err


def test_check_counts_tokens(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", str(trained / "texts.csv"), "--model", str(trained / "base"), "--json"]
    assert main(words) in (0, 3)
    assert '"labels"' in capsys.readouterr().out
