"""Signatures: datasketch's values, and estimates that find what is alike."""

from __future__ import annotations

import random

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from rango.data.audit.groups import Index, groups
from rango.data.audit.minhash import PERMUTATIONS, alike, bands


def unrelated(seed: int, words: int) -> list[str]:
    generator = random.Random(seed)
    return [f"{generator.getrandbits(40):x}" for _ in range(words)]


def pair(seed: int, shared: int, own: int) -> list[str]:
    """Two texts of `shared` common shingles and `own` further ones in the second only."""
    common = unrelated(seed, shared + 2)
    return [" ".join(common), " ".join(common + unrelated(seed + 1, own))]


def test_the_minima_are_datasketch_s(hasher):
    generator = np.random.default_rng(0)
    sets = [generator.integers(0, 1 << 32, size, np.uint32) for size in (1, 2, 50, 700)]
    offsets = np.cumsum([0, *map(len, sets[:-1])])
    ours = hasher.minima(np.concatenate(sets), offsets)
    for column, values in enumerate(sets):
        theirs = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
        theirs.update_batch(values.tolist())
        np.testing.assert_array_equal(ours[:, column], theirs.hashvalues)


@settings(max_examples=25)
@given(st.integers(0, 1 << 30), st.integers(20, 300))
def test_pairs_of_095_are_found(hasher, seed, shared):
    signatures = hasher.signatures(pair(seed, shared, shared // 20))
    assert groups(signatures, np.arange(2)).tolist() == [0, 0]
    assert Index(signatures[:1]).find(signatures[1:]).tolist() == [0]


@settings(max_examples=25)
@given(st.integers(0, 1 << 30), st.integers(20, 300))
def test_pairs_of_05_are_not(hasher, seed, shared):
    signatures = hasher.signatures(pair(seed, shared, shared))
    assert groups(signatures, np.arange(2)).tolist() == [0, 1]
    assert Index(signatures[:1]).find(signatures[1:]).tolist() == [-1]


def test_the_estimate_is_right_on_average(hasher):
    """The share of equal bytes is J + (1 - J) / 256."""
    for shared, own in ((90, 10), (60, 40), (1, 99)):
        texts = [text for seed in range(40) for text in pair(7 * seed, shared, own)]
        signatures = hasher.signatures(texts)
        equal = (signatures[::2] == signatures[1::2]).mean()
        true = shared / (shared + own)
        assert equal == pytest.approx(true + (1 - true) / 256, abs=0.03)


def test_case_and_order_of_words_matter_or_not(hasher):
    one, other = "the dog bites the man in the park at noon", "the man bites the dog in a park"
    signatures = hasher.signatures([one, other])
    assert not alike(signatures, np.array([0]), signatures, np.array([1]))[0]


@settings(max_examples=30)
@given(st.data())
def test_groups_are_those_of_all_pairs(hasher, data):
    """Against the comparison of every pair, on chains and stars of near copies."""
    generator = random.Random(data.draw(st.integers(0, 1 << 30)))
    texts = []
    for _ in range(generator.randint(1, 6)):
        words = unrelated(generator.getrandbits(30), generator.randint(30, 90))
        for _ in range(generator.randint(1, 6)):
            texts.append(" ".join(words))
            if generator.random() < 0.7:
                words = words[generator.randint(0, 2) :] + unrelated(generator.getrandbits(30), 1)
    generator.shuffle(texts)
    signatures = hasher.signatures(texts)
    count = len(texts)
    expected = list(range(count))
    left, right = (side.ravel() for side in np.mgrid[:count, :count])
    keys = bands(signatures)
    close = alike(signatures, left, signatures, right) & (keys[left] == keys[right]).any(axis=1)
    changed = True
    while changed:
        changed = False
        for a, b in zip(left[close], right[close], strict=True):
            low = min(expected[a], expected[b])
            changed |= expected[a] != low or expected[b] != low
            expected[a] = expected[b] = low
    assert groups(signatures, np.arange(count)).tolist() == expected


def test_only_the_rows_asked_for_are_grouped(hasher):
    signatures = hasher.signatures(["", *pair(1, 100, 2), "", *pair(1, 100, 3)])
    assert groups(signatures, np.array([1, 2, 5])).tolist() == [0, 0, 0]
    assert groups(signatures, np.array([2])).tolist() == [0]
    assert groups(signatures, np.zeros(0, np.intp)).tolist() == []


def test_a_full_bucket_is_worked_through(hasher):
    text = " ".join(unrelated(5, 60))
    signatures = np.repeat(hasher.signatures([text]), 2000, axis=0)
    assert set(groups(signatures, np.arange(2000)).tolist()) == {0}
