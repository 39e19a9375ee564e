"""Where the time of Rango's own steps goes, function by function.

    python benchmarks/hotspots.py --cases "QLoRA, 0.5b 1x512"

Python's profiler around whole steps, after a warm-up: it sees Rango's functions with the compiled
kernels they call, and torch's operations; what autograd runs by itself is run_backward. Its own
cost is some 1% where a step takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contest import Stopped, apart
from contestants import RangoTraining, contestant
from result import Findings, program
from shapes import SHAPES
from texts import equal_texts

CASES = {
    "LoRA, 0.5b 1x512": ("rango-fp32", "0.5b", 1, 512),
    "QLoRA, 0.5b 1x512": ("rango-nf4", "0.5b", 1, 512),
    "LoRA, 25m 4x256": ("rango-fp32", "25m", 4, 256),
}
SHOWN = 14
"""Functions named; the others are summed."""


class _Profiler:
    """Turns for a contestant in a process of its own: `warm_up` steps, then `steps` profiled."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.left = [warm_up, steps]
        self.profile = cProfile.Profile()

    def next(self, **found: float) -> None:
        if self.left[0]:
            self.left[0] -= 1
            if not self.left[0]:
                self.profile.enable()
            return
        self.left[1] -= 1
        if not self.left[1]:
            self.profile.disable()
            raise Stopped


def profile(
    entry: str, folder: str, shape: str, batch: int, tokens: int, threads: int, steps: int
) -> list[tuple[str, float]]:
    """Seconds a step of each function, the largest first."""
    import torch

    torch.set_num_threads(threads)
    texts = equal_texts(SHAPES[shape].vocabulary, batch, tokens)
    options = contestant(entry, folder, texts, 16).options
    profiler = _Profiler(2, steps)
    with contextlib.suppress(Stopped):
        RangoTraining(**options).run(profiler)  # type: ignore[arg-type]
    seconds: dict[str, float] = {}
    found: dict[Any, Any] = vars(pstats.Stats(profiler.profile))["stats"]
    for (file, _, function), (_, _, inside, _, _) in found.items():
        name = _name(file, function)
        seconds[name] = seconds.get(name, 0.0) + inside / steps
    return sorted(seconds.items(), key=lambda pair: -pair[1])


def _name(file: str, function: str) -> str:
    """As a reader would look for it."""
    path = Path(file)
    if file.startswith("~"):
        return function.strip("<>").replace("built-in method ", "").replace("method ", "")
    if "rango" in path.parts:
        inside = path.with_suffix("").parts
        start = len(inside) - 1 - inside[::-1].index("rango")
        return ".".join((*inside[start:], function))
    return f"{path.stem}.{function}"


def measure(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    for case in options.cases or list(CASES)[2 if options.quick else 0 :]:
        entry, shape, batch, tokens = CASES[case]
        with tempfile.TemporaryDirectory(prefix="rango-bench-") as folder:
            apart("shapes:write_checkpoint", options.shape or shape, folder)
            found = apart(
                "hotspots:profile",
                entry,
                folder,
                options.shape or shape,
                batch,
                options.tokens or tokens,
                options.threads,
                options.rounds or 3,
            )
        total = sum(seconds for _, seconds in found)
        shown = [*found[:SHOWN], ("all others", sum(seconds for _, seconds in found[SHOWN:]))]
        findings.measured[case] = {
            "profile": {
                "step_seconds": total,
                "functions": [
                    {"what": what, "seconds": seconds, "share": seconds / total}
                    for what, seconds in shown
                ],
            }
        }


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--shape", choices=SHAPES, help="instead of the case's")
    parser.add_argument("--tokens", type=int, help="instead of the case's")


def main(arguments: Sequence[str] | None = None) -> int:
    return program("hotspots", __doc__, measure, arguments, _add)


if __name__ == "__main__":
    sys.exit(main())
