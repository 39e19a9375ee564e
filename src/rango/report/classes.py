"""A classifier's evaluation as the rows of tables: measures, labels, and what is taken for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rango.report.format import MISSING, decimal, integer, percent, printable

CLASS_MEASURES = (
    ("loss, nats a text", "loss", decimal),
    ("accuracy", "accuracy", percent),
    ("macro F1", "macro_f1", percent),
)
"""As rango.report.html.MEASURES."""

_MOST = 20
"""Labels shown; a page is no place for a thousand."""


def is_classification(evaluation: Mapping[str, Any] | None) -> bool:
    """Whether an evaluation is a classifier's."""
    return bool(evaluation) and "confusion" in (evaluation or {})


def label_rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    """label, samples, precision, recall, F1; the rarest labels beyond twenty are only counted."""
    scores = sorted(evaluation["labels"], key=lambda score: -score["samples"])
    rows = [
        [
            printable(score["label"]),
            integer(score["samples"]),
            percent(score["precision"]),
            percent(score["recall"]),
            percent(score["f1"]),
        ]
        for score in scores[:_MOST]
    ]
    left_out = scores[_MOST:]
    if left_out:
        samples = sum(score["samples"] for score in left_out)
        named = f"… {len(left_out)} more label{'' if len(left_out) == 1 else 's'}"
        rows.append([named, integer(samples), MISSING, MISSING, MISSING])
    return rows


LABEL_COLUMNS = ("label", "samples", "precision", "recall", "F1")


def confusion_rows(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The columns (what is answered) and rows (what is true) of the counts; both empty with more
    than twenty labels."""
    names = [printable(score["label"]) for score in evaluation["labels"]]
    if len(names) > _MOST:
        return [], []
    counts: Sequence[Sequence[int]] = evaluation["confusion"]
    rows = [[name, *map(integer, row)] for name, row in zip(names, counts, strict=True)]
    return ["true label \\ answer", *names], rows
