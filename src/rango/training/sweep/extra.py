"""Optuna, which only a sweep needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rango.errors import ConfigError
from rango.report.format import option
from rango.training.sweep.candidate import FAILED, FINISHED, PRUNED, TRAINING, Candidate
from rango.training.sweep.space import Range, Space


def optuna() -> Any:
    """The library. Raises ConfigError where it is missing."""
    try:
        import optuna as found
    except ImportError as error:
        raise ConfigError("a sweep needs optuna: pip install 'rango[sweep]'") from error
    return found


@contextmanager
def silent() -> Iterator[None]:
    """Within the block Optuna says nothing that is less than an error."""
    logging = optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def distributions(space: Space) -> dict[str, Any]:
    """The space in Optuna's words."""
    known = optuna().distributions
    found: dict[str, Any] = {}
    for name, dimension in space.dimensions.items():
        if not isinstance(dimension, Range):
            values = [label(value) for value in dimension.values]
            found[name] = known.CategoricalDistribution(values)
        else:
            kind = known.IntDistribution if dimension.whole else known.FloatDistribution
            found[name] = kind(dimension.low, dimension.high, log=dimension.log)
    return found


def label(value: Any) -> Any:
    """A value as Optuna takes it: no list."""
    return option(value) if isinstance(value, list) else value


def frozen(space: Space, candidate: Candidate) -> Any:
    """The candidate as a trial of Optuna, its losses under the numbers of the rungs, from 1."""
    state = optuna().trial.TrialState
    states = {
        TRAINING: state.RUNNING,
        FINISHED: state.COMPLETE,
        PRUNED: state.PRUNED,
        FAILED: state.PRUNED,  # the worst of all: a failed trial would be forgotten
    }
    rungs = dict(enumerate(candidate.losses, 1))
    ended = candidate.status in (FINISHED, PRUNED)
    return optuna().trial.create_trial(
        state=states[candidate.status],
        value=candidate.losses[-1] if ended else None,
        params={name: label(value) for name, value in candidate.params.items()},
        distributions=distributions(space),
        user_attrs={"job": candidate.name},
        intermediate_values={} if candidate.status == FAILED else rungs,
    )
