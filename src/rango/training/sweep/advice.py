"""What a sweep's result says about the next one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rango.report.format import decimal
from rango.training.sweep.candidate import FAILED, Candidate
from rango.training.sweep.space import Choice, Dimension, Range, Space, word

_EDGE = 0.1
"""Of a range, on its scale: this near to its end is at its edge."""
_FACTOR = 10.0
"""By which to extend a logarithmic range."""
_LEAST = {"r": 1, "batch_size": 1, "lora_dropout": 0, "weight_decay": 0, "warmup_share": 0}
"""Where an option itself ends."""


def advice(
    space: Space,
    candidates: Sequence[Candidate],
    best: Candidate,
    alike: Sequence[Candidate],
    rungs: Sequence[float],
) -> list[str]:
    """Sentences, none where there is nothing to say.

    alike: those that could as well be the best. rungs: the share of the run at which each loss of a
    candidate was measured.
    """
    return [
        *_edges(space, [best, *alike]),
        *_overfit(best, rungs),
        *_diverged(space, candidates),
    ]


def _edges(space: Space, good: Sequence[Candidate]) -> Iterator[str]:
    """Where all good candidates lie at the same end of a dimension: the optimum may be beyond."""
    for name, dimension in space.dimensions.items():
        value = good[0].params[name]
        end = _end(dimension, value)
        if end is None or any(_end(dimension, one.params[name]) != end for one in good):
            continue
        further = _further(dimension, end)
        if end == "lower" and name in _LEAST and value <= _LEAST[name]:
            continue
        yield (
            f"The best {name}, {word(value)}, lies at the {end} edge of what was tried "
            f"({_span(dimension)}): extend it{'' if further is None else f' to {word(further)}'}."
        )


def _end(dimension: Dimension, value: Any) -> str | None:
    """The edge that a value lies at."""
    if isinstance(dimension, Range):
        share = dimension.share(value)
    elif dimension.ordered and len(dimension.values) > 2:
        share = dimension.values.index(value) / (len(dimension.values) - 1)
    else:
        return None
    inner = _EDGE if isinstance(dimension, Range) else 0.0
    if share <= inner:
        return "lower"
    return "upper" if share >= 1 - inner else None


def _further(dimension: Dimension, end: str) -> float | None:
    """How far to extend; None where that has no natural answer."""
    up = end == "upper"
    if isinstance(dimension, Range):
        if dimension.log:
            found = dimension.high * _FACTOR if up else dimension.low / _FACTOR
        else:
            width = dimension.high - dimension.low
            found = dimension.high + width if up else dimension.low - width
        found = round(found) if dimension.whole else found
    else:
        last, before = dimension.values[-1 if up else 0], dimension.values[-2 if up else 1]
        if before <= 0 or last <= 0:
            return None
        found = last * last / before  # as far again, as a factor
        if isinstance(last, int):
            found = math.ceil(found) if up else math.floor(found)
    return found if found > 0 else None


def _span(dimension: Dimension) -> str:
    if isinstance(dimension, Choice):
        return ", ".join(word(value) for value in dimension.values)
    return f"{word(dimension.low)} to {word(dimension.high)}"


def _overfit(best: Candidate, rungs: Sequence[float]) -> Iterator[str]:
    lowest = min(range(len(best.losses)), key=lambda rung: best.losses[rung])
    if lowest < len(best.losses) - 1:
        yield (
            f"The best candidate's held-out loss was lower after {rungs[lowest]:.0%} of the run "
            f"({decimal(best.losses[lowest])}) than at its end ({decimal(best.losses[-1])}): "
            "train for fewer epochs."
        )


def _diverged(space: Space, candidates: Sequence[Candidate]) -> Iterator[str]:
    failed = [candidate for candidate in candidates if candidate.status == FAILED]
    if 3 * len(failed) > len(candidates):
        remedy = ": lower the upper end of learning_rate" * ("learning_rate" in space.dimensions)
        yield f"{len(failed)} of {len(candidates)} candidates failed{remedy}."
