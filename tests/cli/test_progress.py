"""Progress: silent when quick, a line now and then without a terminal, a bar with one."""

from __future__ import annotations

import io

from rich.console import Console

from rango.cli.progress import ProgressBars


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def bars(terminal: bool) -> tuple[ProgressBars, Clock, io.StringIO]:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
    return ProgressBars(console, clock), clock, out


def test_quick_work_is_silent() -> None:
    for terminal in (False, True):
        progress, clock, out = bars(terminal)
        with progress:
            for done in range(11):
                clock.now = done * 0.15
                progress("read", done, 10)
        assert out.getvalue() == ""


def test_lines_without_a_terminal() -> None:
    progress, clock, out = bars(terminal=False)
    with progress:
        for done in range(101):
            clock.now = done * 0.5
            progress("train", done, 100, "steps", f"loss {100 - done}")
    lines = out.getvalue().splitlines()
    assert len(lines) == 5  # at 10, 20, 30, 40 and 50 seconds
    assert lines[0] == "train: 20/100 steps (20%) 2 steps/s loss 80, 40 s left"
    assert lines[-1] == "train: 100/100 steps (100%) 2 steps/s loss 0"


def test_rate_counts_from_where_a_resumed_task_began() -> None:
    progress, clock, out = bars(terminal=False)
    with progress:
        progress("train", 90, 100, "steps")
        clock.now = 5.0
        progress("train", 100, 100, "steps")
    assert "2 steps/s" in out.getvalue()


def test_bar_on_a_terminal() -> None:
    progress, clock, out = bars(terminal=True)
    with progress:
        for done in range(11):
            clock.now = float(done)
            progress("train [x]", done, 10, "steps", "loss 1.5\x1b[2J")
    text = out.getvalue()
    assert "train [x]" in text
    assert "loss 1.5" in text
    assert "\x1b[2J" not in text.replace("\x1b[2K", "")


def test_a_task_of_the_same_name_starts_again() -> None:
    progress, clock, out = bars(terminal=False)
    with progress:
        for start in (0.0, 100.0):
            for done in range(4):
                clock.now = start + done
                progress("evaluate", done, 3, "tokens")
    assert out.getvalue().count("evaluate: 3/3") == 2
