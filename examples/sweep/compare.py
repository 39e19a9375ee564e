"""Does a sweep find what an exhaustive grid finds, in a quarter of its time?

    .venv/bin/python examples/sweep/compare.py OUTPUT

trains every point of a fine grid of learning rates to its end, then sweeps with three seeds, and
prints the learning rates and the seconds of each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rango.cli.main import main
from rango.demo.package_data import BASE, TRAIN, VALID

HERE = Path(__file__).parent
GRID = "learning_rate=1e-5..1e-1:25"
"""A factor of 1.47 from one to the next."""
SEEDS = (0, 1, 2)


def run(output: Path, *more: str) -> dict[str, Any]:
    """A sweep of the example with other flags; its result."""
    words = ["sweep", str(HERE / "sweep.yaml"), "--output", str(output), *more]
    words += ["--base.model", str(BASE), "--data.train", str(TRAIN), "--data.valid", str(VALID)]
    code = main(words)
    if code:
        raise SystemExit(code)
    found: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return found


def line(name: str, result: dict[str, Any], grid: dict[str, Any]) -> str:
    """What became of one, beside the grid."""
    best, of_grid = result["candidates"][0], grid["candidates"][0]
    rate, exact = (one["params"]["learning_rate"] for one in (best, of_grid))
    return (
        f"{name:<7} {len(result['candidates']):>3} candidates  {result['seconds']:6.0f} s "
        f"({result['seconds'] / grid['seconds']:4.0%})  learning rate {rate:.2e} "
        f"({max(rate / exact, exact / rate):.2f}x)  loss {best['losses'][-1]:.4f}"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(f"usage: {sys.argv[0]} OUTPUT")
    output = Path(sys.argv[1])
    exhaustive = ["--sampler", "grid", "--candidates", "null", "--halvings", "0", "--try", GRID]
    grid = run(output / "grid", *exhaustive)
    sweeps = {seed: run(output / f"seed-{seed}", "--seed", str(seed)) for seed in SEEDS}
    print(line("grid", grid, grid))
    for seed, result in sweeps.items():
        print(line(f"seed {seed}", result, grid))
