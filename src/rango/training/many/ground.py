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
from rango.adapters.targets import Target, check_adapter, find_targets, pattern_value
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
    """What each job adapts: known before the bank is attached, which changes the modules' names.
    Jobs that adapt the same modules share the answer."""

    def __init__(self, base: Base, adapters: Iterable[LoraConfig]) -> None:
        """Raises ConfigError and TargetError for one of `adapters` that does not fit."""
        self._found: dict[str, tuple[list[Target], list[Uncovered]]] = {}
        self._union: dict[str, Target] = {}
        for adapter in adapters:
            check_adapter(adapter)
            key = _modules_of(adapter)
            if key not in self._found:
                self._found[key] = _find(base.model, adapter)
            for target in self.of(adapter):
                known = self._union.get(target.name, target)
                self._union[target.name] = replace(target, r=max(target.r, known.r))

    def of(self, adapter: LoraConfig) -> list[Target]:
        """An adapter's targets: of one that was given, but for its rank and alpha."""
        return [
            replace(
                target,
                r=pattern_value(adapter.rank_pattern, target.module, adapter.r),
                lora_alpha=pattern_value(adapter.alpha_pattern, target.module, adapter.lora_alpha),
            )
            for target in self._found[_modules_of(adapter)][0]
        ]

    def left_by(self, adapter: LoraConfig) -> list[Uncovered]:
        """The weights that it leaves as they are."""
        return self._found[_modules_of(adapter)][1]

    def union(self) -> list[Target]:
        """The sites of all adapters, each with the largest rank that any has there."""
        return list(self._union.values())


def _modules_of(adapter: LoraConfig) -> str:
    """What decides which modules are adapted, and the patterns, which are checked with them."""
    plain = dataclasses.asdict(adapter)
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora"):
        plain.pop(name)
    return json.dumps(plain, sort_keys=True)


def _find(model: Any, adapter: LoraConfig) -> tuple[list[Target], list[Uncovered]]:
    targets = find_targets(model, adapter)
    covered = {target.module for target in targets}
    head = model.get_output_embeddings()
    if any(model.get_submodule(name) is head for name in covered):
        raise TargetError(
            "the head sees only some tokens of a batch, so jobs that share batches cannot adapt "
            "it; leave it out of target_modules, or train that job alone"
        )
    return targets, uncovered_weights(model, covered)


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
