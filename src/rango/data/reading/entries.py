"""From the values of an entry to messages, one function a format; every value is checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from rango.data.reading.json_text import BROKEN, DECODER
from rango.data.samples import Kind, Message, Origin
from rango.errors import DataError, nearest

Parsed = tuple[Kind, tuple[Message, ...], str | None]
"""Kind, messages and label of an example."""

ROLES = ("system", "developer", "user", "assistant", "tool")

_STYLES: dict[tuple[str, str], dict[str, str]] = {
    ("role", "content"): {role: role for role in ROLES},
    ("from", "value"): {
        **{role: role for role in ROLES},
        "human": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "bard": "assistant",
        "function": "tool",
        "observation": "tool",
    },
}
"""How a turn names its speaker and its text, and what the speakers are called there."""

_CHANGES_MEANING = ("tool_calls", "function_call", "weight", "reasoning_content", "thinking")
"""Keys of a message that would be lost in silence if they were ignored."""


def chat(entry: dict[str, Any], origin: Origin) -> Parsed:
    """A conversation: turns of role and content."""
    messages = _turns(entry["messages"], "messages", ("role", "content"), origin)
    return "chat", _answered(messages, origin), None


def sharegpt(entry: dict[str, Any], origin: Origin) -> Parsed:
    """A conversation: turns of from and value, with a system message of its own or none."""
    messages = _turns(entry["conversations"], "conversations", ("from", "value"), origin)
    return "chat", _answered(_led(entry, messages, origin), origin), None


def alpaca(entry: dict[str, Any], origin: Origin) -> Parsed:
    """A request (instruction, blank line, input) and its answer."""
    instruction = _string(entry["instruction"], "instruction", origin)
    given = entry.get("input")
    given = "" if given is None else _string(given, "input", origin)
    output = _filled(_string(entry["output"], "output", origin), "output", origin)
    request = f"{instruction}\n\n{given}" if given.strip() else instruction
    _filled(request, "instruction", origin)
    messages = (Message("user", request), Message("assistant", output))
    return "chat", _led(entry, messages, origin), None


def completion(entry: dict[str, Any], origin: Origin) -> Parsed:
    """A prompt and how it goes on."""
    prompt = _string(entry["prompt"], "prompt", origin)
    answer = _filled(_string(entry["completion"], "completion", origin), "completion", origin)
    return "completion", (Message("user", prompt), Message("assistant", answer)), None


def labelled(entry: dict[str, Any], origin: Origin) -> Parsed:
    """A text to classify, and its label."""
    text = _filled(_string(entry["text"], "text", origin), "text", origin)
    return "labelled", (Message("user", text),), plain_value(entry["label"], "label", origin)


def text(entry: dict[str, Any], origin: Origin) -> Parsed:
    """A text to learn whole."""
    content = _filled(_string(entry["text"], "text", origin), "text", origin)
    return "text", (Message("assistant", content),), None


def plain_value(value: Any, name: str, origin: Origin) -> str:
    """A label or the name of a group, as text: a string, an integer, or true and false."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{origin}: {name!r} should be a string, an integer or a boolean, not "
            f"{described(value)}"
        )
    return _filled(_string(value, name, origin), name, origin)


def described(value: Any) -> str:
    """The type of a JSON value, in words."""
    names = {type(None): "null", bool: "a boolean", dict: "an object", str: "a string"}
    names |= {int: "a number", float: "a number"}
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return names.get(type(value), f"a value of type {type(value).__name__}")


def quoted(keys: Iterable[str]) -> str:
    """The first few keys, quoted."""
    words = [repr(key[:40]) for key in keys]
    return ", ".join(words[:8]) + (", …" if len(words) > 8 else "")


def closest(found: Iterable[str], wanted: list[str]) -> str:
    """The pair of a found and a wanted key that look most alike, as a suggestion."""
    for key in found:
        if key not in wanted and (match := difflib.get_close_matches(key, wanted, n=1)):
            return f"; did you mean {match[0]!r} where it says {key[:40]!r}?"
    return ""


def _turns(value: Any, key: str, usual: tuple[str, str], origin: Origin) -> tuple[Message, ...]:
    turns = _unpacked(value, key, origin) if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{origin}: {key!r} should be a list of messages, not {described(turns)}")
    return tuple(
        _message(turn, f"{key}[{number}]", usual, origin) for number, turn in enumerate(turns)
    )


def _unpacked(value: str, key: str, origin: Origin) -> Any:
    """The list that a cell of a table holds as JSON."""
    start = value.lstrip()[:3]
    if not start.startswith("["):
        return value
    try:
        return DECODER.decode(value)
    except BROKEN as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if start.startswith("[{'"):
            reason = "single quotes, as Python's str() writes them; write it with json.dumps()"
        raise DataError(f"{origin}: {key!r} holds malformed JSON: {reason}") from error


def _message(turn: Any, where: str, usual: tuple[str, str], origin: Origin) -> Message:
    if not isinstance(turn, dict):
        raise DataError(
            f"{origin}: {where} should be an object with {usual[0]!r} and {usual[1]!r}, "
            f"not {described(turn)}"
        )
    style = _style(turn, usual)
    for key in style:
        if key not in turn:
            raise DataError(
                f"{origin}: {where} has no {key!r}; found {quoted(turn) or 'no keys'}"
                + closest(turn, [key])
            )
    for key in _CHANGES_MEANING:
        if turn.get(key) not in (None, [], ""):
            raise DataError(
                f"{origin}: {where}: {key!r} is not supported, and would be lost; remove it, "
                "or write what it says into its text"
            )
    speaker = _string(turn[style[0]], f"{where}.{style[0]}", origin)
    speakers = _STYLES[style]
    role = speakers.get(speaker)
    if role is None:
        raise DataError(
            f"{origin}: {where}: unknown role {speaker[:40]!r}; expected one of "
            f"{', '.join(speakers)}" + nearest(speaker, speakers, 1)
        )
    content = _string(turn[style[1]], f"{where}.{style[1]}", origin)
    if role == "assistant":
        _filled(content, f"{where}.{style[1]}", origin)
    return Message(role, content)


def _style(turn: Mapping[str, Any], usual: tuple[str, str]) -> tuple[str, str]:
    """The keys that a turn uses, wherever it stands."""
    for style in _STYLES:
        if style[0] in turn or style[1] in turn:
            return style
    return usual


def _led(
    entry: dict[str, Any], messages: tuple[Message, ...], origin: Origin
) -> tuple[Message, ...]:
    """The messages with the entry's own system message in front, if it has one."""
    given = entry.get("system")
    if given is None or not _string(given, "system", origin).strip():
        return messages
    if messages[0].role == "system":
        raise DataError(
            f"{origin}: two system messages: 'system' and the first of the conversation; keep one"
        )
    return (Message("system", given), *messages)


def _answered(messages: tuple[Message, ...], origin: Origin) -> tuple[Message, ...]:
    if messages[-1].role != "assistant":
        raise DataError(
            f"{origin}: the last message should be the assistant's, but its role is "
            f"{messages[-1].role!r}; nothing after the last answer can be learnt, so drop it"
        )
    return messages


def _string(value: Any, name: str, origin: Origin) -> str:
    if not isinstance(value, str):
        raise DataError(f"{origin}: {name!r} should be a string, not {described(value)}")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{origin}: {name!r} holds half of a character (lone surrogate "
            f"\\u{ord(value[error.start]):04x}); repair or remove it"
        ) from error
    return value


def _filled(value: str, name: str, origin: Origin) -> str:
    if not value.strip():
        raise DataError(f"{origin}: {name!r} is empty, so there is nothing to learn; remove it")
    return value
