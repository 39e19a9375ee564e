"""Which candidate comes next: a function of the space, the seed and the candidates before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rango.training.sweep.candidate import PRUNED, TRAINING, Candidate
from rango.training.sweep.extra import distributions, frozen, label, optuna, silent
from rango.training.sweep.space import Params, Space

_LEAST_SPREAD = 8
"""TPE learns from at least this many candidates that are spread over the space."""
_ATTEMPTS = 20


def beginning(space: Space, sampler: str, count: int, rows: int, seed: int) -> list[Params]:
    """The candidates that follow from no result: all of a grid, all at random, or those that begin
    before tpe has anything to learn from."""
    if sampler == "grid" or count == space.size:
        # shuffled: in order, each would be better than those before on the way to the optimum, and
        # halving would prune nobody
        points = [*space.grid()]
        return [points[place] for place in np.random.default_rng(seed).permutation(len(points))]
    if sampler == "tpe":
        count = min(count, max(rows, _LEAST_SPREAD))
    found: list[Params] = []
    for number, params in enumerate(space.spread(count, seed)):
        found.append(_new(space, found, seed, number) if params in found else params)
    return found


def next_by_tpe(space: Space, before: Sequence[Candidate], seed: int) -> Params:
    """The next one by the tree-structured Parzen estimator, one that has not been tried.

    The sampler is made anew each time, from the seed and the number of candidates, so that nothing
    but the arguments counts.
    """
    tried = [candidate.params for candidate in before]
    plain = [{name: label(value) for name, value in params.items()} for params in tried]
    with silent():
        study = optuna().create_study()
        study.add_trials([frozen(space, _so_far(candidate)) for candidate in before])
        for attempt in range(_ATTEMPTS):
            own = _seed(seed, len(before), attempt)
            study.sampler = optuna().samplers.TPESampler(seed=own, n_startup_trials=1)
            found = study.ask(distributions(space)).params
            if found not in plain:
                return {name: _value(space, name, found[name]) for name in space.dimensions}
    return _new(space, tried, seed, len(before))


def _so_far(candidate: Candidate) -> Candidate:
    """As if it had ended where it is: what still trains counts as bad in TPE, and those that passed
    a rung are the best there are."""
    passed = candidate.status == TRAINING and candidate.losses
    return replace(candidate, status=PRUNED) if passed else candidate


def _value(space: Space, name: str, found: object) -> object:
    """A value of the space from what Optuna calls it."""
    dimension = space.dimensions[name]
    if dimension.size is None:
        return found
    return next(value for value in dimension.values if label(value) == found)


def _new(space: Space, tried: Sequence[Params], seed: int, number: int) -> Params:
    """A point that has not been tried, any of them being as likely."""
    generator = np.random.default_rng(_seed(seed, number, _ATTEMPTS))
    while True:
        shares = generator.random(len(space.dimensions))
        named = zip(space.dimensions.items(), shares, strict=True)
        params = {name: dimension.at(float(share)) for (name, dimension), share in named}
        if params not in tried:
            return params


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
