"""Short runs of words or characters of many texts, hashed all at once.

No object is made for a single word: the texts of a block are one array of characters, and the
hash of any span of them is a difference of two prefix sums (a polynomial in an odd base modulo
2^64, divided by the power of where the span begins, and then mixed).

Texts are given normalised: single spaces, no line ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 16
"""Characters hashed at once: the arrays of a block stay in a processor's cache."""
MOST = 200_000
"""Characters of a text that are looked at; what follows in a longer one isn't compared."""
_SHORT = 8
"""A text of fewer words than this is compared by runs of characters."""
_WORDS, _CHARACTERS = 3, 5

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_JOIN = np.uint64(0x94D049BB133111EB)

U64 = NDArray[np.uint64]
Places = NDArray[np.intp]


def shingles(texts: Sequence[str]) -> Iterator[tuple[NDArray[np.uint32], Places]]:
    """For blocks of texts in their order: (32-bit hashes of the shingles, how many each text has).

    A shingle is a run of 3 words, or of 5 characters in a text of fewer than 8 words (in a text
    of fewer than 5 characters, all of it). In scripts without spaces each character is a word. An
    empty text has none; one that occurs twice in a text may be listed twice.
    """
    for block in _blocks(texts):
        span = _Spans(block)
        words, owner = span.words()
        short = np.bincount(owner, minlength=len(block)) < _SHORT
        long, of_long = _runs(words, owner, _WORDS)
        kept = ~short[of_long]
        small, of_small = span.windows(np.flatnonzero(short), _CHARACTERS)
        hashes = np.concatenate([long[kept], small])
        owners = np.concatenate([of_long[kept], of_small])
        order = np.argsort(owners, kind="stable")
        counts = np.bincount(owners, minlength=len(block))
        yield (hashes[order] >> np.uint64(32)).astype(np.uint32), counts


def word_runs(texts: Sequence[str], length: int) -> U64:
    """64-bit hashes of all runs of `length` words, those of every text one after the other."""
    found = [np.zeros(0, np.uint64)]
    for block in _blocks(texts):
        words, owner = _Spans(block).words()
        found.append(_runs(words, owner, length)[0])
    return np.concatenate(found)


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    block, size = list[str](), 0
    for text in texts:
        text = text[:MOST]
        if block and size + len(text) >= _BLOCK:
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text) + 1
    if block:
        yield block


class _Spans:
    """The characters of some texts, and the hash of any span of them."""

    def __init__(self, texts: Sequence[str]) -> None:
        joined = "\n".join(texts) + "\n"
        self._codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        self._ends: Places = np.flatnonzero(self._codes == ord("\n"))
        powers, self._inverse = _powers(1 << (len(self._codes)).bit_length())
        mixed = (self._codes.astype(np.uint64) + np.uint64(1)) * _MIX
        mixed ^= mixed >> np.uint64(31)
        mixed *= powers[: len(mixed)]
        self._sums = np.zeros(len(mixed) + 1, np.uint64)
        np.cumsum(mixed, out=self._sums[1:])

    def words(self) -> tuple[U64, Places]:
        """(Hash of each word, index of its text)."""
        codes = self._codes
        gap = (codes == ord(" ")) | (codes == ord("\n"))
        apart = gap[1:] | gap[:-1]
        if codes.max() >= 0x0E00:
            alone = _alone(codes)
            apart |= alone[1:] | alone[:-1]
        first = ~gap
        last = first.copy()
        first[1:] &= apart
        last[:-1] &= apart
        begin, end = np.flatnonzero(first), np.flatnonzero(last) + 1
        return self._hash(begin, end), np.searchsorted(self._ends, begin)

    def windows(self, texts: Places, length: int) -> tuple[U64, Places]:
        """(Hash of each run of `length` characters of these texts, index of its text)."""
        ends = self._ends[texts]
        begins = np.where(texts > 0, self._ends[texts - 1] + 1, 0)
        sizes = ends - begins
        counts = np.where(sizes > 0, np.maximum(sizes - length + 1, 1), 0)
        place = np.repeat(np.arange(len(texts)), counts)
        begin = begins[place] + np.arange(len(place)) - (np.cumsum(counts) - counts)[place]
        return self._hash(begin, np.minimum(begin + length, ends[place])), texts[place]

    def _hash(self, begin: Places, end: Places) -> U64:
        return _mixed((self._sums[end] - self._sums[begin]) * self._inverse[begin])


def _runs(words: U64, owner: Places, length: int) -> tuple[U64, Places]:
    """(Hash of each run of words within one text, index of the text)."""
    count = len(words) - length + 1
    if count <= 0:
        return words[:0], owner[:0]
    run = words[:count].copy()
    for step in range(1, length):
        run *= _JOIN
        run += words[step : step + count]
    whole = owner[:count] == owner[length - 1 :]
    return _mixed(run[whole]), owner[:count][whole]


def _mixed(values: U64) -> U64:
    """A bijection after which every bit depends on all the others (splitmix64's last steps)."""
    values = values ^ (values >> np.uint64(30))
    values *= _MIX
    values ^= values >> np.uint64(27)
    values *= _JOIN
    values ^= values >> np.uint64(31)
    return values


def _alone(codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Characters of scripts that put no space between words (Thai, Chinese, Japanese …)."""
    thai = (codes >= 0x0E00) & (codes < 0x10A0)
    khmer = (codes >= 0x1780) & (codes < 0x1800)
    ideograph = (codes >= 0x2E80) & (codes < 0xA4D0)
    rare = ((codes >= 0xF900) & (codes < 0xFB00)) | ((codes >= 0x20000) & (codes < 0x40000))
    return thai | khmer | ideograph | rare


@cache
def _powers(size: int) -> tuple[U64, U64]:
    """(Powers 0 … size − 1 of the base, those of its inverse), modulo 2^64."""
    tables = []
    for base in (_BASE, _INVERSE):
        steps = np.full(size, base, np.uint64)
        steps[0] = 1
        tables.append(np.cumprod(steps))
    return tables[0], tables[1]
