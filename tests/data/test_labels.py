"""Labels found while data are read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rango.data.labels import LabelCensus
from rango.data.samples import Example, Message, Origin
from rango.errors import ConfigError, DataError


def examples(labels: Sequence[str | None]) -> list[Example]:
    return [
        Example("labelled", (Message("user", "x"),), Origin("data.csv", number), label)
        for number, label in enumerate(labels, start=2)
    ]


def counted(labels: Sequence[str | None]) -> LabelCensus:
    census = LabelCensus()
    assert len(list(census.watch(examples(labels)))) == len(labels)
    return census


def test_labels_are_sorted() -> None:
    assert counted(["b", "a", "ñ", "b"]).labels() == ("a", "b", "ñ")
    assert counted([None, None]).labels() == ()


def test_whole_numbers_are_sorted_by_their_value() -> None:
    ratings = [str(number) for number in range(1, 11)]
    assert counted(ratings[::-1]).labels() == tuple(ratings)
    assert counted(["0", "-1", "+1", "-10"]).labels() == ("-10", "-1", "0", "+1")
    assert counted(["10", "9", "none"]).labels() == ("10", "9", "none")


def test_one_label_is_none() -> None:
    with pytest.raises(DataError, match=r"data.csv:2: all 3 samples have the label 'a'"):
        counted(["a"] * 3).labels()


def test_as_many_labels_as_samples_are_no_classes() -> None:
    with pytest.raises(DataError, match="40 samples have 40 different labels"):
        counted([f"name {number}" for number in range(40)]).labels()


def test_quantities_are_no_classes() -> None:
    with pytest.raises(DataError, match="numbers with decimals"):
        counted([f"{number % 20}.5" for number in range(100)]).labels()
    assert len(counted([str(number % 20) for number in range(100)]).labels()) == 20  # stars, say


def test_a_classifiers_own_labels_keep_their_order() -> None:
    assert counted(["a", "b", "a"]).labels(("b", "c", "a")) == ("b", "c", "a")
    with pytest.raises(ConfigError, match="with the labels b, c; the data have a, b"):
        counted(["a", "b"]).labels(("b", "c"))
