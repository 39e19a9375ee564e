"""What a sweep tries: a range or a list of values for some of a job's options.

Written `learning_rate=1e-5..1e-2` (a range; `:linear` and `:log` say how to draw from it, a number
such as `:9` takes that many evenly spaced values instead) or `r=4,8,16`; in YAML the same words, a
list, or `{low: 1e-5, high: 1e-2, log: true, points: 9}`. Several modules that are one choice of
target_modules are joined by +, or a list of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from rango.adapters.config import LoraConfig
from rango.adapters.targets import check_adapter
from rango.errors import ConfigError, nearest
from rango.training.config import TrainingConfig
from rango.training.schedule import check_training

SHORT = {
    "lr": "learning_rate",
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
}
"""Other names that a space may use."""

_LOGARITHMIC = ("learning_rate", "weight_decay", "adam_eps")
_NOT_A_JOBS = {
    "method",
    "epochs",
    "max_steps",
    "micro_tokens",
    "gradient_checkpointing",
    "eval_every",
    "patience",
    "max_forgetting",
    "checkpoint_every",
    "keep_checkpoints",
    "seed",
}
"""Options of training that a space cannot have: candidates learn from the same samples, as long,
and are judged alike."""

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
            found = round(_between(low, high, share, self.log))
            return int(min(self.high, max(self.low, found)))
        return min(self.high, max(self.low, _between(self.low, self.high, share, self.log)))

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
        names = [name for name in self.dimensions if name in _hints(LoraConfig)]
        each = [_largest(name, self.dimensions[name]) for name in names]
        for values in itertools.product(*each):
            yield dataclasses.replace(adapter, **dict(zip(names, values, strict=True)))


def applied(
    params: Params, adapter: LoraConfig, training: TrainingConfig
) -> tuple[LoraConfig, TrainingConfig]:
    """Both with a candidate's values in them."""
    own = {name: value for name, value in params.items() if name in _hints(LoraConfig)}
    rest = {name: value for name, value in params.items() if name not in own}
    return dataclasses.replace(adapter, **own), dataclasses.replace(training, **rest)


def words(params: Params) -> str:
    """A candidate's values in a line."""
    return ", ".join(f"{name} {word(value)}" for name, value in params.items())


