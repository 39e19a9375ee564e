"""Every benchmark, one after the other, and one table at the end.

python benchmarks/run_all.py --quick
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from contest import say
from result import RESULTS, has_bf16_units, remarks, rows_table
from rich.console import Console

PROGRAMS = (
    *("train_step", "train_job", "many", "decode", "kernels", "load", "memory", "hotspots"),
    "data",
)
COMPARING_BF16 = ("decode",)  # a training step of that peer takes many minutes


def main(arguments: Sequence[str] | None = None) -> int:
    """The number of programs that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, about 7 minutes")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--output", type=Path, help="folder of the results")
    options, passed_on = parser.parse_known_args(arguments)
    folder = options.output or (
        Path(tempfile.gettempdir()) / "rango-bench" if options.quick else RESULTS
    )
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    failed, rows, lines, begun = 0, [], [], time.perf_counter()
    for name in options.only:
        say(f"== {name}")
        output = folder / f"{name}.json"
        output.unlink(missing_ok=True)
        command = [sys.executable, str(Path(__file__).parent / f"{name}.py"), *passed_on]
        command += ["--output", str(output), *(["--quick"] if options.quick else [])]
        if name in COMPARING_BF16 and has_bf16_units() and not options.quick:
            command += ["--peer-isa", "avx2"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        failed += done.returncode != 0
        if not output.exists():
            lines.append(f"FAILED {name}: no result")
            continue
        result = json.loads(output.read_text())
        rows += result["rows"]
        lines += [f"{name}: {line}" for line in remarks(result)]
    console.print(rows_table(rows))
    for line in lines:
        console.print(line, style="red", markup=False)
    minutes = (time.perf_counter() - begun) / 60
    goals = [row["met"] for row in rows if row["goal"] is not None]
    console.print(
        f"{sum(goals)} of {len(goals)} goals met; {minutes:.1f} minutes; results in {folder}"
    )
    return failed


if __name__ == "__main__":
    sys.exit(main())
