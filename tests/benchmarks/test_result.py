"""Rows, checks, remarks, and what is made of them: tables, the page, the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Module = Callable[[str], Any]


def test_goals_are_bounds_from_the_units_side(module: Module) -> None:
    row = module("result").Row
    slower = row.of("x", "s", [1.2, 1.1, 1.3], [1.0], "p", (1.1, 1.3)).as_dict()
    assert (slower["ratio"], slower["met"], slower["stretch_met"]) == (1.2, False, True)
    faster = row.of("x", "tokens/s", [1.2], [1.0], "p", (1.1, 1.3)).as_dict()
    assert (faster["met"], faster["stretch_met"]) == (True, False)
    free = row.of("x", "bytes", [1.2], [1.0], "p", shape="toy").as_dict()
    assert (free["goal"], free["met"], free["settings"]) == (None, None, {"shape": "toy"})
    assert slower["spread"]["ours"] == {"median": 1.2, "min": 1.1, "max": 1.3, "count": 3}


def test_cells(module: Module) -> None:
    result = module("result")
    row = result.Row.of("x", "bytes", [3e8], [1e9], "p", (0.5, 0.25)).as_dict()
    ours = ("x", "p", "300 MB", "1,000 MB", "0.30", "≤ 0.5", "yes", "≤ 0.25", "NO")
    assert result.cells(row) == ours
    assert result.quantity(12.34, "tokens/s") == "12 tokens/s"
    assert result.quantity(1.234, "s") == "1.2 s"
    assert result.quantity(0.1234, "s") == "0.123 s"


def test_findings(module: Module) -> None:
    findings = module("result").Findings()

    def fail() -> None:
        raise module("contest").ContestError("out of memory?")

    findings.attempt("a group", fail)
    findings.check("losses", 1.0, 1.1, 1e-3)
    findings.check("sizes", 8.0, 8.0, 0.0)
    lines = module("result").remarks(
        {"failures": findings.failures, "checks": findings.checks}
        | {"measured": {"g": {"x": {"foreign_cores": {"median": 0.5}}}}}
    )
    assert lines == [
        "FAILED a group: out of memory?",
        "NOT THE SAME: losses differ by 9.1e-02",
        "other processes kept up to 0.50 cores busy: not a quiet machine",
    ]


def _result(name: str, rows: list[dict[str, Any]], measured: dict[str, Any]) -> dict[str, Any]:
    machine = {"cpu": "C", "flags": ["avx2"], "threads": 2, "kernels": "avx2"}
    speeds = {"gemm_fp32_gflops": 1.0, "gemm_bf16_gflops": 1.0, "copy_gb_per_second": 1.0}
    return {
        "benchmark": name,
        "date": "2026-01-01T00:00:00",
        "machine": machine | speeds,
        "versions": {"rango": "1"},
        "rows": rows,
        "measured": measured,
        "checks": [],
        "failures": [],
    }


@pytest.fixture
def results(module: Module, tmp_path: Path) -> Path:
    of = module("result").Row.of
    rows = [
        of("LoRA: speed", "tokens/s", [2.0], [1.0], "PEFT", (1.15, 1.4)).as_dict(),
        of("LoRA: peak memory", "bytes", [1e9], [2e9], "PEFT").as_dict(),
    ]
    samples = [{"seconds": 1.0, "loss": 3.0 - step / 10} for step in range(9)]
    curves = {name: {"title": name, "samples": samples} for name in ("Rango", "TRL")}
    functions = [{"what": "rango.kernels.products", "seconds": 1.0, "share": 1.0}]
    profile = {"profile": {"step_seconds": 1.0, "functions": functions}}
    for name, measured in (
        ("train_step", {}),
        ("train_job", {"the job": curves}),
        ("kernels", {}),
        ("hotspots", {"QLoRA": profile}),
    ):
        rowless = name in ("train_job", "hotspots")
        result = _result(name, [] if rowless else rows, measured)
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    at_once = [
        of(f"{n} jobs, toy, fp32: speed", "tokens/s", [2.0], [1.0], "PEFT", jobs=n).as_dict()
        for n in (4, 16)
    ]
    (tmp_path / "many.json").write_text(json.dumps(_result("many", at_once, {})))
    (tmp_path / "demo.json").write_text(json.dumps({"rows": []}))  # another program's
    return tmp_path


def test_page_is_filled_between_its_marks(module: Module, results: Path) -> None:
    page = module("page")
    marks = "before\n<!-- bench:{0} -->\nold\n<!-- /bench:{0} -->\nafter\n"
    found = page.load(results)
    assert set(found) == {"train_step", "train_job", "many", "kernels", "hotspots"}
    text = page.filled(marks.format("train_step"), found)
    assert "| LoRA: speed | PEFT | 2.0 tokens/s | 1.0 tokens/s | 2.00 | ≥ 1.15 | yes |" in text
    assert "old" not in text
    assert text.startswith("before\n<!-- bench:train_step -->\n")
    assert text.endswith("<!-- /bench:train_step -->\nafter\n")
    assert page.filled(text, found) == text
    assert "Not measured yet." in page.filled(marks.format("decode"), found)
    assert "`rango.kernels.products` | 1.000 | 100.0%" in page.filled(
        marks.format("hotspots"), found
    )
    assert "| C (avx2) |" in page.filled(marks.format("machine"), found)


def test_every_mark_of_the_page_is_known(module: Module) -> None:
    page, runner = module("page"), module("run_all")
    text = page.PAGE.read_text(encoding="utf-8")
    names = [match[2] for match in page._MARKED.finditer(text)]
    assert sorted(names) == sorted({"machine", *page.FIGURES, *runner.PROGRAMS})


def test_figures(module: Module, results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    images = tmp_path / "images"
    images.mkdir()
    plot = module("plot")
    drawn = []
    for _ in range(2):
        assert plot.main(["--results", str(results), "--images", str(images)]) == 0
        drawn.append({path.name: path.read_bytes() for path in images.glob("*.svg")})
    assert set(drawn[0]) == {f"{name}.svg" for name in plot.FIGURES}
    assert drawn[0] == drawn[1]