def word(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, list):
        return "+".join(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def parse_try(words: Sequence[str]) -> dict[str, str]:
    """What `--try NAME=VALUES` says. Raises ConfigError."""
    found: dict[str, str] = {}
    for given in words:
        name, equals, values = (part.strip() for part in given.partition("="))
        if not (name and equals and values):
            raise ConfigError(
                f"--try: expected NAME=VALUES such as learning_rate=1e-5..1e-2, found {given!r}"
            )
        if name in found:
            raise ConfigError(f"--try: {name} is given twice; put all its values into one")
        found[name] = values
    return found


def parse_space(written: Mapping[str, Any]) -> Space:
    """The space that is written down.

    Raises ConfigError: no or an unknown option, values that are not of its type or range.
    """
    known = _searchable()
    found: dict[str, Dimension] = {}
    for given, values in written.items():
        name = str(given).rpartition(".")[2]
        name = SHORT.get(name, name)
        if name not in known:
            reason = "" if name not in _NOT_A_JOBS else ", which is the same for all candidates"
            raise ConfigError(
                f"space: unknown option {given!r}{reason}{nearest(name, [*known, *SHORT])}; "
                f"known: {', '.join(known)}"
            )
        if name in found:
            raise ConfigError(f"space: {name} is given twice; put all its values into one")
        found[name] = _dimension(name, known[name], values)
    if not found:
        raise ConfigError(
            "space: nothing to try; give at least one option, such as --try "
            "learning_rate=1e-5..1e-2"
        )
    return Space(found)


def _searchable() -> dict[str, Any]:
    """Options that a space may have, with their types."""
    own = {
        name: hint
        for name, hint in _hints(LoraConfig).items()
        if not str(hint).startswith(("dict", "list"))
    }
    training = {
        name: hint for name, hint in _hints(TrainingConfig).items() if name not in _NOT_A_JOBS
    }
    return training | own


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _dimension(name: str, hint: Any, given: Any) -> Dimension:
    whole, number = hint is int, hint in (int, float, float | None)
    if isinstance(given, str) and ".." in given and number:
        ends, *how = given.split(":")
        low, _, high = ends.partition("..")
        log: Any = None
        points: Any = None
        for part in how:
            if part in ("log", "linear"):
                log = part == "log"
            else:
                points = part
        given = {"low": low, "high": high, "log": log, "points": points}
    elif isinstance(given, str):
        given = given.split(",")
    if isinstance(given, Mapping):
        if not number:
            raise ConfigError(f"space: {name} is no number, so it has no range; list its values")
        return _range(name, hint, given, whole)
    listed = list(given) if isinstance(given, list | tuple) else [given]
    values = [_value(name, hint, value) for value in listed]
    if not values or any(value in values[:place] for place, value in enumerate(values)):
        raise ConfigError(f"space: {name}: expected values that differ, found {given!r}")
    return Choice(tuple(values))


def _range(name: str, hint: Any, given: Mapping[str, Any], whole: bool) -> Dimension:
    for key in given:
        if key not in ("low", "high", "log", "points"):
            raise ConfigError(
                f"space: {name}: unknown key {key!r}; a range has low, high, log and points"
            )
    low, high = (_value(name, hint, given.get(end, "")) for end in ("low", "high"))
    log = given.get("log")
    if log is None:
        log = name in _LOGARITHMIC and low > 0
    if not isinstance(log, bool):
        raise ConfigError(f"space: {name}: log: expected true or false, found {log!r}")
    if not low < high:
        raise ConfigError(f"space: {name}: expected LOW..HIGH, low below high, found {low}..{high}")
    if log and low <= 0:
        raise ConfigError(f"space: {name}: a logarithmic range begins above 0, found {low}")
    made = Range(low, high, log, whole)
    if given.get("points") is None:
        return made
    try:
        points = int(given["points"])
    except (TypeError, ValueError):
        points = 0
    if points < 2:
        raise ConfigError(
            f"space: {name}: expected log, linear or a number of values from 2 on after a range, "
            f"found {given['points']!r}"
        )
    values = [_between(low, high, place / (points - 1), log) for place in range(points)]
    values = [round(value) if whole else value for value in values]
    return Choice(tuple(dict.fromkeys([low, *values[1:-1], high])))


def _value(name: str, hint: Any, given: Any) -> Any:
    """A value of the option, of its type and in its range."""
    value = _typed(name, hint, given)
    if name in _hints(LoraConfig):
        check_adapter(dataclasses.replace(LoraConfig(), **{name: value}))
    else:
        check_training(dataclasses.replace(TrainingConfig(), **{name: value}))
    return value


def _typed(name: str, hint: Any, given: Any) -> Any:
    text = given.strip() if isinstance(given, str) else given
    if get_origin(hint) is Literal:
        if text in get_args(hint):
            return text
        raise ConfigError(
            f"space: {name}: expected one of {', '.join(get_args(hint))}, found {given!r}"
            f"{nearest(str(text), get_args(hint))}"
        )
    if hint is bool:
        known = {"true": True, "false": False}
        value = text if isinstance(text, bool) else known.get(str(text).lower())
        if value is None:
            raise ConfigError(f"space: {name}: expected true or false, found {given!r}")
        return value
    if hint in (int, float, float | None):
        kind = int if hint is int else float
        try:
            if isinstance(text, bool) or (kind is int and isinstance(text, float)):
                raise ValueError
            number = kind(text)
            if not math.isfinite(number):
                raise ValueError
        except (TypeError, ValueError):
            expected = "a whole number" if kind is int else "a number"
            raise ConfigError(f"space: {name}: expected {expected}, found {given!r}") from None
        return number
    if name == "target_modules" and isinstance(text, list):
        return [str(module) for module in text]
    if not isinstance(text, str) or not text:
        raise ConfigError(f"space: {name}: expected a name, found {given!r}")
    joined = name == "target_modules" and re.fullmatch(r"[\w+-]+", text)
    return text.split("+") if joined and "+" in text else text


def _largest(name: str, dimension: Dimension) -> Sequence[Any]:
    """The values that decide how much room an adapter takes."""
    if isinstance(dimension, Range):
        return [dimension.high]
    if name == "r":
        return [max(dimension.values)]
    return dimension.values[:1] if name in _NO_ROOM else dimension.values


def _between(low: float, high: float, share: float, log: bool) -> float:
    if log:
        return float(low * (high / low) ** share)
    return low + (high - low) * share
