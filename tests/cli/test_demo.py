"""`rango demo` prints what the demo found (the demo itself is tested in tests/demo)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rango
from rango.cli.main import main

RESULT: dict[str, Any] = {
    "output": "out",
    "rows": [
        {"method": "base", "loss": 4.0, "content_accuracy": 0.2, "forgetting": 0.0},
        {"method": "LoRA", "loss": 2.0, "content_accuracy": 0.5, "forgetting": 0.03},
    ],
    "samples": [
        {
            "question": "\n".join(f"line {number}" for number in range(20)),
            "expected": "Return it.",
            "base": "x",
            "LoRA": "Return it.",
        }
    ],
    "merged": {"modules": 28, "loss_merged": 2.0},
    "seconds": 10.0,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    def run_demo(output: str | Path, **options: Any) -> dict[str, Any]:
        options.pop("progress")
        seen.append((output, options))
        return RESULT

    monkeypatch.setattr(rango, "run_demo", run_demo, raising=False)
    return seen


def test_everything_is_printed(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    assert calls == [("demo-run", {"seeds": [0], "max_steps": None})]
    captured = capsys.readouterr()
    for words in ("line 11", "8 more lines", "expected", "Return it.", "28", "2.000", "█"):
        assert words in captured.out
    assert "line 12" not in captured.out
    assert "out/comparison.html" in captured.err


def test_json_and_seeds(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", "o", "--seeds", "0", "1", "--json"]) == 0
    assert calls == [("o", {"seeds": [0, 1], "max_steps": None})]
    assert json.loads(capsys.readouterr().out) == RESULT
