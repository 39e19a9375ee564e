"""The comparison's rows."""

from __future__ import annotations

import pytest

from rango.evaluation.compare import Measured, compare
from rango.evaluation.evaluate import Evaluation
from rango.evaluation.forgetting import Forgetting
from rango.report.comparison import COLUMNS


def evaluation(loss: float) -> Evaluation:
    return Evaluation(loss, 2.0, 0.5, loss + 1, 0.4, 100, 80, 10)


def lora(loss: float, seconds: float) -> Measured:
    return Measured(
        "LoRA",
        evaluation=evaluation(loss),
        exact_match=0.25,
        forgetting=Forgetting(3.0, 3.1, 0.02, 50),
        trainable=200,
        total=10_000,
        peak_memory=2**20,
        seconds=seconds,
        adapter_bytes=800,
    )


def test_one_row_a_method_in_order_with_means_and_spread() -> None:
    base = Measured("base", evaluation=evaluation(4.0), total=10_000)
    rows = compare([base, lora(2.0, 10), lora(2.5, 12), lora(3.0, 14)])
    assert [(row.method, row.runs) for row in rows] == [("base", 1), ("LoRA", 3)]
    values = rows[1].as_dict()
    assert values["loss"] == pytest.approx(2.5)
    assert values["loss_spread"] == pytest.approx(0.5)
    assert values["seconds_spread"] == pytest.approx(2)
    assert values["content_loss"] == pytest.approx(3.5)
    assert values["share"] == pytest.approx(0.02)
    assert (values["forgetting"], values["general_loss"]) == (0.02, 3.1)
    assert values["trainable"] == 200
    assert isinstance(values["trainable"], int)
    assert "trainable_spread" not in values
    assert "exact_match_spread" not in values


def test_what_was_not_measured_is_none() -> None:
    (row,) = compare([Measured("base")])
    assert set(row.values.values()) == {None}
    assert row.spread == {}
    assert compare([]) == []


def test_the_table_finds_every_column() -> None:
    (row,) = compare([lora(2.0, 10)])
    assert {key for _, key, _ in COLUMNS} <= set(row.as_dict())
