"""What a sweep tries: for some of a job's options a range or a list of values."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import numpy as np

from rango.adapters.config import LoraConfig
from rango.report.format import option
from rango.training.config import TrainingConfig

_NO_ROOM = ("lora_alpha", "lora_dropout", "use_rslora")
"""Options of an adapter that change nothing about the room it takes."""

Params = dict[str, Any]
"""A candidate's values, by the names of the config's fields."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool
    """Every factor, rather than every difference, is as likely."""
    whole: bool
    """Whole numbers only."""

    @property
    def size(self) -> int | None:
        """Number of its points; None where there is no end of them."""
        return int(self.high - self.low) + 1 if self.whole else None

    @property
    def values(self) -> Sequence[Any]:
        """Its points, of whole numbers only."""
        return range(int(self.low), int(self.high) + 1)

    def at(self, share: float) -> Any:
        """The value at a share of the way, from 0 to 1."""
        if self.whole:  # each number has a stretch of its own
            low, high = self.low - 0.5, self.high + 0.5
            found = round(between(low, high, share, self.log))
            return int(min(self.high, max(self.low, found)))
        return min(self.high, max(self.low, between(self.low, self.high, share, self.log)))

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        measure = math.log if self.log else float
        return (measure(value) - measure(self.low)) / (measure(self.high) - measure(self.low))

    def plain(self) -> Any:
        """As it is written in YAML."""
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class Choice:
    """One of some values, in the order given."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The value at a share of the way, from 0 to 1."""
        return self.values[min(len(self.values) - 1, int(share * len(self.values)))]

    @property
    def size(self) -> int:
        """Number of its points."""
        return len(self.values)

    @property
    def ordered(self) -> bool:
        """Whether they are numbers that rise."""
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)
        return numbers and list(self.values) == sorted(self.values)

    def plain(self) -> Any:
        """As it is written in YAML."""
        return list(self.values)


Dimension = Range | Choice


@dataclass(frozen=True)
class Space:
    """What is tried, by the names of the config's fields."""

    dimensions: dict[str, Dimension]

    @property
    def size(self) -> int | None:
        """Number of its points; None where a range has no end of them."""
        sizes = [d.size for d in self.dimensions.values() if d.size is not None]
        return math.prod(sizes) if len(sizes) == len(self.dimensions) else None

    def grid(self) -> Iterator[Params]:
        """Every point, where they have an end, the last dimension running fastest."""
        for values in itertools.product(*(d.values for d in self.dimensions.values())):
            yield dict(zip(self.dimensions, values, strict=True))

    def spread(self, count: int, seed: int) -> list[Params]:
        """`count` points at random, spread out: a Latin hypercube (McKay et al. 1979), in which
        each of `count` equal parts of a dimension has one point."""
        generator = np.random.default_rng(seed)
        shares = {
            name: (generator.permutation(count) + generator.random(count)) / count
            for name in self.dimensions
        }
        return [
            {name: d.at(float(shares[name][i])) for name, d in self.dimensions.items()}
            for i in range(count)
        ]

    def plain(self) -> dict[str, Any]:
        """As it is written in YAML; `parse_space` takes it back."""
        return {name: dimension.plain() for name, dimension in self.dimensions.items()}

    def shapes(self, adapter: LoraConfig) -> Iterator[LoraConfig]:
        """Adapters over `adapter` of which every candidate's is one, or one of a smaller rank."""
        names = [name for name in self.dimensions if name in hints_of(LoraConfig)]
        each = [_largest(name, self.dimensions[name]) for name in names]
        for values in itertools.product(*each):
            yield dataclasses.replace(adapter, **dict(zip(names, values, strict=True)))


def applied(
    params: Params, adapter: LoraConfig, training: TrainingConfig
) -> tuple[LoraConfig, TrainingConfig]:
    """Both with a candidate's values in them."""
    own = {name: value for name, value in params.items() if name in hints_of(LoraConfig)}
    rest = {name: value for name, value in params.items() if name not in own}
    return dataclasses.replace(adapter, **own), dataclasses.replace(training, **rest)


def words(params: Params) -> str:
    """A candidate's values in a line."""
    return ", ".join(f"{name} {option(value)}" for name, value in params.items())


def _largest(name: str, dimension: Dimension) -> Sequence[Any]:
    """The values that decide how much room an adapter takes."""
    if isinstance(dimension, Range):
        return [dimension.high]
    if name == "r":
        return [max(dimension.values)]
    return dimension.values[:1] if name in _NO_ROOM else dimension.values


def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(kind)


def between(low: float, high: float, share: float, log: bool) -> float:
    """The number at a share of the way from low to high."""
    if log:
        return float(low * (high / low) ** share)
    return low + (high - low) * share
