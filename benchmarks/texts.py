"""The token sequences that are trained on: (ids, the first position that is supervised)."""

from __future__ import annotations

import math

import numpy as np

Text = tuple[list[int], int]

SIGMA = 0.7
"""Of the logarithm of a job's lengths: between Alpaca's (about .6) and Dolly's (about .9)."""
MEDIAN, SHORTEST, LONGEST = 180, 16, 1024
SUPERVISED = 0.3
_FIRST = 3
"""The smallest id that is no special token."""


def equal_texts(vocabulary: int, count: int, tokens: int, supervised: float = 1.0) -> list[Text]:
    """`count` random texts of `tokens` tokens, the last share of each supervised."""
    generator = np.random.default_rng(1)
    ids = generator.integers(_FIRST, vocabulary, (count, tokens))
    return [(row, tokens - round(supervised * tokens)) for row in ids.tolist()]


def job_texts(vocabulary: int, count: int) -> list[Text]:
    """A job's texts: lognormal lengths, the last 30% supervised, and something to learn in them:
    half of the tokens follow from the one before, the others are drawn by Zipf's law."""
    generator = np.random.default_rng(2)
    lengths = np.exp(generator.normal(math.log(MEDIAN), SIGMA, count)).round().astype(int)
    follower = generator.permutation(np.arange(_FIRST, vocabulary))
    texts = []
    for length in lengths.clip(SHORTEST, LONGEST).tolist():
        drawn = _FIRST + (generator.zipf(1.3, length) - 1) % (vocabulary - _FIRST)
        follows = generator.random(length) < 0.5
        ids = [int(drawn[0])]
        for place in range(1, length):
            ids.append(int(follower[ids[-1] - _FIRST] if follows[place] else drawn[place]))
        texts.append((ids, length - max(1, round(SUPERVISED * length))))
    return texts


def targets(texts: list[Text]) -> int:
    """Positions that predict a supervised token; the first token of a text is never predicted."""
    return sum(len(ids) - max(first, 1) for ids, first in texts)
