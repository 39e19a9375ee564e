"""Horizontal bars for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rango.report.svg import Bar

_EIGHTHS = " ▏▎▍▌▋▊▉"
_COLOURS = ("blue", "dark_orange3", "green4", "magenta", "yellow4", "grey58")


def bar_text(share: float, width: int) -> str:
    """A bar of `share` (0 to 1) of `width` cells, to an eighth of a cell; never empty above 0."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if share > 0 and eighths == 0:
        eighths = 1
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def bar_plot(title: str, bars: Sequence[Bar], *, note: str = "", width: int = 40) -> Group:
    """The same bars as `rango.report.svg.bar_chart`, drawn with block characters."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right")
    grid.add_column()
    kept = [bar for bar in bars if math.isfinite(bar.value)]
    high = max((bar.value for bar in kept), default=0.0)
    for index, bar in enumerate(kept):
        drawn = Text(bar_text(bar.value / high if high > 0 else 0.0, width))
        drawn.stylize(_COLOURS[(index if bar.colour is None else bar.colour) % len(_COLOURS)])
        grid.add_row(Text(bar.label), drawn + Text(f" {bar.text}"))
    heading = Text(title, style="bold")
    if note:
        heading.append(f"  {note}", style="dim")
    return Group(heading, grid)
