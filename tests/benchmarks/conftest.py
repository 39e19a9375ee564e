"""The benchmarks' modules import each other by their bare names, and run as commands."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """A module of the benchmarks by name, forgotten after the test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name, found in list(sys.modules.items()):
        if Path(getattr(found, "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a benchmark on one thread; returns its result, whose form is checked."""

    def command(name: str, *options: str) -> dict[str, Any]:
        output = tmp_path / f"{name}.json"
        common = ("--quick", "--threads", "1", "--output", output)
        done = subprocess.run(
            [sys.executable, BENCHMARKS / f"{name}.py", *common, *options],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(output.read_text())
        check_form(result)
        assert all(row["name"][:20] in done.stdout for row in result["rows"])
        return result

    return command


def check_form(result: dict[str, Any]) -> None:
    """What every result has."""
    assert result["machine"]["gemm_fp32_gflops"] > 0
    assert result["machine"]["copy_gb_per_second"] > 0
    assert result["machine"]["kernels"]
    assert result["machine"]["threads"] == 1
    assert result["versions"]["rango"]
    assert not result["failures"]
    assert all(check["ok"] for check in result["checks"])
    for row in result["rows"]:
        assert set(row) == {
            *("name", "against", "ours", "peer", "unit", "ratio", "goal", "met"),
            *("stretch", "stretch_met", "settings", "spread"),
        }
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert row["goal"] is None
        for side in ("ours", "peer"):
            spread = row["spread"][side]
            assert 0 < spread["min"] <= row[side] <= spread["max"]
    for contestants in result["measured"].values():
        for one in contestants.values():
            if "samples" in one:
                assert one["samples"]
                assert all(sample["foreign_cores"] >= 0 for sample in one["samples"])
                assert one["peak_bytes"] >= one["peak_anonymous_bytes"] > 0
