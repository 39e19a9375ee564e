"""What every benchmark has in common: its rows, the machine, the result's file, its table, its
command line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contest import ContestError, apart, say, summary
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("rango", "torch", "transformers", "peft", "bitsandbytes", "trl", "safetensors")
QUIET_CORES = 0.1
"""What others may keep busy before the result says so."""
BF16_UNITS = ("avx512_bf16", "amx_bf16")
_FLAGS = ("avx2", "fma", "f16c", "avx512f", *BF16_UNITS)
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_LOWER_IS_BETTER = ("s", "ms", "bytes")


@dataclass(frozen=True)
class Row:
    """One comparison: medians, and how far the samples spread.

    The ratio is ours over the peer's; what the goal asks of it, the unit says: of times and bytes
    at most that, of speeds at least. Without a goal there is only something to look at.
    """

    name: str
    unit: str
    ours: float
    peer: float
    against: str
    """Who the peer is."""
    goal: float | None = None
    stretch: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    spread: dict[str, dict[str, float]] = field(default_factory=dict)

    @staticmethod
    def of(
        name: str,
        unit: str,
        ours: Sequence[float],
        peer: Sequence[float],
        against: str,
        goals: tuple[float | None, float | None] | None = None,
        **settings: Any,
    ) -> Row:
        """From samples; goals are the required ratio and the stretch."""
        goal, stretch = goals or (None, None)
        spread = {"ours": summary(ours), "peer": summary(peer)}
        middle = [statistics.median(samples) for samples in (ours, peer)]
        return Row(name, unit, *middle, against, goal, stretch, settings, spread)

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    def reaches(self, bound: float | None) -> bool | None:
        if bound is None:
            return None
        return self.ratio <= bound if self.unit in _LOWER_IS_BETTER else self.ratio >= bound

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ours": self.ours,
            "peer": self.peer,
            "unit": self.unit,
            "against": self.against,
            "ratio": self.ratio,
            "goal": self.goal,
            "met": self.reaches(self.goal),
            "stretch": self.stretch,
            "stretch_met": self.reaches(self.stretch),
            "settings": self.settings,
            "spread": self.spread,
        }


@dataclass
class Findings:
    """What a benchmark has found: rows, everything measured, checks of equal computation, and what
    failed."""

    rows: list[Row] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def check(self, what: str, a: float, b: float, tolerance: float) -> None:
        """Note whether two numbers agree, relative to the second."""
        error = abs(a - b) / max(abs(b), 1e-30)
        self.checks.append({"what": what, "error": error, "ok": error <= tolerance})

    def attempt(self, what: str, work: Callable[[], None]) -> None:
        """Do a part of the benchmark; should a contestant fail, note it and let the rest go on."""
        say(what)
        try:
            work()
        except ContestError as error:
            say(str(error))
            self.failures.append(f"{what}: {error}")


def program(
    name: str,
    about: str | None,
    measure: Callable[[argparse.Namespace, dict[str, Any], Findings], None],
    arguments: Sequence[str] | None = None,
    add: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> int:
    """A benchmark's command: measure(options, machine's speed, findings), write, show.

    Returns 0, or 1 where a contestant failed or computed something else; a missed goal is printed,
    and is no error.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, help="counted turns of each contestant")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, help="the result's file")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    parser.add_argument("--show", type=Path, help="print a stored result; measure nothing")
    add(parser)
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    if options.show:
        show(console, json.loads(options.show.read_text()))
        return 0
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    folder = Path(tempfile.gettempdir()) if options.quick else RESULTS
    output = options.output or folder / f"{name}.json"
    started = time.perf_counter()
    speed = apart("result:machine_speed", options.threads, options.quick)
    findings = Findings()
    measure(options, speed, findings)
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - started,
        "quick": options.quick,
        "machine": machine() | {"threads": options.threads} | speed,
        "versions": versions(*PACKAGES),
        "settings": {
            key: value
            for key, value in vars(options).items()
            if key not in ("output", "show", "quick", "threads")
        },
        "rows": [row.as_dict() for row in findings.rows],
        "checks": findings.checks,
        "failures": findings.failures,
        "measured": findings.measured,
    }
    write_result(output, result)
    show(console, result)
    console.print(f"written to {output}")
    return 0 if not findings.failures and all(c["ok"] for c in findings.checks) else 1


