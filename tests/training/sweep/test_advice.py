"""What to change in the next sweep."""

from __future__ import annotations

from typing import Any

import pytest

from rango.training.sweep.advice import advice
from rango.training.sweep.candidate import Candidate
from rango.training.sweep.written import parse_space

RUNGS = [1 / 9, 1 / 3, 1.0]


def said(space: dict[str, Any], best: dict[str, Any], *alike: dict[str, Any]) -> list[str]:
    made = [
        Candidate(number, params, "finished", losses=[3.0, 2.0, 1.0])
        for number, params in enumerate([best, *alike])
    ]
    return advice(parse_space(space), made, made[0], made[1:], RUNGS)


@pytest.mark.parametrize(
    ("name", "written", "value", "expected"),
    [
        (
            "learning_rate",
            "1e-5..1e-2",
            9e-3,
            "The best learning_rate, 0.009, lies at the upper edge of what was tried (1e-05 to "
            "0.01): extend it to 0.1.",
        ),
        ("learning_rate", "1e-5..1e-2", 1.2e-5, "lower edge .* extend it to 1e-06"),
        ("learning_rate", "1e-5..1e-2", 1e-3, None),
        ("learning_rate", "1e-4,1e-3,1e-2", 1e-2, "upper edge .* extend it to 0.1"),
        ("r", "4,8,16", 16, "upper edge of what was tried .4, 8, 16.: extend it to 32"),
        ("r", "4,8,16", 4, "lower edge .* extend it to 2"),
        ("r", "4,8,16", 8, None),
        ("r", "4,8", 8, None),  # of two values one is always the best
        ("r", "1,2,4", 1, None),  # there is nothing below
        ("r", "4..64:log", 4, "extend it to 1"),
        ("lora_dropout", "0..0.6", 0.6, None),  # nor 1.2 above
        ("r", "8,4,16", 16, None),  # not in order
        ("weight_decay", "0..0.1", 0.0, None),
        ("weight_decay", "0..0.1", 0.1, "upper edge .* extend it to 0.2"),
        ("lora_alpha", "8..32", 31.0, "extend it to 56"),
        ("lora_alpha", "8..32", 8.5, None),
        ("r", "4..16", 16, "extend it to 28"),
        ("schedule", "constant,linear,cosine", "cosine", None),
    ],
)
def test_edges(name: str, written: str, value: Any, expected: str | None) -> None:
    import re

    found = said({name: written}, {name: value})
    if expected is None:
        assert found == []
    else:
        (line,) = found
        assert line == expected or re.search(expected, line)


def test_no_advice_where_an_inner_one_could_as_well_be_the_best() -> None:
    space = {"learning_rate": "1e-5..1e-2"}
    assert said(space, {"learning_rate": 9e-3}, {"learning_rate": 8e-3})
    assert not said(space, {"learning_rate": 9e-3}, {"learning_rate": 1e-3})


def test_learning_by_heart() -> None:
    best = Candidate(0, {"r": 4}, "finished", losses=[3.0, 1.5, 2.0])
    (line,) = advice(parse_space({"r": "2,4,8"}), [best], best, [], RUNGS)
    assert "lower after 33% of the run (1.5000) than at its end (2.0000)" in line
    assert "fewer epochs" in line


def test_many_that_fail() -> None:
    best = Candidate(0, {"r": 4}, "finished", losses=[3.0, 2.0, 1.0])
    failed = Candidate(1, {"r": 2}, "failed")
    (line,) = advice(parse_space({"r": "2,4,8"}), [best, failed], best, [], RUNGS)
    assert line == "1 of 2 candidates failed."
    assert not advice(parse_space({"r": "2,4,8"}), [best, best, failed], best, [], RUNGS)
