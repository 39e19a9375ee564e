"""Axes: which values get a tick, how they are written, and where a value lies on the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Place = Callable[[float], float]
"""From a value to its coordinate on the page."""


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high` with its ticks (value, label)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def onto(self, start: float, end: float) -> Place:
        """The map of this axis to page coordinates, `low` to `start` and `high` to `end`."""
        measure = math.log10 if self.logarithmic else float
        first, last = measure(self.low), measure(self.high)

        def place(value: float) -> float:
            return start + (measure(value) - first) / (last - first) * (end - start)

        return place


def linear_scale(values: Sequence[float], count: int, *, tight: bool = False) -> Scale:
    """An axis over `values` with about `count` ticks at 1, 2 or 5 times a power of ten.

    It ends on ticks, or with `tight` at the extreme values.
    """
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.5 or 1.0
        low, high = low - margin, high + margin
    step = _nice_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if not tight:
        low, high = first * step, last * step
    reach = (high - low) * 1e-9
    ticks = [n * step for n in range(first, last + 1) if low - reach <= n * step <= high + reach]
    return Scale(low, high, tuple((tick, _label(tick, step)) for tick in ticks))


def log_scale(values: Sequence[float], count: int) -> Scale:
    """A logarithmic axis over positive `values`, ticks at powers of ten (and 2 and 5 times them
    where it spans fewer than two)."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    if last == first:
        last += 1
    apart = max(1, math.ceil((last - first) / count))
    digits = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = [
        digit * 10.0**power
        for power in range(first, last + 1, apart)
        for digit in digits
        if digit * 10.0**power <= 10.0**last * (1 + 1e-9)
    ]
    return Scale(10.0**first, 10.0**last, tuple((tick, f"{tick:g}") for tick in ticks), True)


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 5.0):
        if rough <= factor * power * (1 + 1e-9):
            return factor * power
    return 10.0 * power


def _label(tick: float, step: float) -> str:
    if tick == 0:
        return "0"
    if abs(tick) >= 1e5 or step < 1e-4:
        mantissa, _, exponent = f"{tick:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
