"""The figures of docs/performance.md, drawn from the results.

python benchmarks/plot.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from result import RESULTS

IMAGES = Path(__file__).parents[1] / "docs" / "images"
OURS, PEER, GOAL = "#2a6f97", "#c9ada7", "#bc4b51"
SPEEDS = ("tokens/s", "samples/s", "s", "ms")


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The results there are, by the file's name: the benchmark's, or that of a part run apart."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: one for name, one in found.items() if "failures" in one}


def speed(results: dict[str, dict[str, Any]], axes: Any) -> None:
    """How many times as fast as the peer; a line at each goal."""
    rows = [
        row
        for name in ("train_step", "train_job", "decode", "load")
        for row in results.get(name, {}).get("rows", ())
        if row["unit"] in SPEEDS
    ]
    _ratios(rows, axes)
    axes.set_xlabel("times as fast as the peer (line: goal)")


def kernels(results: dict[str, dict[str, Any]], axes: Any) -> None:
    """The same for single kernels."""
    _ratios(results["kernels"]["rows"], axes)
    axes.set_xlabel("times as fast as the peer (line: goal)")


def memory(results: dict[str, dict[str, Any]], axes: Any) -> None:
    """Peak memory, ours and the peer's."""
    rows = [
        row
        for name, one in results.items()
        if name != "many"  # too many
        for row in one["rows"]
        if row["unit"] == "bytes"
    ]
    places = range(len(rows))
    for side, colour, shift in (("ours", OURS, -0.2), ("peer", PEER, 0.2)):
        values = [row[side] / 1e9 for row in rows]
        axes.barh([place + shift for place in places], values, 0.38, color=colour, label=side)
    for place, row in enumerate(rows):
        if row["goal"] is not None:
            bound = row["goal"] * row["peer"] / 1e9
            axes.plot([bound, bound], [place - 0.4, place], color=GOAL, linewidth=2)
    _names(rows, axes)
    axes.legend(["ours", "peer"], frameon=False)
    axes.set_xlabel("GB (line: goal)")


def losses(results: dict[str, dict[str, Any]], axes: Any) -> None:
    """Loss against seconds in the realistic job, smoothed over five steps."""
    for one in results["train_job"]["measured"]["the job"].values():
        seconds, elapsed = 0.0, []
        for sample in one["samples"]:
            seconds += sample["seconds"]
            elapsed.append(seconds)
        found = [sample["loss"] for sample in one["samples"]]
        smooth = [
            sum(part) / len(part)
            for part in (found[max(0, i - 4) : i + 1] for i in range(len(found)))
        ]
        axes.plot(elapsed, smooth, label=one["title"])
    axes.set_xlabel("seconds")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)


def losses_by_step(results: dict[str, dict[str, Any]], axes: Any) -> None:
    """The same losses against the share of the samples seen: the curves lie on each other."""
    for one in results["train_job"]["measured"]["the job"].values():
        found = [sample["loss"] for sample in one["samples"]]
        seen = [(step + 1) / len(found) for step in range(len(found))]
        axes.plot(seen, found, label=one["title"], linewidth=1)
    axes.set_xlabel("share of the samples seen")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)


def many(results: dict[str, dict[str, Any]], axes: Any) -> None:
    """How many times as fast jobs at once are as one after another, by their number."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in results["many"]["rows"]:
        if row["unit"] == "tokens/s":
            kind = row["name"].partition(", ")[2].partition(":")[0]
            line = lines.setdefault(f"{kind}, against {row['against']}", [])
            line.append((row["settings"]["jobs"], row["ratio"]))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    counts = sorted({count for points in lines.values() for count, _ in points})
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("jobs")
    axes.set_ylabel("times as fast")
    axes.legend(frameon=False, fontsize=7)


FIGURES: dict[str, tuple[Callable[[dict[str, dict[str, Any]], Any], None], tuple[str, ...]]] = {
    "bench-speed": (speed, ("train_step",)),
    "bench-memory": (memory, ("train_step",)),
    "bench-kernels": (kernels, ("kernels",)),
    "bench-many": (many, ("many",)),
    "bench-losses": (losses, ("train_job",)),
    "bench-losses-by-step": (losses_by_step, ("train_job",)),
}


def _ratios(rows: Sequence[dict[str, Any]], axes: Any) -> None:
    for place, row in enumerate(rows):
        lower = row["unit"] in ("s", "ms")
        ratio, goal = (
            None if value is None else (1 / value if lower else value)
            for value in (row["ratio"], row["goal"])
        )
        axes.barh(place, ratio, color=OURS)
        if goal is not None:
            axes.plot([goal, goal], [place - 0.4, place + 0.4], color=GOAL, linewidth=2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    ticks = (0.5, 1, 2, 5, 10, 20, 50)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    _names(rows, axes)


def _names(rows: Sequence[dict[str, Any]], axes: Any) -> None:
    labels = [f"{row['name']}\nagainst {row['against']}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    options = parser.parse_args(arguments)
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rango"  # the same results, the same file
    from matplotlib import pyplot

    results = load(options.results)
    for name, (draw, needs) in FIGURES.items():
        if any(need not in results for need in needs):
            print(f"{name}: no result of {', '.join(needs)}")
            continue
        figure, axes = pyplot.subplots()
        draw(results, axes)
        count = len(axes.get_yticks()) if axes.get_ylabel() == "" else 10
        figure.set_size_inches(9, max(3.5, 0.36 * count))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        path = options.images / f"{name}.svg"
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
