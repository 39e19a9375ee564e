"""A result as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from comparison import column
from rich.console import Console
from rich.table import Table
from shapes import SHAPES

QUIET_CORES = 0.1
"""What others may keep busy before the result says so."""


def show(console: Console, result: dict[str, Any]) -> None:
    """Print a result, new or stored."""
    for title in ("date", "machine", "versions", "settings"):
        console.print(title, result[title])
    for shape, measured in result["shapes"].items():
        print_shape(console, shape, measured)
    print_rows(console, result["rows"])
    busiest = max(
        statistics.median(column(one, "foreign_cores"))
        for measured in result["shapes"].values()
        for one in measured["contestants"].values()
    )
    if busiest > QUIET_CORES:
        console.print(
            f"other processes kept up to {busiest:.2f} cores busy: times are not those of a quiet "
            "machine"
        )
    for shape, measured in result["shapes"].items():
        for check in measured["checks"]:
            if not check["ok"]:
                console.print(
                    f"[red]{shape}: {check['ours']} and {check['peer']} differ in "
                    f"{check['what']} by {check['error']:.1e} of it[/red]"
                )


def print_shape(console: Console, shape: str, measured: dict[str, Any]) -> None:
    """What each contestant took."""
    speed = measured["machine"]
    console.print(
        f"\n[bold]{shape}[/bold]: {measured['parameters'] / 1e6:.1f}M parameters, "
        f"1x{SHAPES[shape].tokens} tokens; fp32 product {speed['gemm_fp32_gflops']:.0f} GFLOP/s, "
        f"copy {speed['copy_gb_per_second']:.1f} GB/s"
    )
    table = Table()
    for heading in ("", "s median", "min", "max", "peak MB", "anonymous MB", "above imports MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for heading in ("first loss", "last loss", "foreign cores"):
        table.add_column(heading, justify="right")
    for one in measured["contestants"].values():
        seconds = one["step_seconds"]
        memory_columns = (
            one["peak_bytes"],
            one["peak_anonymous_bytes"],
            one["peak_bytes"] - one["imports_bytes"],
        )
        table.add_row(
            one["title"],
            *(f"{seconds[key]:.3f}" for key in ("median", "min", "max")),
            *(f"{count / 1e6:.0f}" for count in memory_columns),
            f"{one['first_loss']:.5f}",
            f"{one['last_loss']:.5f}",
            f"{one['foreign_cores']['median']:.2f}",
        )
    console.print(table)


def print_rows(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """The comparisons."""
    table = Table()
    for heading in ("comparison", "ours", "peer", "ratio", "goal", "met"):
        table.add_column(heading, justify="left" if heading == "comparison" else "right")
    for row in rows:
        scale, digits, unit = (1.0, 3, "s") if row["unit"] == "s" else (1e6, 0, "MB")
        table.add_row(
            row["name"],
            *(f"{row[side] / scale:.{digits}f} {unit}" for side in ("ours", "peer")),
            f"{row['ratio']:.3f}",
            "" if row["goal"] is None else f"≤ {row['goal']}",
            {None: "", True: "yes", False: "NO"}[row["met"]],
        )
    console.print(table)
