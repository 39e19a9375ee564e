"""JSON as the standard has it: no NaN, and a fault says where it is."""

from __future__ import annotations

import json
from typing import Any

from rango.data.samples import Origin
from rango.errors import DataError


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write a string, or null for a value that is missing")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
BROKEN = (ValueError, RecursionError)
"""What the decoder raises."""
_TOKEN = 16
"""No token that a cut can break in two, strings apart, has more characters."""


def parse_json(text: str, origin: Origin) -> Any:
    """The value that a line holds. Raises DataError."""
    try:
        return DECODER.decode(text)
    except BROKEN as error:
        column = error.colno if isinstance(error, json.JSONDecodeError) else 1
        raise malformed(error, origin, column, text) from error


def malformed(error: Exception, origin: Origin, column: int, text: str) -> DataError:
    """The fault of broken JSON, there; `text` is all that could be decoded."""
    if isinstance(error, RecursionError):
        return DataError(f"{origin}: malformed JSON: nested too deeply")
    if not isinstance(error, json.JSONDecodeError):
        return DataError(f"{origin}: {error}")
    cut = " (is it cut short?)" if at_end(error, text) else ""
    return DataError(f"{origin}: malformed JSON at column {column}: {error.msg}{cut}")


def at_end(error: Exception, text: str) -> bool:
    """Whether the fault is that `text` ends."""
    return isinstance(error, json.JSONDecodeError) and (
        error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
    )


def unfinished(error: Exception, text: str) -> bool:
    """Whether more after `text`, which may end within a token, might make it whole."""
    return at_end(error, text) or (
        isinstance(error, json.JSONDecodeError) and error.pos >= len(text) - _TOKEN
    )
