"""What every benchmark says about itself: the machine, the versions, the rows of its result."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison; below `goal` is met, None where there is only a floor to look at."""

    name: str
    ours: float
    peer: float
    unit: str
    goal: float | None
    settings: dict[str, Any]
    samples: dict[str, list[float]]

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.ratio <= self.goal

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio, "met": self.met}


def summary(samples: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
    }


def machine() -> dict[str, Any]:
    """CPU, cores and memory."""
    cpu, memory = platform.processor() or platform.machine(), None
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        name = re.search(r"model name\s*:\s*(.+)", text)
        flags = re.search(r"flags\s*:\s*(.+)", text)
        widest = [flag for flag in ("avx512f", "avx2") if flags and flag in flags[1].split()]
        cpu = f"{name[1] if name else cpu} ({widest[0] if widest else 'no AVX2'})"
        found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        memory = int(found[1]) * 1024 if found else None
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_bytes": memory}


def versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_result(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".tmp")
    whole.write_text(json.dumps(result, indent=1) + "\n")
    whole.replace(path)
