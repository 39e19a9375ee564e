"""Which candidate comes next."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import optuna

from rango.training.sweep.candidate import Candidate
from rango.training.sweep.propose import beginning, next_by_tpe
from rango.training.sweep.space import Params
from rango.training.sweep.written import parse_space

SPACE = parse_space({"learning_rate": "1e-5..1e-1", "r": "2,4,8", "targets": "mlp,q_proj+v_proj"})


def loss(params: Params) -> float:
    """Best at a learning rate of 1e-3."""
    return float((math.log10(params["learning_rate"]) + 3) ** 2)


def seen(count: int, seed: int = 0) -> list[Candidate]:
    """Candidates that were pruned at the first rung, but for the best, which still train."""
    found = [
        Candidate(number, params, "pruned", losses=[loss(params)])
        for number, params in enumerate(SPACE.spread(count, seed))
    ]
    best = sorted(found, key=lambda candidate: candidate.losses)[: count // 3]
    for candidate in best:
        candidate.status = "training"
    return found


def test_it_follows_from_seed_and_history_alone() -> None:
    before = seen(9)
    first = next_by_tpe(SPACE, before, 7)
    np.random.seed(3)
    optuna.create_study().ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    assert next_by_tpe(SPACE, [dataclasses.replace(one) for one in before], 7) == first
    assert next_by_tpe(SPACE, before, 8) != first
    assert next_by_tpe(SPACE, before[:-1], 7) != first
    assert first["target_modules"] in ("mlp", ["q_proj", "v_proj"])


def test_it_learns_where_the_optimum_is() -> None:
    """Also from those that have passed a rung and still train."""
    asked = [next_by_tpe(SPACE, seen(12, seed), seed) for seed in range(30)]
    near = [abs(math.log10(params["learning_rate"]) + 3) < 1 for params in asked]
    assert sum(near) >= 22  # of 30; half would be by chance


def test_nothing_is_tried_twice() -> None:
    space = parse_space({"r": "2,4,8", "schedule": "linear,cosine", "batch_size": "1..3"})
    tried: list[Candidate] = []
    for number in range(18):
        params = next_by_tpe(space, tried, 0)
        assert params not in [one.params for one in tried]
        tried.append(Candidate(number, params, "finished", losses=[float(params["r"])] * 3))
    for sampler in ("random", "tpe"):
        begun = beginning(space, sampler, 15, 15, 4)
        assert all(params not in begun[:place] for place, params in enumerate(begun))
        assert len(begun) == 15


def test_how_it_begins() -> None:
    assert len(beginning(SPACE, "tpe", 24, 4, 0)) == 8
    assert len(beginning(SPACE, "tpe", 24, 12, 0)) == 12
    assert len(beginning(SPACE, "tpe", 5, 12, 0)) == 5
    assert len(beginning(SPACE, "random", 24, 4, 0)) == 24


def test_a_grid_is_tried_whole_and_in_no_order() -> None:
    """Along the way to the optimum each is the best so far, and nobody would be pruned."""
    small = parse_space({"r": "2,4,8", "lr": "1e-4..1e-2:5"})
    every = [*small.grid()]
    found = beginning(small, "grid", 15, 2, 0)
    assert found != every
    assert sorted(found, key=every.index) == every
    assert beginning(small, "tpe", 15, 2, 0) == found  # as many as there are points
    assert beginning(small, "grid", 15, 2, 1) != found
