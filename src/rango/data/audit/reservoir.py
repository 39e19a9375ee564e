"""A uniform sample of bounded size of the data that pass by."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rango.data.audit.result import Instance
from rango.data.audit.view import View

SIZE = 5000
_CHARACTERS = 2000
"""Of each text drawn, so many are kept."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sample drawn."""

    index: int
    instance: Instance
    learnt: str
    """The beginning of its answer or, of a text, of the text."""
    text: str
    """The beginning of all its messages."""
    body: str
    """The beginning of its body, normalised and in lower case."""


class Reservoir:
    """Keeps 5,000 samples, each with the same chance, or all if there are fewer.

    Vitter's algorithm R with a fixed seed: what is drawn depends on the data's order alone.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._random = random.Random(1)
        self._drawn: list[Drawn] = []
        self._seen = 0

    def add(self, view: View) -> None:
        """Let the next sample pass by."""
        self._seen += 1
        if len(self._drawn) < self._size:
            self._drawn.append(_draw(view))
            return
        place = int(self._random.random() * self._seen)
        if place < self._size:
            self._drawn[place] = _draw(view)

    def drawn(self) -> list[Drawn]:
        """What was drawn, in the data's order."""
        return sorted(self._drawn, key=lambda drawn: drawn.index)


def _draw(view: View) -> Drawn:
    cut = view.cut if view.cut < len(view.text) else 0
    return Drawn(
        view.index,
        Instance(view.example.origin, view.excerpt()),
        view.text[cut : cut + _CHARACTERS],
        view.text[:_CHARACTERS],
        view.body[:_CHARACTERS],
    )
