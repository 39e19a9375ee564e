"""The curves of a run, from its events."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rango.report.svg import Series, line_plot, running_mean

Events = Sequence[Mapping[str, Any]]


def number(value: Any) -> float | None:
    """`value` as a number, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def points(events: Events, kind: str, key: str) -> list[tuple[float, float]]:
    """(step, value) of `key` in the events of one kind; a later event replaces an earlier one of
    the same step (a resumed run repeats the steps after its checkpoint). A null is a value that
    was not finite, and becomes NaN."""
    found: dict[float, float] = {}
    for event in events:
        step = number(event.get("step"))
        if event.get("event") == kind and step is not None and key in event:
            value = number(event[key])
            found[step] = math.nan if value is None else value
    return sorted(found.items())


def run_curves(events: Events) -> list[str]:
    """The SVG plots of a run, those with nothing to show left out."""
    return [plot for plot in _plots(events) if plot]


def _plots(events: Events) -> Iterable[str]:
    marks = [
        (step, f"resumed at step {step:g}")
        for event in events
        if event.get("event") == "start" and (step := number(event.get("step")))
    ]
    raw = points(events, "step", "loss")
    yield line_plot(
        "Loss",
        [
            *_smoothed("training", raw),
            Series("held out", points(events, "evaluation", "loss"), colour=1),
            Series("held out, content", points(events, "evaluation", "content_loss"), colour=2),
        ],
        y_label="nats a target",
        marks=marks,
    )
    yield line_plot(
        "Held-out accuracy",
        [
            Series("all tokens", points(events, "evaluation", "token_accuracy"), colour=1),
            Series("content", points(events, "evaluation", "content_accuracy"), colour=2),
            Series("texts", points(events, "evaluation", "accuracy"), colour=1),
            Series("macro F1", points(events, "evaluation", "macro_f1"), colour=2),
        ],
        y_label="share predicted",
    )
    yield line_plot(
        "Forgetting",
        [Series("KL", points(events, "evaluation", "kl"), colour=3)],
        y_label="KL from the base on general text, nats a token",
    )
    yield line_plot(
        "Gap",
        [Series("gap", points(events, "evaluation", "gap"), colour=4)],
        y_label="held-out less training loss",
    )
    yield line_plot(
        "Learning rate", [Series("learning rate", points(events, "step", "learning_rate"))]
    )
    norms = points(events, "step", "grad_norm")
    positive = [value for _, value in norms if value > 0 and math.isfinite(value)]
    yield line_plot(
        "Gradient norm",
        _smoothed("norm", norms),
        y_label="before clipping",
        log=bool(positive) and max(positive) > 50 * min(positive),
    )
    yield line_plot(
        "Speed",
        _smoothed("speed", points(events, "step", "tokens_per_second")),
        y_label="tokens a second",
    )


def _smoothed(name: str, raw: Sequence[tuple[float, float]]) -> list[Series]:
    """The raw values pale and their running mean over a fiftieth of the run; few ones as they
    are."""
    if len(raw) < 50:
        return [Series(name, raw, colour=0)]
    mean = running_mean(raw, max(5, len(raw) // 50))
    return [Series(name, raw, faint=True, colour=0), Series(name, mean, colour=0)]
