"""What a sweep's result says about the next one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rango.errors import ConfigError
from rango.report.format import decimal, option
from rango.training.sweep.candidate import FAILED, Candidate
from rango.training.sweep.space import Choice, Dimension, Range, Space
from rango.training.sweep.written import check_value

_EDGE = 0.1
"""Of a range, on its scale: this near to its end is at its edge."""
_FACTOR = 10.0
"""By which to extend a logarithmic range."""


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
        further = _further(name, dimension, end)
        if further is not None:
            yield (
                f"The best {name}, {option(value)}, lies at the {end} edge of what was tried "
                f"({_span(dimension)}): extend it to {option(further)}."
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


def _further(name: str, dimension: Dimension, end: str) -> float | None:
    """How far to extend; None where the option itself ends there."""
    up = end == "upper"
    if isinstance(dimension, Range):
        edge, whole = dimension.high if up else dimension.low, dimension.whole
        if dimension.log:
            found = edge * _FACTOR if up else edge / _FACTOR
        else:
            found = edge + (dimension.high - dimension.low) * (1 if up else -1)
    else:
        edge, inner = dimension.values[-1 if up else 0], dimension.values[-2 if up else 1]
        whole = isinstance(edge, int)
        found = edge * edge / inner if inner > 0 else edge  # as far again, as a factor
    found = max(1, round(found)) if whole else found
    try:
        check_value(name, found)
    except ConfigError:
        return None
    return found if found > 0 and found != edge else None


def _span(dimension: Dimension) -> str:
    if isinstance(dimension, Choice):
        return ", ".join(option(value) for value in dimension.values)
    return f"{option(dimension.low)} to {option(dimension.high)}"


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
