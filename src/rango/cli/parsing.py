"""Flags and YAML from the configuration dataclasses, with errors that name the nearest key."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from rango.data.reading.columns import parse_columns
from rango.errors import ConfigError, nearest

set_parsing_settings(docstring_parse_attribute_docstrings=True)

T = TypeVar("T")

_CONFIG = "--config"
_COLUMNS = "--data.columns"
_NOT_IN_FILES = ("help", "config", "print_config", "json", "resume")


class _HelpFormatter(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions and examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(f"{indent}{line}" for line in text.splitlines(keepends=True))


def new_parser(name: str, description: str, example: str, positional: str = "") -> ArgumentParser:
    """A parser for `rango NAME` whose help page ends with an example."""
    return ArgumentParser(
        prog=f"rango {name}",
        usage=f"rango {name} {positional}[options]",
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )


def with_columns(words: Sequence[str]) -> Iterator[str]:
    """The words, with a mapping of columns written as at `rango check` turned into JSON."""
    before = ""
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == _COLUMNS and equals and not value.startswith("{"):
            word = f"{flag}={json.dumps(parse_columns(value))}"
        elif before == _COLUMNS and not word.startswith("{"):
            word = json.dumps(parse_columns(word))
        yield word
        before = word


def add_json_flag(parser: ArgumentParser, what: str) -> None:
    """`--json`: one JSON document on standard output, everything else on standard error."""
    parser.add_argument(
        "--json", action="store_true", help=f"print {what} as one JSON document on standard output"
    )


def parse(parser: ArgumentParser, words: Sequence[str]) -> Any:
    """The options as a namespace whose dataclasses are instances.

    Raises ConfigError: an unknown flag or key (naming the nearest), a missing or repeated one, a
    value of the wrong type, a configuration file that is missing or is no YAML.
    """
    with _usage(parser, words):
        return parser.instantiate(parser.parse_args(list(words)))


def parse_given(parser: ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """What the words say, as plain nested values, without defaults. Raises as `parse` does."""
    with _usage(parser, words):
        given: dict[str, Any] = parser.parse_args(list(words), defaults=False).as_dict()
        return given


@contextmanager
def _usage(parser: ArgumentParser, words: Sequence[str]) -> Iterator[None]:
    """Check flags and files; within the block, what the parser refuses is a ConfigError."""
    _check_flags(parser, words)
    for path in _config_files(words):
        _check_file(parser, path)
    try:
        yield
    except argparse.ArgumentError as error:
        raise ConfigError(f"{_tidy(str(error))}; see {parser.prog} --help") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{error}; see {parser.prog} --help") from error


def collect(kind: type[T], options: Any) -> T:
    """An instance of the dataclass `kind` from the options of its fields' names."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def parse_values(kind: type[T], values: dict[str, Any], where: str) -> T:
    """An instance of a dataclass from plain values, nested ones too; ConfigError for unknown keys,
    missing ones and values of the wrong type, `where` it says."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    known = set(known_keys(parser)) - _groups(known_keys(parser))
    for key in _leaves(values):
        if key not in known and not any(key.startswith(f"{name}.") for name in known):
            raise ConfigError(f"{where}: unknown key {key!r}{nearest_key(key, known)}")
    try:
        return collect(kind, parser.instantiate(parser.parse_object(values)))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {_tidy(str(error))}") from error


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def known_keys(parser: ArgumentParser) -> list[str]:
    """Every key that a configuration file may have, dotted."""
    flags = (action.dest for action in parser._actions if action.option_strings)
    return [
        dest for dest in flags if dest not in ("help", "config", "print_config", "json", "resume")
    ]


def _check_flags(parser: ArgumentParser, words: Sequence[str]) -> None:
    known = {text for action in parser._actions for text in action.option_strings}
    for word in words:
        if word == "--":
            return
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            shown = [name for name in known if name.startswith("--") and not name.endswith("+")]
            raise ConfigError(
                f"unknown flag {flag}{nearest_key(flag, shown)}; see {parser.prog} --help"
            )


def _config_files(words: Sequence[str]) -> Iterable[Path]:
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == _CONFIG:
            if equals:
                yield Path(value)
            elif index + 1 < len(words):
                yield Path(words[index + 1])


def _check_file(parser: ArgumentParser, path: Path) -> None:
    """Refuse what the file may not hold, with line numbers, before its values are read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{_CONFIG} {path}: cannot be read: {reason}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {_one_line(str(error))}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected a mapping of keys to values, such as 'output: runs/a'")
    leaves = known_keys(parser)
    groups = _groups(leaves)
    _check_node(root, "", path, set(leaves) - groups, groups)


def _groups(keys: Iterable[str]) -> set[str]:
    """Of dotted keys, those that hold keys of their own."""
    return {key.rsplit(".", count)[0] for key in keys for count in range(1, key.count(".") + 1)}


def _check_node(
    node: yaml.MappingNode, prefix: str, path: Path, leaves: set[str], groups: set[str]
) -> None:
    seen: set[str] = set()
    for key_node, value in node.value:
        key = f"{prefix}{key_node.value}"
        where = f"{path}:{key_node.start_mark.line + 1}"
        if key in seen:
            raise ConfigError(f"{where}: the key {key!r} is given twice; keep one")
        seen.add(key)
        if key not in leaves and key not in groups:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest_key(key, leaves | groups)}")
        if key in groups:
            if isinstance(value, yaml.MappingNode):
                _check_node(value, f"{key}.", path, leaves, groups)
            elif not isinstance(value, yaml.ScalarNode) or value.value:
                raise ConfigError(f"{where}: {key!r} holds keys of its own, not a value")


def nearest_key(word: str, known: Iterable[str]) -> str:
    """Like `rango.errors.nearest`, but a key's last part alone may match too (epoch finds
    training.epochs)."""
    names = sorted(known)
    if found := nearest(word, names, 1):
        return found
    last = {name.lstrip("-").rpartition(".")[2]: name for name in names}
    if found := nearest(word.lstrip("-").rpartition(".")[2], last, 1):
        return f"; nearest: {last[found.removeprefix('; nearest: ')]}"
    return ""


def _tidy(message: str) -> str:
    """jsonargparse's messages on one line, in the words of our users rather than of typing."""
    line = _one_line(message)
    line = re.sub(r"<class '([\w.]+)'>", r"\1", line)
    line = re.sub(r"(?:typing\.)?Literal\[([^\]]*)\]", r"one of \1", line)
    line = re.sub(r"\bNoneType\b", "null", line)
    value = re.fullmatch(r'Parser key "([\w.]+)": Expected an? (.*?)\. Got value: (.*)', line)
    if value:
        return f"{value[1]}: expected {value[2]}, found {value[3]}"
    return line


def _one_line(text: str) -> str:
    return " ".join(text.split())


def say(*lines: str) -> None:
    """To standard error, where everything goes that is not the result."""
    for line in lines:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
