"""How varied the texts are: distinct pairs and fours of words of a uniform sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rango.data.audit.reservoir import Drawn
from rango.data.audit.result import Diversity
from rango.data.audit.shingles import word_runs


def diversity(drawn: Sequence[Drawn], clusters: int, largest: int) -> Diversity:
    """The shares are of at most 5,000 samples' first 2,000 characters: they depend on how much text
    is looked at, so compare them between data sets of about one size, or above that sample's."""
    texts = [one.body for one in drawn]
    return Diversity(_distinct(texts, 2), _distinct(texts, 4), clusters, largest)


def _distinct(texts: Sequence[str], length: int) -> float:
    runs = word_runs(texts, length)
    return len(np.unique(runs)) / len(runs) if len(runs) else 0.0
