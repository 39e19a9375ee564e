"""Put the results' tables where docs/performance.md shows them.

python benchmarks/page.py
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plot import FIGURES, IMAGES, load
from result import COLUMNS, RESULTS, cells, remarks

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_MARKED = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench:\2 -->\n)", re.DOTALL)
_NOTHING = "Not measured yet.\n"


def filled(page: str, results: dict[str, dict[str, Any]]) -> str:
    """The page with each benchmark's tables between its marks."""

    def block(match: re.Match[str]) -> str:
        name = match[2]
        if name == "machine":
            text = facts(results)
        elif name in FIGURES:
            text = figure(name)
        else:
            text = section(results.get(name))
        return f"{match[1]}\n{text}\n{match[3]}"

    return _MARKED.sub(block, page)


def figure(name: str) -> str:
    """A figure, where it has been drawn."""
    about = (FIGURES[name][0].__doc__ or "").split("\n")[0].rstrip(".")
    drawn = (IMAGES / f"{name}.svg").exists()
    return f"![{about}](images/{name}.svg)\n" if drawn else _NOTHING


def facts(results: dict[str, dict[str, Any]]) -> str:
    """On what the results were measured, a row a benchmark."""
    lines = [
        (
            name,
            one["date"][:10],
            f"{one['machine']['cpu']} ({', '.join(one['machine']['flags'])})",
            str(one["machine"]["threads"]),
            one["machine"]["kernels"],
            f"{one['machine']['gemm_fp32_gflops']:.0f}",
            f"{one['machine']['gemm_bf16_gflops']:.0f}",
            f"{one['machine']['copy_gb_per_second']:.0f}",
            ", ".join(f"{key} {value}" for key, value in one["versions"].items()),
        )
        for name, one in results.items()
    ]
    headings = ("", "date", "CPU", "threads", "kernels")
    speeds = ("fp32 GFLOP/s", "bf16 GFLOP/s", "copy GB/s", "versions")
    return markdown((*headings, *speeds), lines) if lines else _NOTHING


def section(result: dict[str, Any] | None) -> str:
    """One benchmark's rows, and its profile where it has one."""
    if result is None:
        return _NOTHING
    parts = [markdown(COLUMNS, [cells(row) for row in result["rows"]])] if result["rows"] else []
    for group, found in result["measured"].items():
        if "profile" in found:
            lines = [
                (f"`{one['what']}`", f"{one['seconds']:.3f}", f"{one['share']:.1%}")
                for one in found["profile"]["functions"]
            ]
            title = f"{group}: {found['profile']['step_seconds']:.2f} s a step"
            parts.append(f"**{title}**\n\n" + markdown(("function", "s", "share"), lines))
    parts += [f"{line.splitlines()[0]}.\n" for line in remarks(result)]
    return "\n".join(parts)


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    body = [headings, ["---"] * len(headings), *lines]
    return "".join("| " + " | ".join(cell.strip() for cell in line) + " |\n" for line in body)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    text = options.page.read_text(encoding="utf-8")
    options.page.write_text(filled(text, load(options.results)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
