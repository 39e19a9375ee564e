"""What an entry of a data file may look like, and what it means.

| format            | required keys       | becomes                                                |
|-------------------|---------------------|--------------------------------------------------------|
| chat messages     | messages            | the conversation, rendered with the chat template      |
| ShareGPT          | conversations       | the same; from/value, human and gpt, or system beside  |
| Alpaca            | instruction, output | a user message (instruction, blank line, input),       |
|                   |                     | the answer; system beside                              |
| prompt/completion | prompt, completion  | the two texts one after the other, without a template  |
| text+label        | text, label         | a text and its class                                   |
| plain text        | text                | plain text, learnt whole                               |

A file has one format: that of its first good entry. An entry with the keys of several (Alpaca's
own file has a "text" column too) counts as the first in this table. Other keys are ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rango.data.reading import entries
from rango.data.reading.entries import Parsed, closest, described, quoted
from rango.data.samples import Example, Origin
from rango.errors import DataError


@dataclass(frozen=True)
class Format:
    """A format by its keys; `parse` takes an entry that has the required ones."""

    name: str
    key: str
    """Its name in Example.format."""
    required: tuple[str, ...]
    optional: tuple[str, ...]
    parse: Callable[[dict[str, Any], Origin], Parsed]

    def fits(self, entry: dict[str, Any]) -> bool:
        """Whether the entry has the required keys."""
        return all(key in entry for key in self.required)


PLAIN_TEXT = Format("plain text", "text", ("text",), (), entries.text)
LABELLED = Format("text+label", "labelled", ("text", "label"), (), entries.labelled)
FORMATS = (
    Format("chat messages", "chat", ("messages",), (), entries.chat),
    Format("ShareGPT", "sharegpt", ("conversations",), ("system",), entries.sharegpt),
    Format("Alpaca", "alpaca", ("instruction", "output"), ("input", "system"), entries.alpaca),
    Format("prompt/completion", "completion", ("prompt", "completion"), (), entries.completion),
    LABELLED,
    PLAIN_TEXT,
)
NAMES = tuple(dict.fromkeys(key for each in FORMATS for key in (*each.required, *each.optional)))
"""Every key that means something."""


def recognise(entry: Any, origin: Origin, formats: Sequence[Format] = FORMATS) -> Format:
    """The format of an entry. Raises DataError where it has the keys of none."""
    entry = _object(entry, origin)
    for format in formats:
        if format.fits(entry):
            return format
    known = [key for format in formats for key in format.required]
    expected = "; or ".join(quoted(format.required) for format in formats)
    raise DataError(
        f"{origin}: expected an entry with the keys {expected}; found {quoted(entry) or 'none'}"
        + closest(entry, known)
    )


def parse_entry(
    entry: Any,
    format: Format,
    origin: Origin,
    group: str | None = None,
    formats: Sequence[Format] = FORMATS,
) -> Example:
    """The example of an entry in a file of this format, which was chosen among `formats`.

    Raises DataError where keys are missing or misspelt, or a value is of the wrong type or empty.
    """
    entry = _object(entry, origin)
    if not format.fits(entry):
        _refuse_keys(entry, format, origin, formats)
    if format is PLAIN_TEXT and LABELLED in formats and entry.get("label") is not None:
        raise _mixed(format, LABELLED, origin)
    for key in format.optional:
        if key not in entry and (typo := _typo(key, tuple(entry))):
            raise DataError(f"{origin}: unknown key {typo!r}; rename it to {key!r}")
    kind, messages, label = format.parse(entry, origin)
    return Example(kind, messages, origin, label, group, format.key)


def _refuse_keys(
    entry: dict[str, Any], format: Format, origin: Origin, formats: Sequence[Format]
) -> None:
    for other in formats:
        if other.fits(entry):
            raise _mixed(format, other, origin)
    missing = [key for key in format.required if key not in entry]
    raise DataError(
        f"{origin}: missing {quoted(missing)} ({format.name}); "
        f"found {quoted(entry) or 'no keys'}" + closest(entry, missing)
    )


def _mixed(before: Format, found: Format, origin: Origin) -> DataError:
    return DataError(
        f"{origin}: mixed formats in one file: the entries before are {before.name} "
        f"({quoted(before.required)}), this one is {found.name} "
        f"({quoted(found.required)}); put them in separate files"
    )


@lru_cache(maxsize=64)
def _typo(key: str, found: tuple[str, ...]) -> str | None:
    """A key that looks like a misspelt `key`. (Entries of a file mostly have the same keys.)"""
    alike = difflib.get_close_matches(key, found, n=1, cutoff=0.75)
    return alike[0] if alike else None


def _object(entry: Any, origin: Origin) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{origin}: expected an object {{…}}, found {described(entry)}")
    return entry
