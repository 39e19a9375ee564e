"""Successive halving without waiting (Li et al. 2020, arXiv 1810.05934, "ASHA").

A rung is a share of the run. Whoever reaches it goes on if it is among the best 1/eta of all that
have reached it so far; those that arrive in the same round are judged together. Nobody waits, so
that the rows stay full; the first to arrive are judged less strictly than those after them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def rung_steps(total: int, eta: int, halvings: int) -> list[int]:
    """The steps after which a run of `total` steps is judged, the end left out: at 1/eta of the
    run, 1/eta² and so on, `halvings` in all, the earliest first."""
    return [math.ceil(total / eta**power) for power in range(halvings, 0, -1)]


def rung_share(rung: int, eta: int, halvings: int) -> float:
    """The share of the run at which a rung lies; the one after the last is the end."""
    return float(eta) ** (rung - halvings)


def going_on(losses: Mapping[int, float], eta: int) -> set[int]:
    """Of all that have reached a rung, by number, the best 1/eta (rounded up)."""
    ranked = sorted(losses, key=lambda number: (losses[number], number))
    return set(ranked[: math.ceil(len(ranked) / eta)])
