"""`rango sweep`: from flags or a file to the best adapter."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import rango
from rango.cli.fleet import FleetView
from rango.cli.main import main
from rango.training.many.fleet import Fleet

QUICK = [
    *("--training.max_steps", "4", "--training.batch_size", "2", "--data.max_length", "256"),
    *("--eta", "2", "--halvings", "1", "--rows", "3"),
]


@pytest.fixture
def data(demo_base: Path, tmp_path: Path) -> Path:
    """Thirty chats."""
    lines = (demo_base.parent / "data" / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "chats.jsonl").write_text("".join(lines[:30]))
    return tmp_path / "chats.jsonl"


@pytest.fixture
def words(data: Path, demo_base: Path, tmp_path: Path) -> list[str]:
    output = str(tmp_path / "out")
    return [
        *("sweep", "--base.model", str(demo_base), "--data.train", str(data)),
        *("--output", output, *QUICK),
    ]


def test_flags(
    words: list[str], demo_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = ["--try", "learning_rate=1e-4..1e-2", "--try", "r=2,4,8", "--candidates", "4"]
    assert main([*words, *space]) == 0
    printed = capsys.readouterr()
    for expected in ("rank", "learning_rate", "the best", "pruned after 50%", "Gain over the base"):
        assert expected in printed.out
    # a tenth is held out, and it says so
    for expected in ("held-out samples (10% of the data)", "report: ", "again: rango train"):
        assert expected in printed.err
    output = tmp_path / "out"
    adapted = rango.load_adapter(rango.load_base(demo_base), output / "best")
    assert adapted.config.r in (2, 4, 8)
    recipe = output / "recipe.yaml"
    assert main(["train", "--config", str(recipe), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    found = json.loads((output / "result.json").read_text())
    loss = found["candidates"][0]["losses"][-1]
    assert again["evaluation"]["adapted"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert main([*words, *space]) == 6
    assert main(["sweep", str(output / "config.yaml"), "--resume"]) == 6
    assert "finished" in capsys.readouterr().err


def test_a_file_with_flags_over_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {"space": {"learning_rate": "1e-4,1e-2", "rank": [2, 4]}, "sampler": "grid"}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(written))
    words = ["sweep", str(file), *words[1:], "--try", "r=2", "--json"]
    assert main(words) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found == json.loads((tmp_path / "out" / "result.json").read_text())
    rates = sorted(one["params"]["learning_rate"] for one in found["candidates"])
    assert rates == [1e-4, 1e-2]
    assert {one["params"]["r"] for one in found["candidates"]} == {2}
    assert found["held_out_share"] == 0.1
    assert found["saved"] == str(tmp_path / "out" / "best")


@pytest.mark.parametrize(
    ("more", "code", "expected"),
    [
        ([], 2, "nothing to try"),
        (["--try", "rr=1,2"], 2, "unknown option 'rr'; nearest: r"),
        (["--try", "r"], 2, "expected NAME=VALUES"),
        (["--try", "r=2,4", "--sampler", "tpee"], 2, "sampler"),
        (["--try", "r=2,4", "--try", "rank=8"], 2, "r is given twice"),
        (["--try", "r=2,4", "--json", "sweep.yaml"], 2, "FILE stands first"),
        (["--try", "r=2,4", "--training.keep_checkpoints", "3"], 2, "keeps snapshots"),
        (["--try", "r=2,4", "--data.valid_share", "0.001"], 3, "at least 2"),
        (["--try", "r=2,4", "--candidatez", "4"], 2, "unknown flag --candidatez"),
        (["--try", "r=2,4", "--data.valid_share", "0"], 2, "judges on held-out samples"),
        (["--try", "r=2,4", "--halvings", "5"], 2, "is too short for 5 rungs"),
        (["--try", "targets=attention,q_prij"], 5, "q_prij"),
        (["--try", "r=2,4", "--data.train", "none.jsonl"], 3, "none.jsonl"),
        (["--try", "r=2,4", "--resume"], 2, "nothing to resume"),
    ],
)
def test_what_makes_no_sense(
    words: list[str],
    more: list[str],
    code: int,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--data.train" in more:
        place = words.index("--data.train")
        del words[place : place + 2]
    assert main([*words, *more]) == code
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_makes_no_sense(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("space: {r: [2, 4]}\ncandidate: 3\n")
    assert main(["sweep", str(file), *words[1:]]) == 2
    assert "sweep.yaml:2: unknown key 'candidate'; nearest: candidates" in capsys.readouterr().err


def test_interrupted_it_goes_on_from_its_own_config(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    def stop(view: FleetView, fleet: Fleet) -> None:
        nonlocal asked
        if fleet.round == 2 and not asked:
            asked += 1
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FleetView, "watch", stop)
    assert main([*words, "--try", "learning_rate=1e-4..1e-2", "--candidates", "4"]) == 130
    assert "to continue: the same command, with --resume" in capsys.readouterr().err
    assert main(["sweep", str(tmp_path / "out" / "config.yaml"), "--resume", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["candidates"]) == 4


def test_all_diverge(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--try", "learning_rate=1e29,1e30"]) == 8
    printed = capsys.readouterr().err
    assert "none of 2 candidates came to its end: 2 diverged" in printed
    assert "recipe.yaml" in printed


def test_the_table_shows_the_best_so_far(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    written = StringIO()
    console = Console(file=written, force_terminal=True, width=120, height=40)
    shown: Callable[[], FleetView] = lambda: FleetView(console)  # noqa: E731
    monkeypatch.setattr("rango.cli.fleet.FleetView", shown)
    monkeypatch.setattr("rango.cli.fleet._REFRESH", 0.0)
    assert main([*words, "--try", "learning_rate=1e-4,1e-3,1e-2,2e-2"]) == 0
    text = written.getvalue()
    for expected in ("trial-0003 learning_rate 0.02", "2/4", "3 training", "stopped", "best "):
        assert expected in text
