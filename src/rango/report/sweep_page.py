"""The report of a sweep: report.html in its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rango import __version__
from rango.files.atomic import write_text
from rango.report.format import decimal, duration, option, percent
from rango.report.page import page, plots, section, table, text, tiles
from rango.report.svg import Points, point_plot
from rango.report.sweep import axis, sweep_rows

Facts = Mapping[str, Any]

_WORSE = 1.0
"""How far above the best the plot goes, in times that the best gained over the base."""


def write_sweep_page(folder: Path, result: Facts) -> Path:
    """Write report.html, replacing an earlier one; result: a SweepResult as a mapping."""
    path = folder / "report.html"
    write_text(path, sweep_page(folder.name, result), overwrite=True)
    return path


def sweep_page(name: str, result: Facts) -> str:
    """The page's HTML."""
    columns, rows = sweep_rows(result)
    aligned = range(len(columns) - 1)
    body = [
        f"<h1>{text(name)}</h1>",
        f'<p class="soft">{text(judged_on(result))}</p>',
        tiles(_headline(result)),
        section("Loss", plots(loss_plots(result)), f'<p class="soft">{text(_READING)}</p>'),
        section("Advice", "".join(f"<p>{text(line)}</p>" for line in result["advice"])),
        section("Candidates", table(columns, rows, numbers=aligned)),
        section("Confidence", f"<p>{text(_CONFIDENCE)}</p>"),
        f'<p class="soft">Written by Rango {text(__version__)}.</p>',
    ]
    return page(f"Rango: {name}", body)


_READING = (
    "A plot for each rung and one for the end; a circle is hollow where the candidate was pruned "
    "there. Losses of different plots are of different lengths of training."
)
_CONFIDENCE = (
    "The interval holds 95% of the differences to the best candidate's loss at the same rung, the "
    "last that the candidate reached, when the held-out samples are drawn anew (a paired "
    "bootstrap); where it reaches 0, either could be better. It tells nothing of other seeds, nor "
    "of what a pruned candidate might have become."
)


def judged_on(result: Facts) -> str:
    """What the losses were measured on, as a sentence."""
    share = result["held_out_share"]
    of = "" if share is None else f" ({percent(share, 0)} of the data)"
    return (
        f"{len(result['candidates'])} candidates, compared on {result['held_out']} held-out "
        f"samples{of}; the base's loss there is {decimal(result['base_loss'])}."
    )


def loss_plots(result: Facts) -> Iterator[str]:
    """Loss against the learning rate, a plot for each rung and the end, a colour for each rank."""
    name = axis(result)
    if name is None:
        return
    grouped = "r" if "r" in result["space"] and name != "r" else None
    plain = result["space"][name]
    log = plain["log"] if isinstance(plain, Mapping) else _wide(plain)
    for rung, share in enumerate(result["rungs"]):
        groups: dict[str, tuple[list[tuple[float, float]], list[tuple[float, float]]]] = {}
        for one in result["candidates"]:
            key = "all" if grouped is None else f"r {option(one['params'][grouped])}"
            full, hollow = groups.setdefault(key, ([], []))
            if len(one["losses"]) > rung:
                ended = one["status"] != "finished" and len(one["losses"]) == rung + 1
                (hollow if ended else full).append((one["params"][name], one["losses"][rung]))
        at = "at the end" if share == 1 else f"after {percent(share, 0)} of the run"
        kept = sorted(groups.items(), key=lambda item: (len(item[0]), item[0]))
        yield point_plot(
            f"Held-out loss {at}",
            [Points(key, *points) for key, points in kept],
            x_label=name,
            y_label="nats a token",
            log=log,
            most=_most(result, rung),
        )


def _wide(values: list[float]) -> bool:
    """Whether numbers are better seen on a logarithmic axis."""
    return min(values) > 0 and max(values) >= 10 * min(values)


def _most(result: Facts, rung: int) -> float:
    """Where the plot ends: far above the best, what diverges would hide the rest."""
    losses = [one["losses"][rung] for one in result["candidates"] if len(one["losses"]) > rung]
    if not losses or result["base_loss"] is None:
        return math.inf
    gained = max(result["base_loss"] - min(losses), 0.05 * min(losses))
    return float(min(losses) + (1 + _WORSE) * gained)


def _headline(result: Facts) -> list[tuple[str, str]]:
    best = result["candidates"][0]
    entries = [(name, option(value)) for name, value in best["params"].items()]
    if best["losses"]:
        loss = f"{decimal(result['base_loss'], 3)} → {decimal(best['losses'][-1], 3)}"
        entries.append(("held-out loss", loss))
    return [*entries, ("training time", duration(result["seconds"]))]
