"""Where a command's result goes: tables for people, or one JSON document for scripts."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType


def as_facts(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON values; a number that is not finite becomes null."""
    if hasattr(value, "as_dict"):
        return as_facts(value.as_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: as_facts(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): as_facts(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_facts(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def print_json(value: Any) -> None:
    """The one JSON document of a command, on standard output."""
    text = json.dumps(as_facts(value), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(f"{text}\n")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to main(), as for every other output."""
        raise BrokenPipeError


def show(*parts: RenderableType) -> None:
    """Tables and text on standard output; wide enough for a table where it is no terminal."""
    console = _Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = _Console(file=sys.stdout, highlight=False, width=max(console.width, 120))
    for part in parts:
        console.print(part)
