"""Which labels text+label data have, found while they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from rango.data.samples import Example, Origin
from rango.errors import ConfigError, DataError

_FEW = 10
"""So few labels are never taken for something else."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


class LabelCensus:
    """Counts the labels of the examples that pass through it."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: Origin | None = None

    def watch(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The examples, noted as they pass."""
        for example in examples:
            if example.label is not None:
                self._first = self._first or example.origin
                self._counts[example.label] = self._counts.get(example.label, 0) + 1
            yield example

    def labels(self, stored: Sequence[str] | None = None) -> tuple[str, ...]:
        """The labels, sorted, by their value where all are whole numbers; empty for data without
        any. `stored`: those of a base that is a classifier already, whose order stays.

        Raises DataError for labels that no classifier is made for (a single one, about as many as
        samples, measured numbers), ConfigError for one that the base has not.
        """
        if not self._counts:
            return ()
        found = sorted(self._counts)
        if all(_WHOLE.fullmatch(label) for label in found):
            found.sort(key=int)
        if stored is not None:
            unknown = [label for label in found if label not in stored]
            if unknown:
                raise ConfigError(
                    f"the base is a classifier with the labels {', '.join(stored)}; the data "
                    f"have {', '.join(found[:_FEW])}: start from a checkpoint without a head, or "
                    "name them alike"
                )
            return tuple(stored)
        self._check(found)
        return tuple(found)

    def _check(self, found: Sequence[str]) -> None:
        samples, where = sum(self._counts.values()), self._first
        if len(found) == 1:
            raise DataError(
                f"{where}: all {samples} samples have the label {found[0]!r}; a classifier needs "
                "two labels at least: look whether the right column was read"
            )
        if len(found) <= _FEW:
            return
        if 2 * len(found) > samples:
            raise DataError(
                f"{where}: {samples} samples have {len(found)} different labels ({found[0]!r}, "
                f"{found[1]!r}, …), too many to learn from examples: look whether the right column "
                "was read"
            )
        if all(_is_measured(label) for label in found):
            raise DataError(
                f"{where}: the {len(found)} different labels are numbers with decimals "
                f"({found[0]}, {found[1]}, …); a classifier learns names, not quantities: give "
                "ranges of them a name"
            )


def _is_measured(label: str) -> bool:
    try:
        return not float(label).is_integer()
    except (ValueError, OverflowError):
        return False
