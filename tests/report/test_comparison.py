"""The comparison of methods."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from rango.report.bars import bar_text
from rango.report.comparison import comparison_view, write_comparison

ROWS: list[dict[str, Any]] = [
    {"method": "base", "loss": 4.0, "content_accuracy": 0.2, "forgetting": 0.0},
    {
        "method": "LoRA",
        "loss": 2.0,
        "loss_spread": 0.05,
        "content_accuracy": 0.5,
        "forgetting": 0.03,
        "trainable": 540672,
        "share": 0.12,
        "seconds": 63.2,
    },
]


def printed(thing: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(thing)
    return out.getvalue()


def test_terminal_view() -> None:
    text = printed(comparison_view(ROWS))
    for words in ("LoRA", "540,672", "12.00%", "2.000 ±0.050", "1m 03s", "50.0%", "█"):
        assert words in text
    assert "peak memory" not in text  # no row has it


def test_bars_are_proportional_and_never_vanish() -> None:
    assert bar_text(1.0, 10) == "█" * 10
    assert bar_text(0.5, 10) == "█" * 5
    assert bar_text(1 / 80, 10) == "▏"
    assert bar_text(1e-9, 10) == "▏"
    assert bar_text(0.0, 10) == ""


def test_page(tmp_path: Path) -> None:
    path = write_comparison(
        tmp_path, ROWS, notes=["<one> seed"], samples=[{"prompt": "a<b", "LoRA": "x"}]
    )
    html = path.read_text()
    assert "&lt;one&gt; seed" in html
    assert "a&lt;b" in html
    assert html.count("<svg") == 4  # loss, accuracy, forgetting, time
    assert "<script" not in html
