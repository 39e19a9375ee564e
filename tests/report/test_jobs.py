"""The table of what became of many jobs."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from rango.report.jobs import jobs_table


def shown(*outcomes: dict[str, Any]) -> list[str]:
    written = StringIO()
    Console(file=written, width=80).print(jobs_table(outcomes))
    return written.getvalue().splitlines()


def outcome(name: str, status: str = "trained", detail: str = "done") -> dict[str, Any]:
    losses = {"base_loss": 7.5, "loss": 2.25} if status == "trained" else {}
    none = {"base_loss": None, "loss": None}
    return {"name": name, "status": status, "steps": 60, "detail": detail} | none | losses


def test_a_trained_job_is_a_line_and_a_failed_one_comes_first_and_whole() -> None:
    why = "step 3: the loss is nan; " + "lower its training.learning_rate, " * 4 + "the end"
    long = "All 60 steps were done; " + "the weights of step 60 had the best held-out loss; " * 3
    lines = shown(outcome("ann", detail=long), outcome("bob", "failed", why), outcome("cat"))
    assert lines[1].split()[:3] == ["bob", "failed", "60"]
    assert "the end" in " ".join(lines)
    assert [line.split()[0] for line in lines[-2:]] == ["ann", "cat"]
    assert lines[-2].split()[1:5] == ["trained", "60", "7.5000", "2.2500"]
    assert lines[-2].rstrip().endswith("…")


def test_of_very_many_the_first_are_shown() -> None:
    lines = shown(*(outcome(f"job{number}") for number in range(203)))
    assert len(lines) == 202
    assert lines[-1].split() == ["and", "3", "more"]
