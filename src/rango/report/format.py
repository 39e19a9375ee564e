"""Numbers and text for people: one way of writing each quantity, in every table and plot."""

from __future__ import annotations

import math
import re

MISSING = "–"
"""Stands where a quantity was not measured."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without control characters (line feeds and tabs stay), so that nothing a model or a
    file says can steer the terminal or reorder a page."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def integer(value: float | None) -> str:
    """18874368 → ``18,874,368``."""
    return MISSING if value is None else f"{round(value):,}"


def decimal(value: float | None, digits: int = 4) -> str:
    """A loss, a norm: fixed decimals, or three significant digits where those would hide it."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value != 0 and abs(value) < 10.0 ** (1 - digits):
        return f"{value:.3g}"
    if abs(value) >= 1e5:
        return f"{value:.3g}"
    return f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one as per cent: .0123 → ``1.2%``."""
    if share is None:
        return MISSING
    if 0 < abs(share) < 0.5 * 10.0 ** -(digits + 2):
        return f"{share * 100:.1g}%"
    return f"{share * 100:.{digits}f}%"


def size(count: float | None) -> str:
    """Bytes in decimal units: 37748736 → ``37.7 MB``."""
    if count is None:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds as ``8.4 s``, ``3m 20s`` or ``2h 05m``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h {minutes % 60:02d}m"


def option(value: object) -> str:
    """A value of an option, in few characters: modules joined by +, a number to three digits."""
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def sentence(value: object) -> str:
    """A value of a configuration or of a facts file as one line of text."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(sentence(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {sentence(item)}" for key, item in value.items()) or "none"
    return printable(str(value))
