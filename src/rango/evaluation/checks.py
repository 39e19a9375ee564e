"""The checks of an adapter that a proof is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rango.adapters.attach import Adapted
from rango.evaluation.coverage import Coverage
from rango.evaluation.merging import (
    LAYER_LIMITS,
    MODEL_LIMITS,
    available_memory,
    merged_bytes,
    model_error,
)
from rango.evaluation.probe import (
    activation_dtype,
    check_probe,
    computes_in,
    difference,
    model_dtype,
    observe,
    unit_of,
)

READ_BACK_LIMIT = 1e-5
"""Largest relative difference between the outputs in training and those after reading back."""
PROBE_LIMITS = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference from the probe, in units of the outputs' rms; another machine adds up in
another order."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    name: str
    passed: bool | None
    """None: not run, for the reason in `detail`."""
    value: float | None
    limit: float | None
    """What `value` may be at most, or, of counts, must be at least; None where any will do."""
    detail: str


def at_most(name: str, value: float, limit: float, detail: str) -> Check:
    """A check that `value` is within `limit`."""
    return Check(name, value <= limit, value, limit, detail)


def matched(coverage: Coverage) -> Check:
    """The targets are modules of the base."""
    count = len(coverage.modules)
    detail = (
        f"every tensor is finite and found its place in one of {count} modules: "
        f"{coverage.share:.1%} of the base's weights, {coverage.linear_share:.1%} of its linear "
        "layers' (the head left out)"
    )
    return Check("modules matched", count > 0, count, 1, detail)


def moved(adapted: Adapted, *, every: bool) -> Check:
    """The factor that starts at zero (lora_B, at embeddings A) is not zero: each, or any."""
    sites = {name: site for name, site in adapted.sites.items() if site.ranks[0]}
    still = [
        name
        for name, site in sites.items()
        if not site.factors(0)[0 if site.embedding else 1].any()
    ]
    count = len(sites) - len(still)
    limit = len(sites) if every else 1
    detail = f"of {len(sites)} lora_B, those that moved from zero"
    if still:
        detail += f"; still zero: {_names(still)}"
    return Check("lora_B moved", count >= limit, count, limit, detail)


def acts(adapted: Adapted, samples: Sequence[Sequence[int]]) -> Check:
    """The adapter changes what the base computes."""
    with adapted.disabled():
        base = observe(adapted.model, samples)
    change = difference(observe(adapted.model, samples), base, unit_of(adapted.model))
    detail = "relative change of the base's outputs, which must not be zero"
    return Check("acts", change > 0, change, None, detail)


def merged_layers(adapted: Adapted, layers: Mapping[str, float]) -> Check:
    """Each layer merged computes what it computes unmerged; `layers` are layer_errors()."""
    if not layers:
        return Check("merged layers", None, None, None, "not run: no layer is adapted")
    worst = max(layers, key=lambda name: layers[name])
    limit = LAYER_LIMITS.get(model_dtype(adapted.model), 1e-5)
    detail = f"relative error of the worst of {len(layers)} layers, {worst}"
    return at_most("merged layers", layers[worst], limit, detail)


def merged_model(adapted: Adapted, samples: Sequence[Sequence[int]]) -> list[Check]:
    """So does the whole model, and unmerging restores it; where a merged copy fits in memory."""
    needed = merged_bytes(adapted)
    free = available_memory(adapted.bank.parameters.device)
    limit = MODEL_LIMITS.get(model_dtype(adapted.model), 1e-5)
    if free is not None and 1.25 * needed > free:
        reason = f"not run: a merged copy needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        return [Check("merged model", None, None, limit, reason)]
    merged, restored = model_error(adapted, samples)
    return [
        at_most("merged model", merged, limit, "relative error of the outputs, merged in memory"),
        at_most("unmerged again", restored, 0.0, "difference of the outputs after unmerging"),
    ]


def recorded_probe(adapted: Adapted, probe: Mapping[str, Any]) -> Check:
    """The outputs are those of a probe noted in training, over a base held in the same way."""
    name = "probe"
    if not probe:
        return Check(name, None, None, None, "not run: rango.json holds no probe")
    held = computes_in(adapted)
    noted = {key: probe.get(key) for key in held}
    if held != noted:
        detail = f"not run: it was noted over another kind of base: {noted}; this one is {held}"
        return Check(name, None, None, None, detail)
    limit = PROBE_LIMITS.get(activation_dtype(adapted.model), 1e-3)
    detail = "largest difference from the outputs noted in training, in units of their rms"
    return at_most(name, check_probe(adapted, probe), limit, detail)


def _names(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
