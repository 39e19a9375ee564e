"""Libraries that only some data needs, imported when it does."""

from __future__ import annotations

import importlib
from typing import Any

from rango.errors import ConfigError


def extra(module: str, what: str) -> Any:
    """A library of the extra "data", which `what` needs. Raises ConfigError where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.split(".")[0]
        raise ConfigError(f"{what} needs {library}: pip install 'rango[data]'") from error
