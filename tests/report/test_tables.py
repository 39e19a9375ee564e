"""Tables of the terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from rango.report.tables import (
    answers_view,
    evaluation_table,
    forgetting_table,
    inspection_view,
    kernels_line,
    proof_view,
)


def printed(thing: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(thing)
    return out.getvalue()


def test_evaluation_shows_only_what_was_measured() -> None:
    text = printed(evaluation_table({"base": {"loss": 4.0}, "adapted": {"loss": 2.0}}))
    assert "4.0000" in text
    assert "exact match" not in text


def test_forgetting() -> None:
    text = printed(forgetting_table({"base_loss": 2.9, "loss": 3.0, "kl": 0.031}))
    assert "0.0310" in text


def test_proof_says_its_verdict_and_every_check() -> None:
    checks = {
        "read back": {"passed": True, "value": 3.2e-7, "limit": 1e-5, "detail": "relative"},
        "probe": {"passed": None, "value": None, "limit": None, "detail": "not run: none"},
        "lora_B moved": {"passed": False, "value": 13, "limit": 14, "detail": "still zero: q"},
    }
    text = printed(proof_view({"passed": False, "checks": checks}))
    for words in ("✓", "3.2e-07", "1e-05", "·", "not run", "✗", "13", "14", "A check failed"):
        assert words in text
    assert "computes what was trained" in printed(proof_view({"passed": True, "checks": {}}))


def test_inspection_lists_records_and_markup_is_text() -> None:
    modules = [{"module": f"layers.{n}[red]", "norm": 0.5, "zero_share": 0.1} for n in range(70)]
    text = printed(inspection_view("adapter", {"r": 16, "modules": modules}))
    assert "layers.0[red]" in text
    assert "10.00%" in text
    assert "10 more" in text
    assert "layers.69" not in text


def test_inspection_says_which_kernels_run_and_the_path_of_each_module() -> None:
    kernels = {"in_use": "reference", "reason": "RANGO_KERNELS=reference", "threads": 1}
    paths = {f"layers.{n}.mlp": "fused" for n in range(3)}
    paths |= {"layers.3.mlp": "plain: another activation", "norm": "fused"}
    facts = {"kernels": kernels, "paths": paths}
    lines = [line.split() for line in printed(inspection_view("base", facts)).splitlines()]
    assert ["kernels", "reference", "(RANGO_KERNELS=reference),", "1", "thread"] in lines
    assert ["layers.*.mlp", "fused", "3"] in lines
    assert ["layers.3.mlp", "plain:", "another", "activation", "1"] in lines
    assert ["norm", "fused", "1"] in lines
    assert facts == {"kernels": kernels, "paths": paths}
    assert kernels_line({"in_use": "avx2", "reason": "", "threads": 2}) == "avx2, 2 threads"


def test_one_answer_stands_alone() -> None:
    assert printed(answers_view(["q"], {"base": ["a [b] c"]})) == "a [b] c\n"
    both = printed(answers_view(["q"], {"base": ["one"], "adapted": ["two"]}))
    assert both.split() == ["prompt", "q", "base", "one", "adapted", "two"]
