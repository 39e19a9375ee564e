"""What the jobs of a run stand on: one base, and a bank with room for the adapters of all."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rango.adapters.attach import Adapted, attach_targets
from rango.adapters.config import LoraConfig
from rango.adapters.targets import Target, find_targets
from rango.base.config import BaseConfig
from rango.base.load import Base, load_configured
from rango.base.packing import packing_probe
from rango.base.roles import Uncovered, uncovered_weights
from rango.base.tokenizer import load_tokenizer
from rango.data.tokens.pack import Packed
from rango.errors import ConfigError, TargetError
from rango.progress import Progress

_FILES_A_JOB, _OTHER_FILES = 12, 256


@dataclass(frozen=True)
class Ground:
    """Of a run of many jobs."""

    base: Base
    tokenizer: Any
    targets: JobTargets
    packed: Packed
    """How samples share rows, where the model, and every job, lets them."""
    adapted: Adapted


@contextmanager
def ground(
    config: BaseConfig,
    adapters: Iterable[LoraConfig],
    *,
    rows: int,
    pack: bool,
    progress: Progress,
) -> Iterator[Ground]:
    """Load a base, and attach a bank of `rows` rows to it that have room for any of `adapters`;
    detached at the end.

    Raises ConfigError, CheckpointError, TokenizerError, TargetError.
    """
    _allow_files(rows)
    tokenizer = load_tokenizer(config.model, config.revision)
    base = load_configured(config, progress=progress)
    if base.kind != "causal":
        raise ConfigError(
            f"{base.source}: {type(base.model).__name__} does not continue text, and many jobs at "
            "once train models that do; train a classifier with rango train"
        )
    targets = JobTargets(base, adapters)
    packed = packing_probe(base.model).how if pack else False
    adapted = attach_targets(base.model, targets.union(), rows=rows, base=base)
    try:
        yield Ground(base, tokenizer, targets, packed, adapted)
    finally:
        adapted.detach()


class JobTargets:
    """What each job adapts; jobs with the same adapter share the answer."""

    def __init__(self, base: Base, adapters: Iterable[LoraConfig]) -> None:
        """Raises ConfigError and TargetError for one of `adapters` that does not fit."""
        self._model = base.model
        self._found: dict[str, tuple[list[Target], list[Uncovered]]] = {}
        for adapter in adapters:
            self.of(adapter)

    def of(self, adapter: LoraConfig) -> list[Target]:
        """An adapter's targets."""
        return self._of(adapter)[0]

    def left_by(self, adapter: LoraConfig) -> list[Uncovered]:
        """The weights that it leaves as they are."""
        return self._of(adapter)[1]

    def union(self) -> list[Target]:
        """The sites of all adapters so far, each with the largest rank that any has there."""
        sites: dict[str, Target] = {}
        for targets, _ in self._found.values():
            for target in targets:
                known = sites.get(target.name)
                r = max(target.r, known.r) if known else target.r
                sites[target.name] = replace(target, r=r)
        return list(sites.values())

    def _of(self, adapter: LoraConfig) -> tuple[list[Target], list[Uncovered]]:
        key = json.dumps(dataclasses.asdict(adapter), sort_keys=True)
        if key not in self._found:
            targets = find_targets(self._model, adapter)
            covered = {target.module for target in targets}
            head = self._model.get_output_embeddings()
            if any(self._model.get_submodule(name) is head for name in covered):
                raise TargetError(
                    "the head sees only some tokens of a batch, so jobs that share batches cannot "
                    "adapt it; leave it out of target_modules, or train that job alone"
                )
            self._found[key] = targets, uncovered_weights(self._model, covered)
        return self._found[key]


def _allow_files(rows: int) -> None:
    """Raise the soft limit on open files to what the rows need; ConfigError where that is refused.

    A job in training maps the files of its samples and writes its log.
    """
    needed = _FILES_A_JOB * rows + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(
            f"rows: {rows} jobs at once need {needed} open files, and the system allows "
            f"{hard}; lower rows"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