def machine() -> dict[str, Any]:
    """CPU, its flags that matter here, cores and memory."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"flags\s*:\s*(.+)", text)
    total = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "cpu": name[1] if name else platform.machine(),
        "flags": [flag for flag in _FLAGS if flags and flag in flags[1].split()],
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(total[1]) * 1024 if total else None,
    }


def has_bf16_units() -> bool:
    """Whether the CPU multiplies bf16 by itself, which peers then use."""
    return any(flag in BF16_UNITS for flag in machine()["flags"])


def versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine_speed(threads: int, quick: bool) -> dict[str, Any]:
    """Best of eight: products of two squares, copies between two reused buffers of more than any
    cache; and which of Rango's kernels run. In a process of its own."""
    import torch

    torch.set_num_threads(threads)
    side, megabytes = (1024, 64) if quick else (2048, 256)

    def best(work: Callable[[], Any]) -> float:
        return min(seconds_of(work) for _ in range(8))

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        return 2 * side**3 / best(lambda: torch.mm(a, b)) / 1e9

    source = torch.ones(megabytes * 2**18)  # four bytes each
    target = torch.ones_like(source)
    return {
        "gemm_fp32_gflops": product(torch.float32),
        "gemm_bf16_gflops": product(torch.bfloat16),
        # one read and one write
        "copy_gb_per_second": 2 * megabytes * 2**20 / best(lambda: target.copy_(source)) / 1e9,
        "kernels": kernels_in_use(),
    }


def kernels_in_use() -> str:
    """Which of Rango's kernels serve on a CPU."""
    try:
        from rango.kernels.dispatch import facts
    except ImportError:
        return "reference"
    found = facts()
    return f"{found.in_use} ({found.reason})" if found.reason else found.in_use


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write_result(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".tmp")
    whole.write_text(json.dumps(result, indent=1) + "\n")
    whole.replace(path)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print a result, new or stored."""
    for title in ("date", "machine", "versions", "settings"):
        console.print(title, result[title])
    for group, contestants in result["measured"].items():
        if all("peak_bytes" in one for one in contestants.values()):
            console.print(contestants_table(group, contestants))
        if "profile" in contestants:
            console.print(profile_table(group, contestants["profile"]))
    if result["rows"]:
        console.print(rows_table(result["rows"]))
    for line in remarks(result):
        console.print(line, style="red", markup=False)


def remarks(result: dict[str, Any]) -> list[str]:
    """What a reader of the numbers has to know."""
    lines = [f"FAILED {failure}" for failure in result["failures"]]
    lines += [
        f"NOT THE SAME: {check['what']} differ by {check['error']:.1e}"
        for check in result["checks"]
        if not check["ok"]
    ]
    busiest = max(
        (
            one["foreign_cores"]["median"]
            for contestants in result["measured"].values()
            for one in contestants.values()
            if "foreign_cores" in one
        ),
        default=0.0,
    )
    if busiest > QUIET_CORES:
        lines.append(f"other processes kept up to {busiest:.2f} cores busy: not a quiet machine")
    return lines


def contestants_table(group: str, contestants: dict[str, Any]) -> Table:
    """What each contestant took."""
    table = Table(title=group, title_justify="left")
    headings = ("", "s median", "min", "max", "peak MB", "anonymous MB", "above imports MB")
    for heading in (*headings, "foreign cores"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in contestants.values():
        sizes = (
            one["peak_bytes"],
            one["peak_anonymous_bytes"],
            one["peak_bytes"] - one["imports_bytes"],
        )
        table.add_row(
            one["title"],
            *(f"{one['seconds'][key]:.3f}" for key in ("median", "min", "max")),
            *(f"{size / 1e6:.0f}" for size in sizes),
            f"{one['foreign_cores']['median']:.2f}",
        )
    return table


def profile_table(group: str, found: dict[str, Any]) -> Table:
    """Where a step's time went."""
    table = Table(title=f"{group}: {found['step_seconds']:.3f} s a step", title_justify="left")
    for heading in ("function", "s", "share"):
        table.add_column(heading, justify="left" if heading == "function" else "right")
    for one in found["functions"]:
        table.add_row(one["what"], f"{one['seconds']:.3f}", f"{one['share']:.1%}")
    return table


def rows_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The comparisons."""
    table = Table()
    for heading in COLUMNS:
        left = heading in ("", "against")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*cells(row))
    return table


COLUMNS = ("", "against", "ours", "peer", "ratio", "goal", "met", "stretch", "met ")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text, for all tables."""
    sign = "≤" if row["unit"] in _LOWER_IS_BETTER else "≥"
    bounds = [
        ("", "") if bound is None else (f"{sign} {bound:.3g}", "yes" if met else "NO")
        for bound, met in ((row["goal"], row["met"]), (row["stretch"], row["stretch_met"]))
    ]
    values = (quantity(row[side], row["unit"]) for side in ("ours", "peer"))
    return (row["name"], row["against"], *values, f"{row['ratio']:.2f}", *bounds[0], *bounds[1])


def quantity(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    digits = max(0, 2 - len(str(int(value)))) if value >= 1 else 3
    return f"{value:,.{digits}f} {unit}"
