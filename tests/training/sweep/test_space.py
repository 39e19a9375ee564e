"""Spaces as they are written down."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rango.adapters.config import LoraConfig
from rango.errors import ConfigError
from rango.training.config import TrainingConfig
from rango.training.sweep.space import Choice, Range, applied, words
from rango.training.sweep.written import parse_space, parse_try


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        ("learning_rate", "1e-5..1e-2", Range(1e-5, 1e-2, True, False)),
        ("learning_rate", "1e-5..1e-2:linear", Range(1e-5, 1e-2, False, False)),
        ("learning_rate", {"low": "1e-5", "high": 1e-2}, Range(1e-5, 1e-2, True, False)),
        ("weight_decay", "0..0.1", Range(0.0, 0.1, False, False)),
        ("weight_decay", "1e-3..0.1", Range(1e-3, 0.1, True, False)),
        ("lora_alpha", "8..64", Range(8.0, 64.0, False, False)),
        ("r", "4..64:log", Range(4, 64, True, True)),
        ("r", "4,8,16", Choice((4, 8, 16))),
        ("r", [4, 8], Choice((4, 8))),
        ("r", "1..5:3", Choice((1, 3, 5))),
        ("r", 8, Choice((8,))),
        ("lora_alpha", "8,16", Choice((8.0, 16.0))),
        ("schedule", "linear, cosine", Choice(("linear", "cosine"))),
        ("use_rslora", "true,false", Choice((True, False))),
        ("target_modules", "attention,q_proj+v_proj", Choice(("attention", ["q_proj", "v_proj"]))),
        ("target_modules", ["mlp", ["q_proj", "v_proj"]], Choice(("mlp", ["q_proj", "v_proj"]))),
        ("target_modules", ["(a|b)+c"], Choice(("(a|b)+c",))),
    ],
)
def test_what_is_written(name: str, written: Any, expected: Range | Choice) -> None:
    space = parse_space({name: written})
    assert space.dimensions == {name: expected}
    plain = yaml.safe_load(yaml.safe_dump(space.plain()))
    assert parse_space(plain) == space


def test_evenly_spaced_values() -> None:
    found = parse_space({"learning_rate": "1e-4..1e-2:5"}).dimensions["learning_rate"]
    assert isinstance(found, Choice)
    assert found.values[0] == 1e-4
    assert found.values[-1] == 1e-2
    factors = [b / a for a, b in zip(found.values, found.values[1:], strict=False)]
    assert factors == pytest.approx([10**0.5] * 4)


def test_other_names() -> None:
    names = ["lr", "rank", "alpha", "dropout", "targets", "training.batch_size", "adapter.layers"]
    values = ["1e-4,1e-3", "2,4", "8,16", "0,0.1", "mlp,attention", "4,8", "0-1"]
    space = parse_space(dict(zip(names, values, strict=True)))
    assert list(space.dimensions) == [
        "learning_rate",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "batch_size",
        "layers",
    ]


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        ("learning_rat", "1,2", "unknown option 'learning_rat'; nearest: learning_rate"),
        ("epochs", "1,2", "unknown option 'epochs', which is the same for all candidates"),
        ("rank_pattern", "1,2", "unknown option 'rank_pattern'"),
        ("learning_rate", "1e-2..1e-5", "low below high"),
        ("weight_decay", "0..1e-2:log", "begins above 0"),
        ("learning_rate", "0..1e-2", r"training\.learning_rate: expected a finite number above 0"),
        ("learning_rate", "1e-5..", "expected a number, found ''"),
        ("learning_rate", "nan,1", "expected a number, found 'nan'"),
        ("learning_rate", "1e-5..1e-2:lin", "expected log, linear or a number of values"),
        ("learning_rate", "1e-5..1e-2:1", "expected log, linear or a number of values"),
        ("learning_rate", {"lo": 1}, "unknown key 'lo'"),
        ("learning_rate", {"low": 1, "high": 2, "log": 3}, "log: expected true or false"),
        ("r", "4,many", "expected a whole number, found 'many'"),
        ("r", [4.5], "expected a whole number, found 4.5"),
        ("r", [True], "expected a whole number"),
        ("r", "0,4", "rank 0"),
        ("r", "4,4", "expected values that differ"),
        ("r", [], "expected values that differ"),
        ("lora_dropout", "0,1", "lora_dropout 1.0"),
        ("schedule", "linear,cosin", "expected one of constant, linear, cosine, found 'cosin'"),
        ("schedule", {"low": 1, "high": 2}, "is no number"),
        ("use_rslora", "yes", "expected true or false"),
        ("target_modules", [3], "expected a name"),
        ("batch_size", "0..4", "training.batch_size"),
    ],
)
def test_what_makes_no_sense(name: str, written: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_space({name: written})


def test_nothing_and_twice() -> None:
    with pytest.raises(ConfigError, match="nothing to try"):
        parse_space({})
    with pytest.raises(ConfigError, match="r is given twice"):
        parse_space({"r": "1,2", "rank": "3,4"})


def test_flags() -> None:
    found = parse_try(["adapter.r=4,8", "lr = 1e-5..1e-2"])
    assert found == {"r": "4,8", "learning_rate": "1e-5..1e-2"}
    for wrong in ("r", "r=", "=4"):
        with pytest.raises(ConfigError, match="expected NAME=VALUES"):
            parse_try([wrong])
    with pytest.raises(ConfigError, match="r is given twice"):
        parse_try(["r=4", "rank=8"])


def test_a_grid_has_every_point_once() -> None:
    space = parse_space({"r": "2,4", "schedule": "linear,cosine", "batch_size": "3..5"})
    grid = [*space.grid()]
    assert len(grid) == space.size == 12
    assert len({tuple(point.values()) for point in grid}) == 12
    assert grid[0] == {"r": 2, "schedule": "linear", "batch_size": 3}
    assert grid[-1] == {"r": 4, "schedule": "cosine", "batch_size": 5}
    assert parse_space({"r": "2,4", "learning_rate": "1e-4..1e-3"}).size is None


@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    low=st.floats(1e-8, 1e-3),
    factor=st.floats(1.01, 1e6),
)
def test_points_are_spread(count: int, seed: int, low: float, factor: float) -> None:
    """Each of `count` equal parts of a range has one point, and each of a list its share."""
    space = parse_space({"learning_rate": {"low": low, "high": low * factor}, "r": "2,4,8"})
    points = space.spread(count, seed)
    assert points == space.spread(count, seed)
    parts = sorted(
        math.floor(count * math.log(point["learning_rate"] / low) / math.log(factor) + 1e-6)
        for point in points
    )
    assert all(abs(part - place) <= 1 for place, part in enumerate(parts))
    ranks = [point["r"] for point in points]
    assert all(abs(ranks.count(r) - count / 3) < 2 for r in (2, 4, 8))


@given(share=st.floats(0, 1), low=st.integers(1, 50), width=st.integers(1, 50), log=st.booleans())
def test_whole_numbers_stay_whole_and_inside(share: float, low: int, width: int, log: bool) -> None:
    found = Range(low, low + width, log, True).at(share)
    assert isinstance(found, int)
    assert low <= found <= low + width


def test_every_whole_number_is_reached() -> None:
    for log in (False, True):
        dimension = Range(1, 5, log, True)
        assert {dimension.at(place / 1000) for place in range(1001)} == {1, 2, 3, 4, 5}


def test_values_reach_the_configs() -> None:
    params = {"learning_rate": 1e-3, "r": 4, "target_modules": ["q_proj"], "schedule": "cosine"}
    adapter, training = applied(params, LoraConfig(lora_alpha=3), TrainingConfig(epochs=2))
    assert adapter == LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj"])
    assert training == TrainingConfig(epochs=2, learning_rate=1e-3, schedule="cosine")
    assert words(params) == "learning_rate 0.001, r 4, target_modules q_proj, schedule cosine"


def test_shapes_have_room_for_all() -> None:
    space = parse_space(
        {"r": "2..8", "targets": "mlp,attention", "alpha": "1..9", "lr": "1,2", "dropout": "0,0.5"}
    )
    shapes = [*space.shapes(LoraConfig(layers="0"))]
    assert {(shape.r, shape.target_modules, shape.layers) for shape in shapes} == {
        (8, "mlp", "0"),
        (8, "attention", "0"),
    }
    assert len(shapes) == 2
