"""What an entry of a data file may look like, and what it means.

| format     | required keys       | becomes                                                       |
|------------|---------------------|---------------------------------------------------------------|
| chat       | messages            | the conversation, rendered with the tokenizer's chat template |
| alpaca     | instruction, output | a user message (instruction, blank line, input), the answer   |
| completion | prompt, completion  | the two texts one after the other, without a template         |
| text       | text                | plain text, learnt whole                                      |

A file has one format: that of its first good entry. An entry with the keys of several (Alpaca's
own file has a "text" column too) counts as the first in this table. Other keys are ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rango.data.samples import Example, Message, Origin
from rango.errors import DataError, nearest

ROLES = ("system", "developer", "user", "assistant", "tool")

_CHANGES_MEANING = ("tool_calls", "function_call", "weight", "reasoning_content", "thinking")
"""Keys of a message that would be lost in silence if they were ignored."""


@dataclass(frozen=True)
class Format:
    """A format by its keys; `parse` makes the example of an entry that has the required ones."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    parse: Callable[[dict[str, Any], Origin], Example]

    def fits(self, entry: dict[str, Any]) -> bool:
        """Whether the entry has the required keys."""
        return all(key in entry for key in self.required)


def recognise(entry: Any, origin: Origin) -> Format:
    """The format of an entry. Raises DataError where it has the keys of none."""
    entry = _object(entry, origin)
    for format in FORMATS:
        if format.fits(entry):
            return format
    known = [key for format in FORMATS for key in format.required]
    expected = "; or ".join(_quoted(format.required) for format in FORMATS)
    raise DataError(
        f"{origin}: expected an entry with the keys {expected}; found {_quoted(entry) or 'none'}"
        + _closest(entry, known)
    )


def parse_entry(entry: Any, format: Format, origin: Origin) -> Example:
    """The example of an entry in a file of this format.

    Raises DataError where keys are missing or misspelt, or a value is of the wrong type or empty.
    """
    entry = _object(entry, origin)
    if not format.fits(entry):
        _refuse_keys(entry, format, origin)
    for key in format.optional:
        if key not in entry and (typo := difflib.get_close_matches(key, entry, n=1, cutoff=0.75)):
            raise DataError(f"{origin}: unknown key {typo[0]!r}; rename it to {key!r}")
    return format.parse(entry, origin)


def _refuse_keys(entry: dict[str, Any], format: Format, origin: Origin) -> None:
    for other in FORMATS:
        if other.fits(entry):
            raise DataError(
                f"{origin}: mixed formats in one file: the entries before are {format.name} "
                f"({_quoted(format.required)}), this one is {other.name} "
                f"({_quoted(other.required)}); put them in separate files"
            )
    missing = [key for key in format.required if key not in entry]
    raise DataError(
        f"{origin}: missing {_quoted(missing)} ({format.name}); "
        f"found {_quoted(entry) or 'no keys'}" + _closest(entry, missing)
    )


def _chat(entry: dict[str, Any], origin: Origin) -> Example:
    turns = entry["messages"]
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{origin}: 'messages' should be a list of messages, not {_described(turns)}"
        )
    messages = tuple(_message(turn, number, origin) for number, turn in enumerate(turns))
    if messages[-1].role != "assistant":
        raise DataError(
            f"{origin}: the last message should be the assistant's, but its role is "
            f"{messages[-1].role!r}; nothing after the last answer can be learnt, so drop it"
        )
    return Example("chat", messages, origin)


def _message(turn: Any, number: int, origin: Origin) -> Message:
    where = f"messages[{number}]"
    if not isinstance(turn, dict):
        raise DataError(
            f"{origin}: {where} should be an object with 'role' and 'content', "
            f"not {_described(turn)}"
        )
    for key in ("role", "content"):
        if key not in turn:
            raise DataError(
                f"{origin}: {where} has no {key!r}; found {_quoted(turn) or 'no keys'}"
                + _closest(turn, [key])
            )
    for key in _CHANGES_MEANING:
        if turn.get(key) is not None:
            raise DataError(
                f"{origin}: {where}: {key!r} is not supported, and would be lost; remove it, "
                "or write what it says into 'content'"
            )
    role = _string(turn["role"], f"{where}.role", origin)
    if role not in ROLES:
        raise DataError(
            f"{origin}: {where}: unknown role {role!r}; expected one of {', '.join(ROLES)}"
            + nearest(role, ROLES, 1)
        )
    content = _string(turn["content"], f"{where}.content", origin)
    if role == "assistant":
        _refuse_empty(content, f"{where}.content", origin)
    return Message(role, content)


def _alpaca(entry: dict[str, Any], origin: Origin) -> Example:
    instruction = _string(entry["instruction"], "instruction", origin)
    given = entry.get("input")
    given = "" if given is None else _string(given, "input", origin)
    output = _refuse_empty(_string(entry["output"], "output", origin), "output", origin)
    request = f"{instruction}\n\n{given}" if given.strip() else instruction
    _refuse_empty(request, "instruction", origin)
    return Example("chat", (Message("user", request), Message("assistant", output)), origin)


def _completion(entry: dict[str, Any], origin: Origin) -> Example:
    prompt = _string(entry["prompt"], "prompt", origin)
    completion = _string(entry["completion"], "completion", origin)
    _refuse_empty(completion, "completion", origin)
    messages = (Message("user", prompt), Message("assistant", completion))
    return Example("completion", messages, origin)


def _text(entry: dict[str, Any], origin: Origin) -> Example:
    text = _refuse_empty(_string(entry["text"], "text", origin), "text", origin)
    return Example("text", (Message("assistant", text),), origin)


FORMATS = (
    Format("chat messages", ("messages",), (), _chat),
    Format("Alpaca", ("instruction", "output"), ("input",), _alpaca),
    Format("prompt/completion", ("prompt", "completion"), (), _completion),
    Format("plain text", ("text",), (), _text),
)


def _object(entry: Any, origin: Origin) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{origin}: expected an object {{…}}, found {_described(entry)}")
    return entry


def _string(value: Any, name: str, origin: Origin) -> str:
    if not isinstance(value, str):
        raise DataError(f"{origin}: {name!r} should be a string, not {_described(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{origin}: {name!r} holds half of a character (lone surrogate "
            f"\\u{ord(value[error.start]):04x}); repair or remove it"
        ) from error
    return value


def _refuse_empty(value: str, name: str, origin: Origin) -> str:
    if not value.strip():
        raise DataError(f"{origin}: {name!r} is empty, so there is nothing to learn; remove it")
    return value


def _described(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", dict: "an object", str: "a string"}
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return names.get(type(value), "a number")


def _quoted(keys: Any) -> str:
    quoted = [repr(key[:40]) for key in keys]
    return ", ".join(quoted[:8]) + (", …" if len(quoted) > 8 else "")


def _closest(found: Any, wanted: list[str]) -> str:
    """The pair of a found and a wanted key that look most alike, as a suggestion."""
    for key in found:
        if key not in wanted and (match := difflib.get_close_matches(key, wanted, n=1)):
            return f"; did you mean {match[0]!r} where it says {key[:40]!r}?"
    return ""
