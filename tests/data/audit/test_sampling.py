"""The uniform sample, and what is said from it."""

from __future__ import annotations

from collections import Counter

import pytest

from rango.data.audit.advice import sample_count
from rango.data.audit.diversity import diversity
from rango.data.audit.ledger import Ledger
from rango.data.audit.reservoir import Reservoir


def drawn(view, count, size):
    reservoir = Reservoir(size)
    for index in range(count):
        reservoir.add(view(f"text {index}", index))
    return [one.index for one in reservoir.drawn()]


def test_all_are_drawn_where_there_is_room(view):
    assert drawn(view, 7, 10) == list(range(7))
    assert drawn(view, 10, 10) == list(range(10))


def test_the_draw_is_uniform_and_the_same_again(view):
    chosen = drawn(view, 4000, 800)
    assert chosen == drawn(view, 4000, 800)
    assert len(set(chosen)) == 800
    assert chosen == sorted(chosen)
    quarters = Counter(index // 1000 for index in chosen)
    assert all(140 < quarters[quarter] < 260 for quarter in range(4))


def test_distinct_runs_of_words(view):
    reservoir = Reservoir()
    reservoir.add(view("one two one two one"))
    found = diversity(reservoir.drawn(), 3, 9)
    assert found.distinct_bigrams == pytest.approx(2 / 4)
    assert found.distinct_fourgrams == 1
    assert (found.clusters, found.largest_cluster) == (3, 9)
    assert diversity([], 0, 0).distinct_bigrams == 0


@pytest.mark.parametrize(("distinct", "few"), [(10, True), (79, True), (80, False), (9000, False)])
def test_advice_says_that_it_is_a_rule_of_thumb(distinct, few):
    (finding,) = sample_count(distinct, 9000, 8)
    assert finding.severity == "note"
    assert "rule of thumb" in finding.message
    assert ("are few" in finding.message) == few


def test_advice_counts_different_samples(english, run):
    assert run(english).findings == ()
    (finding,) = [one for one in run(english * 20, rank=8).findings if one.check == "sample count"]
    assert finding.message.startswith("50 different samples are few")


def test_the_ledger_gives_back_what_it_was_told(view):
    with Ledger() as ledger:
        for index in range(300):
            ledger.add(view(f"¿Qué número es el {index}? " * 20, index))
        instance = ledger.instance(250, 3, "see ")
        assert instance.excerpt.startswith("see ¿Qué número es el 250?")
        assert len(instance.excerpt) <= 120
        assert (instance.origin.line, instance.other.line) == (251, 4)
        assert len(ledger) == 300
