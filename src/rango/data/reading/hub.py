"""Data sets of the Hub, streamed through `datasets`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from rango.data.faults import FileFault
from rango.data.reading.sources import HubSet


def hub_entries(hub: HubSet) -> Iterator[tuple[int, Any]]:
    """Each row with its number, from 1.

    Raises FileFault: no such data set, or it can't be reached; the message says, too, that there
    is no file of that name, which is what may have been meant.
    """
    missing = f"{hub.name}: no file, folder or glob of this name here"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise FileFault(
            f"{missing}; if it is a data set of the Hub: pip install 'rango[data]'"
        ) from error
    try:
        rows = iter(datasets.load_dataset(hub.name, hub.config, split=hub.split, streaming=True))
    except Exception as error:  # the library and its network layers raise of every kind
        raise FileFault(
            f"{missing}, and as a data set of the Hub ({hub}) it cannot be opened: {error}"
        ) from error
    number = 0
    while True:
        try:
            entry = next(rows, None)
        except Exception as error:
            raise FileFault(f"{hub}:{number + 1}: the Hub's data ends here: {error}") from error
        if entry is None:
            return
        number += 1
        yield number, entry
