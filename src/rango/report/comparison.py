"""The comparison of methods: one table and a few bars, in the terminal and as HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rango.files.atomic import write_text
from rango.report.bars import bar_plot
from rango.report.format import MISSING, decimal, duration, integer, percent, printable, size
from rango.report.page import page, plots, samples_table, section, text
from rango.report.page import table as html_table
from rango.report.svg import Bar, bar_chart

Row = Mapping[str, Any]
Write = Callable[[float | None], str]


def _brief_share(value: float | None) -> str:
    return percent(value, 2)


def _brief(value: float | None) -> str:
    return decimal(value, 3)


COLUMNS: tuple[tuple[str, str, Write], ...] = (
    ("trainable", "trainable", integer),
    ("share", "share", _brief_share),
    ("loss", "loss", _brief),
    ("perplexity", "perplexity", _brief),
    ("content loss", "content_loss", _brief),
    ("content accuracy", "content_accuracy", percent),
    ("exact match", "exact_match", percent),
    ("forgetting (KL)", "forgetting", decimal),
    ("peak memory", "peak_memory", size),
    ("time", "seconds", duration),
    ("adapter", "adapter_bytes", size),
)
"""(heading, key of a row, how to write) of the comparison, after the method's name."""

_CHARTS: tuple[tuple[str, str, str, Write], ...] = (
    ("Held-out loss", "loss", "nats a token; lower is better", _brief),
    (
        "Content accuracy",
        "content_accuracy",
        "share of tokens predicted; higher is better",
        percent,
    ),
    ("Forgetting", "forgetting", "KL from the base on general text; lower is better", decimal),
    ("Peak memory", "peak_memory", "of the process", size),
    ("Time", "seconds", "training alone", duration),
    ("Size on disk", "adapter_bytes", "of what was trained", size),
)
_IN_TERMINAL = ("loss", "content_accuracy", "forgetting")


def comparison_table(rows: Sequence[Row]) -> Table:
    """A terminal table with one column a method; measures that no method has are left out.

    A row of `rows` holds ``method`` and the keys of `COLUMNS` (shares and accuracies of one, bytes,
    seconds); `<key>_spread` is a standard deviation, shown after ±.
    """
    table = Table(title="Comparison", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(Text(printable(str(row["method"]))), justify="right", vertical="bottom")
    for heading, key, write in _filled(rows):
        table.add_row(heading, *(_cell(row, key, write) for row in rows))
    return table


def comparison_view(rows: Sequence[Row]) -> RenderableType:
    """The table and its bar plots for the terminal."""
    parts: list[RenderableType] = [comparison_table(rows)]
    for title, key, note, write in _CHARTS:
        if key in _IN_TERMINAL and (bars := _bars(rows, key, write)):
            parts += [Text(), bar_plot(title, bars, note=note)]
    return Group(*parts)


def comparison_markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, one column a method."""
    names = [printable(str(row["method"])) for row in rows]
    lines = [["", *names], ["---", *["---:"] * len(rows)]]
    lines += [
        [heading, *(_cell(row, key, write) for row in rows)]
        for heading, key, write in _filled(rows)
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_comparison(
    folder: str | Path,
    rows: Sequence[Row],
    *,
    title: str = "Comparison",
    notes: Sequence[str] = (),
    samples: Sequence[Row] = (),
    curves: Sequence[str] = (),
) -> Path:
    """Write comparison.html into `folder`, replacing an earlier one, and return its path.

    `notes` are paragraphs under the title; `samples` have the texts of a table with one column a
    key (prompt, expected, and one a method); `curves` are SVG drawings.
    """
    body = [
        f"<h1>{text(title)}</h1>",
        *(f'<p class="soft">{text(note)}</p>' for note in notes),
        section(
            "Methods",
            html_table(
                ["", *(str(row["method"]) for row in rows)],
                [
                    [heading, *(_cell(row, key, write) for row in rows)]
                    for heading, key, write in _filled(rows)
                ],
            ),
        ),
        section(
            "Side by side",
            plots(
                bar_chart(chart, _bars(rows, key, write), note=note)
                for chart, key, note, write in _CHARTS
            ),
        ),
        section("Curves", plots(curves)),
        section("Samples", _samples(samples)),
    ]
    path = Path(folder) / "comparison.html"
    write_text(path, page(f"Rango: {title}", body), overwrite=True)
    return path


def _filled(rows: Sequence[Row]) -> list[tuple[str, str, Write]]:
    return [column for column in COLUMNS if any(row.get(column[1]) is not None for row in rows)]


def _cell(row: Row, key: str, write: Write) -> str:
    value, spread = row.get(key), row.get(f"{key}_spread")
    if value is None or spread is None:
        return write(value)
    return f"{write(value)} ±{write(spread)}"


def _bars(rows: Sequence[Row], key: str, write: Write) -> list[Bar]:
    return [
        Bar(str(row["method"]), float(row[key]), write(row[key]), _spread(row, key), place)
        for place, row in enumerate(rows)
        if row.get(key) is not None
    ]


def _spread(row: Row, key: str) -> float:
    return float(row.get(f"{key}_spread") or 0.0)


def _samples(samples: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for sample in samples for key in sample))
    return samples_table(
        columns, [[str(sample.get(key, MISSING)) for key in columns] for sample in samples]
    )
