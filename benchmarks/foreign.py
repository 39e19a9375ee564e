"""How busy others keep the machine while a sample is taken."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Moment:
    """Seconds since boot that all cores together were busy, and of those taken away by the
    hypervisor; and the time."""

    busy: float
    stolen: float
    at: float

    @staticmethod
    def now() -> Moment:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _iowait, irq, softirq, stolen = (
            int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields
        )
        return Moment(user + nice + system + irq + softirq, stolen, time.perf_counter())


def foreign_load(before: Moment, after: Moment, own_seconds: float) -> dict[str, float]:
    """Cores kept busy on average by processes that are not ours, or stolen, from `before` to
    `after`; and the load average of the last minute, in which we ourselves count."""
    wall = after.at - before.at
    return {
        "foreign_cores": max(0.0, after.busy - before.busy - own_seconds) / wall,
        "stolen_cores": (after.stolen - before.stolen) / wall,
        "load_average": os.getloadavg()[0],
    }
