"""`rango train JOBS`: from a folder or a file to an adapter for each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import rango
from rango.cli.fleet import FleetView
from rango.cli.main import main

QUICK = ["--adapter.r", "2", "--training.max_steps", "2", "--data.max_length", "256"]


@pytest.fixture
def customers(demo_base: Path, tmp_path: Path) -> Path:
    """Three customers with ten chats each."""
    lines = (demo_base.parent / "data" / "train.jsonl").read_text().splitlines(keepends=True)
    folder = tmp_path / "customers"
    folder.mkdir()
    for number, name in enumerate(("ann", "bob", "cat")):
        (folder / f"{name}.jsonl").write_text("".join(lines[number * 10 : number * 10 + 10]))
    return folder


def test_a_folder_of_customers(
    customers: Path, demo_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["train", str(customers), "--base.model", str(demo_base), "--output", str(output)]
    assert main([*words, *QUICK, "--rows", "2", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert list(found["jobs"]) == ["ann", "bob", "cat"]
    assert {job["status"] for job in found["jobs"].values()} == {"trained"}
    assert found == json.loads((output / "result.json").read_text())
    base = rango.load_base(demo_base)
    adapted = rango.load_adapter(base, output / "jobs" / "bob" / "adapter")
    assert adapted.config.r == 2
    assert main([*words, *QUICK]) == 6
    assert main([*words, *QUICK, "--resume"]) == 6
    assert "finished" in capsys.readouterr().err


def test_a_file_of_jobs_of_which_one_fails(
    customers: Path, demo_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (customers / "bad.jsonl").write_text("{broken\n")
    written = {
        "base": {"model": str(demo_base)},
        "defaults": {"adapter": {"r": 2}, "training": {"max_steps": 1}},
        "jobs": [
            {"name": "ann", "data": {"train": "ann.jsonl"}, "training": {"learning_rate": 1e-3}},
            {"name": "bad", "data": {"train": "bad.jsonl"}},
        ],
    }
    (customers / "many.yaml").write_text(yaml.safe_dump(written))
    output = tmp_path / "out"
    assert main(["train", str(customers / "many.yaml"), "--output", str(output)]) == 11
    printed = capsys.readouterr()
    assert "bad" in printed.out
    assert "bad.jsonl:1" in "".join(printed.out.split())
    assert "1 of 2 jobs failed (bad)" in printed.err
    kept = yaml.safe_load((output / "jobs/ann/config.yaml").read_text())
    assert kept["training"]["learning_rate"] == 1e-3
    assert kept["adapter"]["r"] == 2


def test_each_customer_has_its_own_held_out_file(
    customers: Path, demo_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held").mkdir()
    for name, count in (("ann", 2), ("bob", 3)):
        lines = (customers / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "held" / f"{name}.jsonl").write_text("".join(lines[:count]))
    output = tmp_path / "out"
    words = ["train", str(customers), "--base.model", str(demo_base), "--output", str(output)]
    words += ["--data.valid", str(tmp_path / "held" / "{name}.jsonl")]
    assert main([*words, *QUICK]) == 11
    # without white space: a terminal breaks a long path where it has to
    assert "cat.jsonl:nosuchfile" in "".join(capsys.readouterr().out.split())
    for name, count in (("ann", 2), ("bob", 3)):
        facts = json.loads((output / "jobs" / name / "result.json").read_text())
        assert facts["data"]["valid_samples"] == count


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--base.model is missing"),
        (["--base.model", "BASE"], "--output is missing"),
        (["--base.model", "BASE", "--output", "x", "--rowz", "3"], "unknown flag --rowz"),
        (["--base.model", "BASE", "--output", "x", "--adapter.r", "many"], "adapter.r: expected"),
        (["--base.model", "BASE", "--output", "x", "--training.method", "full"], "method full"),
        (["--base.model", "BASE", "--output", "x", "--rows", "0"], "rows: expected at least 1"),
    ],
)
def test_what_makes_no_sense(
    customers: Path,
    demo_base: Path,
    words: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(demo_base) if word == "BASE" else word for word in words]
    assert main(["train", str(customers), *given]) == 2
    assert expected in capsys.readouterr().err
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"adapter": {"rr": 1}}, "job ann: unknown key 'adapter.rr'; nearest: adapter.r"),
        ({"training": {"epochs": "many"}}, "job ann: training.epochs: expected"),
        ({"data": {}}, "job ann: data.train: expected a file"),
        ({"name": None}, "has no name"),
    ],
)
def test_a_job_that_makes_no_sense(
    customers: Path,
    demo_base: Path,
    job: dict[str, object],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = {"name": "ann", "data": {"train": "ann.jsonl"}} | job
    file = tmp_path / "many.yaml"
    file.write_text(yaml.safe_dump({"base": {"model": str(demo_base)}, "jobs": [whole]}))
    assert main(["train", str(file), "--output", str(tmp_path / "x")]) == 2
    assert expected in capsys.readouterr().err


def test_the_table_shows_who_trains(
    customers: Path, demo_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = StringIO()
    console = Console(file=written, force_terminal=True, width=100, height=40)
    shown: Callable[[], FleetView] = lambda: FleetView(console)  # noqa: E731
    monkeypatch.setattr(sys.modules["rango.cli.train_many"], "FleetView", shown)
    monkeypatch.setattr("rango.cli.fleet._REFRESH", 0.0)
    words = ["train", str(customers), "--base.model", str(demo_base)]
    assert main([*words, "--output", str(tmp_path / "out"), *QUICK]) == 0
    text = written.getvalue()
    for expected in ("ann", "bob", "cat", "1/2", "held out", "3 training", "0 waiting"):
        assert expected in text
