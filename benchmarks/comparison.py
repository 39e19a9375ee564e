"""Who is compared with whom, by what measure, and whether all computed the same."""

from __future__ import annotations

from typing import Any

from common import Row
from contestants import ENTRIES
from shapes import SHAPES

GOAL = 1.1
"""Ours over the peer's, at most."""
PAIRS = (("rango-lora", "peft-lora", GOAL), ("rango-qlora", "peft-qlora", GOAL))
FLOORS = (("rango-lora", "frozen", None), ("peft-lora", "frozen", None))
FP32_TOLERANCE = 1e-5
"""Of first losses: nothing is rounded, only the order of sums differs."""
NF4_TOLERANCE = 1e-3
"""Of first losses: a few double-quantized constants fall to a neighbouring code."""
TRAINED_TOLERANCE = 1e-3
"""Of the last losses, after as many AdamW steps."""


def rows_of(shape: str, measured: dict[str, Any], settings: dict[str, Any]) -> list[Row]:
    """The comparisons that can be made with what was measured."""
    found, rows = measured["contestants"], []
    settings = settings | {"shape": shape, "tokens": SHAPES[shape].tokens}
    for ours, peer, goal in (*PAIRS, *FLOORS):
        if ours not in found or peer not in found:
            continue
        a, b = found[ours], found[peer]
        title = f"{shape}: {a['title']} / {b['title']}"
        seconds = {side: column(one, "seconds") for side, one in (("ours", a), ("peer", b))}
        peaks = {side: column(one, "peak_bytes") for side, one in (("ours", a), ("peer", b))}
        rows += [
            Row(
                name=f"{title}, step time",
                ours=a["step_seconds"]["median"],
                peer=b["step_seconds"]["median"],
                unit="s",
                goal=goal,
                settings=settings,
                samples=seconds,
            ),
            Row(
                name=f"{title}, peak memory",
                ours=a["peak_bytes"],
                peer=b["peak_bytes"],
                unit="bytes",
                goal=goal,
                settings=settings,
                samples=peaks,
            ),
            Row(
                name=f"{title}, peak memory above imports",
                ours=a["peak_bytes"] - a["imports_bytes"],
                peer=b["peak_bytes"] - b["imports_bytes"],
                unit="bytes",
                goal=goal,
                settings=settings,
                samples={},
            ),
        ]
    return rows


def checks_of(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether all compute the same: sizes of the adapters, losses of the first and last step."""
    found, checks = measured["contestants"], []

    def check(a: str, b: str, what: str, tolerance: float) -> None:
        if a in found and b in found:
            x, y = found[a][what], found[b][what]
            error = abs(x - y) / max(abs(y), 1e-30)
            checks.append(
                {"ours": a, "peer": b, "what": what, "error": error, "ok": error <= tolerance}
            )

    for ours, peer, _ in PAIRS:
        check(ours, peer, "trainable", 0.0)
        tolerance = NF4_TOLERANCE if ENTRIES[ours].quantized else FP32_TOLERANCE
        check(ours, peer, "first_loss", tolerance)
        check(ours, peer, "last_loss", TRAINED_TOLERANCE)
    for ours, peer, _ in FLOORS:
        check(ours, peer, "first_loss", FP32_TOLERANCE)
    return checks


def column(contestant: dict[str, Any], name: str) -> list[float]:
    return [sample[name] for sample in contestant["samples"]]
