"""Deficit round-robin: full rounds, fair in tokens, nobody waits for ever."""

from __future__ import annotations

import copy
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rango.training.many.scheduler import Scheduler

COSTS = st.dictionaries(
    st.sampled_from("abcdefgh"), st.integers(min_value=1, max_value=500), min_size=1
)


@given(COSTS, st.integers(min_value=1, max_value=1000))
def test_each_round_has_someone_and_no_more_than_it_holds(costs: dict[str, int], room: int) -> None:
    scheduler = Scheduler(room)
    for _ in range(20):
        chosen = scheduler.choose(costs)
        assert chosen
        assert len(set(chosen)) == len(chosen)
        assert len(chosen) == 1 or sum(costs[name] for name in chosen) <= room


@given(COSTS)
def test_all_take_part_where_there_is_room(costs: dict[str, int]) -> None:
    scheduler = Scheduler(sum(costs.values()))
    for _ in range(5):
        assert scheduler.choose(costs) == list(costs)


@given(COSTS, st.integers(min_value=1, max_value=1000))
def test_nobody_waits_for_ever(costs: dict[str, int], room: int) -> None:
    scheduler = Scheduler(room)
    longest = 2 * len(costs) * (2 + max(costs.values()) // max(1, room // len(costs)))
    seen = Counter[str]()
    for _ in range(longest):
        seen.update(scheduler.choose(costs))
    assert seen.keys() == costs.keys()


def test_tokens_are_shared_evenly_in_the_long_run() -> None:
    costs = {f"long {i}": 1000 for i in range(2)} | {f"short {i}": 100 for i in range(14)}
    scheduler = Scheduler(1500)
    spent = Counter[str]()
    for _ in range(2000):
        for name in scheduler.choose(costs):
            spent[name] += costs[name]
    assert max(spent.values()) < 1.25 * min(spent.values())
    assert sum(spent.values()) > 0.9 * 2000 * 1500  # and rounds are full


def test_who_has_waited_longest_comes_first() -> None:
    scheduler = Scheduler(100)
    costs = {"a": 100, "b": 100, "c": 100}
    assert [scheduler.choose(costs)[0] for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


@given(COSTS, st.integers(min_value=1, max_value=600), st.integers(min_value=0, max_value=9))
def test_it_goes_on_as_it_would_have(costs: dict[str, int], room: int, rounds: int) -> None:
    scheduler = Scheduler(room)
    for _ in range(rounds):
        scheduler.choose(costs)
    again = Scheduler(room, copy.copy(scheduler.credits), copy.copy(scheduler.waited))
    for _ in range(5):
        assert scheduler.choose(costs) == again.choose(costs)


def test_newcomers_and_leavers() -> None:
    scheduler = Scheduler(100)
    scheduler.choose({"a": 60, "b": 60})
    scheduler.choose({"b": 60, "c": 60})
    assert scheduler.credits.keys() == scheduler.waited.keys() == {"b", "c"}
