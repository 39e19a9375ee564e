"""A space as it is written down.

Written `learning_rate=1e-5..1e-2` (a range; `:linear` and `:log` say how to draw from it, a number
such as `:9` takes that many evenly spaced values instead) or `r=4,8,16`; in YAML the same words, a
list, or `{low: 1e-5, high: 1e-2, log: true, points: 9}`. Several modules that are one choice of
target_modules are joined by +, or a list of their own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from rango.adapters.config import LoraConfig
from rango.adapters.targets import check_adapter
from rango.errors import ConfigError, nearest
from rango.training.config import TrainingConfig
from rango.training.schedule import check_training
from rango.training.sweep.space import Choice, Dimension, Range, Space, between, hints_of

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


def option_name(given: Any) -> str:
    """The config's own name of an option: adapter.r and rank are r."""
    name = str(given).rpartition(".")[2]
    return SHORT.get(name, name)


def parse_try(words: Sequence[str]) -> dict[str, str]:
    """What `--try NAME=VALUES` says, by the options' own names. Raises ConfigError."""
    found: dict[str, str] = {}
    for given in words:
        name, equals, values = (part.strip() for part in given.partition("="))
        if not (name and equals and values):
            raise ConfigError(
                f"--try: expected NAME=VALUES such as learning_rate=1e-5..1e-2, found {given!r}"
            )
        name = option_name(name)
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
        name = option_name(given)
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
        for name, hint in hints_of(LoraConfig).items()
        if not str(hint).startswith(("dict", "list"))
    }
    training = {
        name: hint for name, hint in hints_of(TrainingConfig).items() if name not in _NOT_A_JOBS
    }
    return training | own


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
    values = [between(low, high, place / (points - 1), log) for place in range(points)]
    values = [round(value) if whole else value for value in values]
    return Choice(tuple(dict.fromkeys([low, *values[1:-1], high])))


def _value(name: str, hint: Any, given: Any) -> Any:
    """A value of the option, of its type and in its range."""
    value = _typed(name, hint, given)
    check_value(name, value)
    return value


def check_value(name: str, value: Any) -> None:
    """Raise ConfigError unless an option may have the value, which is of its type."""
    if name in hints_of(LoraConfig):
        check_adapter(dataclasses.replace(LoraConfig(), **{name: value}))
    else:
        check_training(dataclasses.replace(TrainingConfig(), **{name: value}))


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
