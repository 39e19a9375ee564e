"""What a sweep found, as a table, bars, plots and a page."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

from rich.console import Console

from rango.report.svg import Points, point_plot
from rango.report.sweep import axis, gain_plot, sweep_rows, sweep_table
from rango.report.sweep_page import loss_plots, sweep_page


def one(rank: int, losses: list[float], **more: Any) -> dict[str, Any]:
    return {
        "rank": rank,
        "number": 10 - rank,
        "params": {"learning_rate": 1e-4 * rank, "r": 4 * (1 + rank % 2), "schedule": "linear"},
        "losses": losses,
        "status": "pruned",
        "detail": "",
        "interval": [0.01, 0.2],
        "as_good": False,
    } | more


RESULT: dict[str, Any] = {
    "space": {
        "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
        "r": [4, 8],
        "schedule": ["linear", "cosine"],
    },
    "candidates": [
        one(1, [3.0, 2.5, 2.0], status="finished", interval=None),
        one(2, [3.1, 2.6, 2.1], status="finished", interval=[-0.1, 0.3], as_good=True),
        one(3, [3.2, 2.9]),
        one(4, [3.3]),
        one(5, [50.0]),
        one(6, [], status="failed", interval=None, detail="step 2: the loss is <nan>"),
    ],
    "rungs": [1 / 9, 1 / 3, 1.0],
    "base_loss": 3.5,
    "held_out": 60,
    "held_out_share": 0.1,
    "advice": ["The best learning_rate lies at the <upper> edge."],
    "seconds": 75.0,
}


def drawn(part: Any) -> str:
    console = Console(file=StringIO(), width=140)
    console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table() -> None:
    columns, rows = sweep_rows(RESULT)
    assert columns[:5] == ["rank", "trial", "learning_rate", "r", "schedule"]
    assert rows[0] == ["1", "9", "0.0001", "8", "linear", "2.0000", "", "the best"]
    assert rows[1][-3:] == ["2.1000", "-0.1000 to +0.3000", "could as well be the best"]
    assert rows[2][-1] == "pruned after 33%"
    assert rows[3][-1] == "pruned after 11%"
    assert rows[5][-3:] == ["–", "", "failed: step 2: the loss is <nan>"]
    text = drawn(sweep_table(RESULT))
    assert text.index("the best") < text.index("pruned after 33%") < text.index("failed")
    many = RESULT | {"candidates": [one(rank, [1.0]) for rank in range(1, 60)]}
    assert "and 19 more" in drawn(sweep_table(many))


def test_bars_in_the_order_of_the_learning_rate() -> None:
    text = drawn(gain_plot(RESULT))
    assert "Gain over the base after 11%, by learning_rate" in text
    lines = text.splitlines()[1:]
    assert [float(line.split()[0]) for line in lines] == [1e-4, 2e-4, 3e-4, 4e-4, 5e-4]
    assert lines[0].count("█") > lines[3].count("█") > lines[4].count("█") == 0
    assert gain_plot(RESULT | {"base_loss": None}) is None


def test_what_losses_are_plotted_over() -> None:
    assert axis(RESULT) == "learning_rate"
    assert axis(RESULT | {"space": {"schedule": [], "r": [4, 8]}}) == "r"
    assert axis(RESULT | {"space": {"schedule": []}}) is None


def test_a_plot_for_each_rung_and_a_colour_for_each_rank() -> None:
    plots = [*loss_plots(RESULT)]
    titles = [re.findall(r'aria-label="([^"]*)"', plot)[0] for plot in plots]
    assert titles == [
        "Held-out loss after 11% of the run",
        "Held-out loss after 33% of the run",
        "Held-out loss at the end",
    ]
    assert [plot.count("<circle") for plot in plots] == [5, 3, 2]
    assert [plot.count("fill:none;stroke:") for plot in plots] == [2, 1, 0]
    for plot in plots:
        assert ">r 4</text>" in plot
        assert ">r 8</text>" in plot
    assert "r 8: 50 at 0.0005" in plots[0]  # on the edge, with its value
    assert not [*loss_plots(RESULT | {"space": {"schedule": ["linear"]}})]


def test_points() -> None:
    inf = float("inf")
    plot = point_plot(
        "P", [Points("a", [(1, 2.0), (10, inf)], [(100, 9.0)])], x_label="x", log=True
    )
    assert plot.count("<circle") == 3
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', plot)]
    assert abs((places[0] + places[2]) / 2 - places[1]) < 0.2
    assert "nan" not in plot
    assert point_plot("P", [Points("a", [(1, inf)])], x_label="x") == ""


def test_the_page() -> None:
    page = sweep_page("a <sweep>", RESULT)
    assert "a &lt;sweep&gt;" in page
    assert "<upper>" not in page
    assert "6 candidates, compared on 60 held-out samples (10% of the data)" in page
    assert "could as well be the best" in page
    assert page.count("<svg") == 3
    assert not re.search(r'(src|href)="', page)
