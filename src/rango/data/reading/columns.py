"""Data with other names: which of their columns serves as which of ours, and which one groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rango.data.reading.entries import plain_value, quoted
from rango.data.reading.formats import FORMATS, NAMES, Format, recognise
from rango.data.samples import Origin
from rango.errors import ConfigError, DataError, nearest

_ABSENT = object()


def parse_columns(words: str) -> dict[str, str]:
    """The mapping that ``prompt=question,completion=answer`` writes. Raises ConfigError."""
    found: dict[str, str] = {}
    for word in words.split(","):
        ours, _, theirs = (part.strip() for part in word.partition("="))
        if not (ours and theirs):
            raise ConfigError(
                f"columns: expected OURS=THEIRS such as prompt=question, found {word.strip()!r}"
            )
        if ours in found:
            raise ConfigError(f"columns: {ours!r} is given twice")
        found[ours] = theirs
    return found


class Columns:
    """Puts entries under our names; a name of theirs with dots reaches into nested objects.

    Raises ConfigError: a name that isn't ours, or names that no format has together.
    """

    def __init__(self, columns: Mapping[str, str] | None = None, group: str | None = None) -> None:
        theirs = dict(columns or {})
        for name, value in theirs.items():
            _check(name, value)
        mapped = set(theirs)
        self.formats = tuple(
            format for format in FORMATS if mapped <= {*format.required, *format.optional}
        )
        """The formats that the mapping leaves possible."""
        if not self.formats:
            raise ConfigError(f"columns: no format has {quoted(theirs)} together")
        self._optional = mapped - {key for format in self.formats for key in format.required}
        self._asked: list[tuple[str | None, str]] = list(theirs.items())  # (ours, theirs)
        if group:
            self._asked.append((None, group))
        self.given = bool(self._asked)
        """Whether entries have to have columns of some name."""
        self._replaced = {*theirs, *theirs.values()}
        asked = [name for _, name in self._asked]
        self._needed = {*NAMES, *asked, *(name.split(".")[0] for name in asked)}
        self.begin()

    def needs(self, name: str) -> bool:
        """Whether the values of this column of theirs can matter."""
        return name in self._needed

    def header(self, names: Iterable[str], origin: Origin) -> Format:
        """The format of a table with these columns. Raises DataError where it has none."""
        entry = dict.fromkeys(names)
        for ours, theirs in self._asked:
            if theirs not in entry and theirs.split(".")[0] not in entry:
                raise _absent(entry, ours, theirs, origin)
        ours_only = {ours: None for ours, _ in self._asked if ours is not None}
        return recognise(self._renamed(entry, ours_only), origin, self.formats)

    def apply(self, entry: Any, origin: Origin) -> tuple[Any, str | None]:
        """The entry under our names, and its group. Raises DataError where a column is missing."""
        if not self.given or not isinstance(entry, dict):
            return entry, None
        values: dict[str, Any] = {}
        group = None
        for ours, theirs in self._asked:
            value = _reach(entry, theirs)
            if value is _ABSENT:
                fault = _absent(entry, ours, theirs, origin)
                if ours is None or ours not in self._optional:
                    raise fault
                self._missed.setdefault(ours, fault)
            elif ours is None:
                group = plain_value(value, theirs, origin)
            else:
                values[ours] = value
                self._found.add(ours)
        return self._renamed(entry, values), group

    def begin(self) -> None:
        """A new file begins."""
        self._found: set[str] = set()
        self._missed: dict[str, DataError] = {}

    def end(self) -> None:
        """A file ends. Raises DataError where a column that an entry may lack was in none."""
        for ours, fault in self._missed.items():
            if ours not in self._found:
                raise fault

    def _renamed(self, entry: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        others = {name: value for name, value in entry.items() if name not in self._replaced}
        return others | values


def _check(ours: str, theirs: Any) -> None:
    if ours not in NAMES:
        hint = f"; write it as {theirs}={ours}" if theirs in NAMES else nearest(str(ours), NAMES)
        raise ConfigError(
            f"columns: unknown name {ours!r}; expected one of {', '.join(NAMES)}{hint}"
        )
    if not isinstance(theirs, str) or not theirs:
        raise ConfigError(f"columns: {ours!r} needs the name of a column, not {theirs!r}")


def _reach(entry: dict[str, Any], name: str) -> Any:
    """The value under a name, or under a path of names with dots."""
    if name in entry:
        return entry[name]
    value: Any = entry
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _absent(entry: Mapping[str, Any], ours: str | None, theirs: str, origin: Origin) -> DataError:
    use = "as group" if ours is None else f"as {ours!r}"
    return DataError(
        f"{origin}: no column {theirs!r} to serve {use}; found {quoted(entry) or 'none'}"
        + nearest(theirs, entry, 1)
    )
