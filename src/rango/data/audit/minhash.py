"""How alike two texts are, estimated from 128 bytes of each.

MinHash (Broder 1997) with the permutations of datasketch, computed for many texts at once; of each
minimum one byte is kept (b-bit minwise hashing, Li and König 2010). Texts that agree in one of 16
bands of 8 bytes are candidates, and count as alike if the estimate says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rango.data.audit.shingles import Places, shingles
from rango.data.extras import extra

PERMUTATIONS, BANDS = 128, 16
ALIKE = 0.85
"""Jaccard similarity of two texts' shingles (shared / all) from which they are near duplicates.

The estimate's standard deviation there is 0.03; two texts of that similarity are candidates with
a probability of 1 − (1 − 0.85^8)^16 = 0.994.
"""
_LEAST = math.ceil((ALIKE + (1 - ALIKE) / 256) * PERMUTATIONS)
"""Equal bytes of 128 from which two texts are alike: one in 256 is equal by chance."""
_AT_ONCE = 1 << 15
"""Pairs compared at once."""

Signatures = NDArray[np.uint8]


class MinHasher:
    """Signatures of texts. Raises ConfigError where datasketch is not installed."""

    def __init__(self) -> None:
        datasketch = extra("datasketch", "the audit")
        sketch = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32")
        factors, terms = sketch.permutations
        self._factors = np.asarray(factors, np.uint32)
        self._terms = np.asarray(terms, np.uint32)

    def signatures(self, texts: Sequence[str]) -> Signatures:
        """(texts, 128) uint8 of normalised texts; zeros for one without any shingle."""
        found = np.zeros((len(texts), PERMUTATIONS), np.uint8)
        begin = 0
        for hashes, counts in shingles(texts):
            some = np.flatnonzero(counts)
            if len(some):
                offsets = (np.cumsum(counts) - counts)[some]
                least = self.minima(hashes, offsets)
                # the top byte of a product mixes all of a minimum's bits
                bytes_ = (least * np.uint32(0x9E3779B1)) >> np.uint32(24)
                found[begin + some] = bytes_.astype(np.uint8).T
            begin += len(counts)
        return found

    def minima(self, hashes: NDArray[np.uint32], offsets: Places) -> NDArray[np.uint32]:
        """(128, sets) uint32: datasketch's MinHash values of sets of 32-bit hashes.

        The sets stand one after the other, none of them empty, and begin at `offsets`.
        """
        mixed = _mixed(hashes)
        least = np.empty((PERMUTATIONS, len(offsets)), np.uint32)
        for row, (factor, term) in enumerate(zip(self._factors, self._terms, strict=True)):
            permuted = mixed * factor
            permuted += term
            np.minimum.reduceat(permuted, offsets, out=least[row])
        return least


def alike(left: Signatures, a: Places, right: Signatures, b: Places) -> NDArray[np.bool_]:
    """Whether left[a[i]] and right[b[i]] are near duplicates, for each i."""
    found = np.empty(len(a), np.bool_)
    for begin in range(0, len(a), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        equal = left[a[part]] == right[b[part]]
        found[part] = np.count_nonzero(equal, axis=1) >= _LEAST
    return found


def bands(signatures: Signatures) -> NDArray[np.uint64]:
    """(texts, 16) uint64: what two texts must share in one place to be compared."""
    return signatures.view(np.uint64)


def _mixed(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """murmur3's finaliser, which datasketch applies before its affine permutations."""
    mixed = hashes ^ (hashes >> np.uint32(16))
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed
