"""What became of many jobs, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from rango.report.format import printable

_MOST = 200
"""Rows shown; failed jobs first."""


def jobs_table(outcomes: Sequence[Mapping[str, Any]]) -> Table:
    """A row a job: name, status, steps, held-out loss of base and adapter, detail (of a trained job
    as much as a line holds).

    outcomes: name and the fields of rango.training.many.outcome.Outcome each.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("job", "", "steps", "base loss", "loss"):
        table.add_column(name, justify="left" if name in ("job", "") else "right")
    table.add_column("why it ended")
    order = sorted(outcomes, key=lambda outcome: outcome["status"] == "trained")
    for outcome in order[:_MOST]:
        table.add_row(
            printable(outcome["name"]),
            outcome["status"],
            str(outcome["steps"]),
            _loss(outcome["base_loss"]),
            _loss(outcome["loss"]),
            _detail(outcome),
        )
    if len(order) > _MOST:
        table.add_row(f"and {len(order) - _MOST} more")
    return table


def _detail(outcome: Mapping[str, Any]) -> Text:
    text = printable(outcome["detail"])
    if outcome["status"] == "trained":
        return Text(text, no_wrap=True, overflow="ellipsis")
    return Text(text, overflow="fold")


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
