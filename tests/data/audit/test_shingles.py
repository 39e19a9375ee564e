"""The vectorised hashes against plain Python's n-grams."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rango.data.audit.shingles import shingles, word_runs

WORDS = st.lists(st.text("abcñé漢字ไท", min_size=1, max_size=4), max_size=14).map(" ".join)


def plain_words(text: str) -> list[str]:
    spaced = "".join(f" {char} " if ord(char) >= 0x0E00 else char for char in text)
    return spaced.split()


def plain_shingles(text: str) -> set[tuple[str, ...] | str]:
    words = plain_words(text)
    if len(words) >= 8:
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
    return {text[i : i + 5] for i in range(max(len(text) - 4, 1))} if text else set()


def hashed(texts: list[str]) -> list[set[int]]:
    found: list[set[int]] = []
    for hashes, counts in shingles(texts):
        ends = np.cumsum(counts)
        found += [set(hashes[end - n : end].tolist()) for end, n in zip(ends, counts, strict=True)]
    return found


@given(st.lists(WORDS, min_size=1, max_size=8))
def test_equal_shingles_have_equal_hashes_and_different_ones_not(texts):
    plain, found = [plain_shingles(text) for text in texts], hashed(texts)
    assert [len(one) for one in found] == [len(one) for one in plain]
    names: dict[object, int] = {}
    for shingles_, hashes in zip(plain, found, strict=True):
        for other_shingles, other in zip(plain, found, strict=True):
            assert len(shingles_ & other_shingles) == len(hashes & other)
        names |= dict.fromkeys(shingles_, 0)
    assert len(set().union(*found)) == len(names)


def test_blocks_change_nothing():
    texts = [
        f"word{i} and {i * i} then some more words for the text number {i}" for i in range(3000)
    ]
    alone = [hashed([text])[0] for text in texts[:20]]
    together = hashed(texts)
    assert len(together) == 3000
    assert together[:20] == alone


def test_a_long_text_and_an_empty_one():
    long = " ".join(f"w{i}" for i in range(60_000))
    found = hashed(["", long, "", "a"])
    assert [len(one) > 0 for one in found] == [False, True, False, True]
    assert len(found[1]) > 20_000


def test_lone_surrogates_pass():
    assert len(hashed(["half \ud800 of a pair and then five more words in it"])[0]) == 10


def test_word_runs_count_every_run():
    runs = word_runs(["a b a b", "a b", "", "x"], 2)
    assert len(runs) == 4
    assert len(set(runs.tolist())) == 2
    assert len(word_runs([], 2)) == 0
