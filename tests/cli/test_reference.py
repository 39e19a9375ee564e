"""docs/cli.md is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from rango.cli.main import COMMANDS
from rango.cli.reference import main, reference

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_current() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == reference(), "run: .venv/bin/python -m rango.cli.reference"


def test_an_option_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["reference", "--help"])
    with pytest.raises(SystemExit, match=r"usage: python -m rango\.cli\.reference \[PATH\]"):
        main()
    assert not list(tmp_path.iterdir())
    assert not (ROOT / "--help").exists()


def test_the_terminal_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    before = reference()
    monkeypatch.setenv("COLUMNS", "47")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert reference() == before
    assert all(f"## rango {name}\n" in before for name in COMMANDS)
    assert max(map(len, before.splitlines())) <= 110
