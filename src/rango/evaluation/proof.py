"""The proof: what is on disk, read back into the base, computes what was trained."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rango.adapters.attach import Adapted
from rango.adapters.files import FACTS, load_adapter, read_adapter
from rango.adapters.matching import load_base_for
from rango.base.config import BaseDtype, Quantize
from rango.base.load import Base
from rango.base.tokenizer import load_tokenizer
from rango.data.templates.choose import load_template
from rango.data.tokens.tokenize import render_prompt
from rango.errors import CheckpointError, VerificationError
from rango.evaluation.checks import (
    READ_BACK_LIMIT,
    Check,
    acts,
    at_most,
    matched,
    merged_layers,
    merged_model,
    moved,
    recorded_probe,
)
from rango.evaluation.coverage import Coverage, count_weights, cover
from rango.evaluation.merging import layer_errors
from rango.evaluation.probe import difference, observe, probe_ids, unit_of
from rango.files.atomic import write_text
from rango.generation.generate import Prompt
from rango.progress import Progress, silent


@dataclass(frozen=True)
class Proof:
    """Checks of an adapter on disk, with what they found module by module."""

    checks: tuple[Check, ...]
    coverage: Coverage
    layers: dict[str, float]
    """Relative error of each layer merged against unmerged."""

    @property
    def passed(self) -> bool:
        """No check failed."""
        return all(check.passed is not False for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: passed, modules (their number), share_of_weights, share_of_linear_weights,
        checks by name, matched (weights by module), layers (merge error by module)."""
        checks = {check.name: dataclasses.asdict(check) for check in self.checks}
        for check in checks.values():
            if check["value"] is not None and not math.isfinite(check["value"]):
                check["value"] = None  # JSON has no infinity
        return {
            "passed": self.passed,
            "modules": len(self.coverage.modules),
            "share_of_weights": self.coverage.share,
            "share_of_linear_weights": self.coverage.linear_share,
            "checks": {
                name: {key: value for key, value in check.items() if key != "name"}
                for name, check in checks.items()
            },
            "matched": self.coverage.modules,
            "layers": self.layers,
        }

    def require(self) -> None:
        """Raise VerificationError naming every check that failed."""
        failed = [
            f"{check.name}: found {check.value}, limit {check.limit} ({check.detail})"
            for check in self.checks
            if check.passed is False
        ]
        if failed:
            raise VerificationError("the adapter failed its proof: " + "; ".join(failed))


def prove(
    base: Base | nn.Module,
    adapter_folder: str | Path,
    *,
    samples: Sequence[Sequence[int]],
    expected: Sequence[Tensor],
    progress: Progress = silent,
) -> Proof:
    """Prove an adapter at the end of its training.

    base: with all rows detached; it is left so. samples: token ids. expected: what
    `observe(adapted.model, samples)` gave while training.
    Raises AdapterError where the adapter does not even load.
    """
    with _attached(base, adapter_folder) as (adapted, coverage):
        found = observe(adapted.model, samples)
        read_back = difference(found, expected, unit_of(adapted.model))
        checks = [
            at_most(
                "read back",
                read_back,
                READ_BACK_LIMIT,
                "relative difference of the outputs from those in training",
            ),
            moved(adapted, every=True),
        ]
        return _proof(adapted, coverage, samples, checks, progress)


def verify(
    base_source: str | Path | Base,
    adapter_folder: str | Path,
    *,
    samples: Sequence[Sequence[int]] | None = None,
    prompts: Sequence[Prompt] | None = None,
    dtype: BaseDtype | None = None,
    quantize: Quantize | None = None,
    progress: Progress = silent,
) -> Proof:
    """Check an adapter on disk against a base, without the run that made it.

    The base is loaded as the adapter's rango.json says it was trained (dtype, quantize), unless
    given; with the probe stored there its outputs are compared. samples (token ids) or prompts
    serve for the other checks; without them, fixed tokens.
    Raises CheckpointError, AdapterError where base or adapter do not load; a failed check does not
    raise (see `Proof.require`).
    """
    facts = read_adapter(adapter_folder).facts
    probe = _section(facts, "proof", "probe")
    if isinstance(base_source, Base):
        base = base_source
    else:
        base = load_base_for(
            adapter_folder, base_source, dtype=dtype, quantize=quantize, progress=progress
        )
    if samples is None:
        samples = _samples(base, adapter_folder, prompts)
    with _attached(base, adapter_folder) as (adapted, coverage):
        checks = [moved(adapted, every=False), recorded_probe(adapted, probe)]
        return _proof(adapted, coverage, samples, checks, progress)


def write_proof(adapter_folder: str | Path, proof: Proof) -> None:
    """Put a proof into the adapter's rango.json, beside the probe that is there."""
    path = Path(adapter_folder) / FACTS
    facts = read_adapter(adapter_folder).facts
    kept = {"probe": probe} if (probe := _section(facts, "proof", "probe")) else {}
    facts["proof"] = {**proof.as_dict(), **kept}
    write_text(path, json.dumps(facts, indent=2, ensure_ascii=False) + "\n", overwrite=True)


@contextmanager
def _attached(
    base: Base | nn.Module, adapter_folder: str | Path
) -> Iterator[tuple[Adapted, Coverage]]:
    """The adapter read strictly from disk into the base, and taken off again."""
    census = count_weights(base if isinstance(base, nn.Module) else base.model)
    adapted = load_adapter(base, adapter_folder)
    try:
        yield adapted, cover(adapted, census)
    finally:
        adapted.detach()


def _proof(
    adapted: Adapted,
    coverage: Coverage,
    samples: Sequence[Sequence[int]],
    first: Sequence[Check],
    progress: Progress,
) -> Proof:
    """The checks that need no training run, after those that do."""
    layers = layer_errors(adapted, progress=progress)
    checks = [
        matched(coverage),
        *first,
        acts(adapted, samples),
        merged_layers(adapted, layers),
        *merged_model(adapted, samples),
    ]
    return Proof(tuple(checks), coverage, layers)


def _samples(
    base: Base, adapter_folder: str | Path, prompts: Sequence[Prompt] | None
) -> list[list[int]]:
    if not prompts:
        return [probe_ids(base.model)]
    if base.path is None:
        raise CheckpointError("verify: a base in memory has no tokenizer for prompts; give samples")
    tokenizer, _ = load_template(load_tokenizer(base.path), adapter_folder)
    return [render_prompt(tokenizer, prompt) for prompt in prompts]


def _section(facts: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A part of rango.json, empty where it is missing."""
    for key in keys:
        found = facts.get(key)
        facts = found if isinstance(found, Mapping) else {}
    return facts
