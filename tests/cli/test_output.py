"""Results as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from rango.cli.output import as_facts, print_json


@dataclass(frozen=True)
class Inner:
    value: float


@dataclass(frozen=True)
class Outer:
    inner: Inner
    path: Path
    pairs: tuple[int, int]


def test_dataclasses_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(Outer(Inner(math.nan), Path("a/b"), (1, 2)))
    out = capsys.readouterr().out
    assert json.loads(out) == {"inner": {"value": None}, "path": "a/b", "pairs": [1, 2]}


def test_what_describes_itself_is_asked() -> None:
    class Told:
        def as_dict(self) -> dict[str, object]:
            return {"a": Inner(1.0)}

    assert as_facts({"told": Told(), 3: True}) == {"told": {"a": {"value": 1.0}}, "3": True}
