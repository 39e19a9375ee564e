"""What a sweep found, for the terminal: the ranked table, and the gain over learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rango.report.bars import bar_plot
from rango.report.format import MISSING, decimal, option, percent, printable
from rango.report.svg import Bar

Facts = Mapping[str, Any]

_MOST = 40
"""Rows and bars shown."""


def sweep_table(result: Facts) -> Table:
    """A row a candidate, the best first. result: rango.training.sweep.result.SweepResult as a
    mapping."""
    table = Table(box=None, pad_edge=False)
    columns, rows = sweep_rows(result)
    for column in columns:
        table.add_column(Text(column), justify="left" if column == "" else "right")
    for row in rows[:_MOST]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if len(rows) > _MOST:
        table.add_row("", f"and {len(rows) - _MOST} more")
    return table


def sweep_rows(result: Facts) -> tuple[list[str], list[list[str]]]:
    """The columns of the ranked table and the cells of its rows."""
    names = list(result["space"])
    columns = ["rank", "trial", *names, "loss", "less the best's", ""]
    rows = []
    for one in result["candidates"]:
        losses = one["losses"]
        rows.append(
            [
                str(one["rank"]),
                str(one["number"]),
                *(option(one["params"][name]) for name in names),
                decimal(losses[-1]) if losses else MISSING,
                _interval(one["interval"]),
                _status(one, result["rungs"]),
            ]
        )
    return columns, rows


def gain_plot(result: Facts) -> RenderableType | None:
    """Bars: how far each candidate was below the base's held-out loss at the first rung, where all
    were measured, in the order of the learning rate; None where that is not known."""
    name, base = axis(result), result["base_loss"]
    measured = [one for one in result["candidates"] if one["losses"]]
    if name is None or base is None or not measured or len(measured) > _MOST:
        return None
    measured.sort(key=lambda one: one["params"][name])
    bars = [
        Bar(
            option(one["params"][name]),
            max(0.0, base - one["losses"][0]),
            decimal(one["losses"][0]),
            colour=0 if one["status"] == "finished" else 5,
        )
        for one in measured
    ]
    at = "at the end" if len(result["rungs"]) == 1 else f"after {percent(result['rungs'][0], 0)}"
    return bar_plot(f"Gain over the base {at}, by {name}", bars, note="beside it the held-out loss")


def axis(result: Facts) -> str | None:
    """The option to plot losses over: the learning rate, else the first with numbers."""
    numbers = [
        name
        for name in result["space"]
        if all(
            isinstance(one["params"][name], int | float)
            and not isinstance(one["params"][name], bool)
            for one in result["candidates"]
        )
    ]
    if "learning_rate" in numbers:
        return "learning_rate"
    return numbers[0] if numbers else None


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def _status(one: Facts, rungs: Sequence[float]) -> str:
    if one["status"] == "pruned":
        return f"pruned after {percent(rungs[len(one['losses']) - 1], 0)}"
    if one["status"] == "failed":
        return f"failed: {one['detail']}"
    if one["rank"] == 1:
        return "the best"
    return "could as well be the best" if one["as_good"] else "finished"
