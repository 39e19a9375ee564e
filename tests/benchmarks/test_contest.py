"""Contestants take turns, hand in what they found, and their failures are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Module = Callable[[str], Any]

_PLAYERS = """
import os
import time

class Stepper:
    def __init__(self, log):
        self.log, self.facts = log, {"trainable": 3}

    def step(self):
        with open(self.log, "a") as log:
            log.write(os.environ.get("WHO", "stepper") + "\\n")
        return {"loss": 0.5}

class Runner:
    facts = {}

    def run(self, turns):
        for step in range(3):
            time.sleep(0.01)
            turns.next(loss=float(step))
        time.sleep(0.05)

class Failing:
    facts = {}

    def step(self):
        raise ValueError("no such luck")

class Dying:
    facts = {}

    def step(self):
        os._exit(1)

def double(value):
    return 2 * value
"""


@pytest.fixture
def contest(module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "players.py").write_text(_PLAYERS)
    monkeypatch.syspath_prepend(tmp_path)
    return module("contest")


def test_turns_rotate(contest: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    entered = {
        name: contest.Contestant(
            name, "players:Stepper", {"log": str(log)}, environment={"WHO": name}, rounds=limit
        )
        for name, limit in (("a", None), ("b", None), ("c", 1))
    }
    found = contest.compete(entered, 3, 1, warm_up=1, at_once=True)
    assert log.read_text().split() == ["a", "b", "c", *"abc", *"ba", *"ab"]
    assert [len(one["samples"]) for one in found.values()] == [3, 3, 1]
    assert found["a"]["trainable"] == 3
    assert found["a"]["samples"][0]["loss"] == 0.5
    assert found["a"]["peak_bytes"] >= found["a"]["peak_anonymous_bytes"] > 0
    assert found["a"]["seconds"]["count"] == 3


def test_a_run_ends_by_itself(contest: Any) -> None:
    entered = {"runner": contest.Contestant("r", "players:Runner")}
    one = contest.compete(entered, None, 1, warm_up=0)["runner"]
    assert [sample["loss"] for sample in one["samples"]] == [0.0, 1.0, 2.0]
    assert all(sample["seconds"] >= 0.01 for sample in one["samples"])
    assert one["over_seconds"] >= 0.05  # what comes after the last step counts


def test_failures(contest: Any) -> None:
    for player, message in (("Failing", "no such luck"), ("Dying", "ended without an answer")):
        with pytest.raises(contest.ContestError, match=message):
            contest.compete({"x": contest.Contestant("x", f"players:{player}")}, 1, 1)


def test_apart(contest: Any) -> None:
    assert contest.apart("players:double", 21) == 42


def test_memory(contest: Any) -> None:
    found = contest.memory()
    assert found["VmHWM"] >= found["VmRSS"] >= found["RssAnon"] > 0
