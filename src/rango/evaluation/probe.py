"""What a model computes on fixed tokens: kept in memory for the proof, or in rango.json for later.

A probe lets anyone who has the base and the adapter check, on another machine and years later,
that together they still compute what they computed at the end of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rango.adapters.attach import Adapted
from rango.base.classifier import is_classifier
from rango.base.stored import stored_dtype
from rango.errors import AdapterError
from rango.evaluation.loss import forward_logits
from rango.generation.inference import inference

_POSITIONS = 4
"""Positions of a probe."""
_TOP = 8
"""Largest values kept at each."""


def observe(model: nn.Module, samples: Sequence[Sequence[int]], most: int = 16) -> list[Tensor]:
    """The model's outputs at the last positions of each sample: fp32 (at most `most`, V), on CPU.

    Logits of a language model; of an encoder the last hidden state; one row (1, C) of a classifier.
    """
    with inference(model):
        return [_outputs(model, ids, range(max(0, len(ids) - most), len(ids))) for ids in samples]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor], unit: float = 0.0) -> float:
    """‖found − expected‖ / ‖expected‖ of the worst sample, or / `unit` where that is larger;
    infinite for shapes that differ or values that are not finite."""
    pairs = zip(found, expected, strict=True)
    return max((_relative(one, other, unit) for one, other in pairs), default=0.0)


def unit_of(model: nn.Module) -> float:
    """The least scale to measure differences of a model's outputs in: 1 for a classifier, whose few
    logits may all be near zero (as its base's are); no least one for others."""
    return 1.0 if is_classifier(model) else 0.0


def probe_ids(model: nn.Module, length: int = 24) -> list[int]:
    """Token ids that serve any model: spread over its vocabulary, always the same."""
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    vocabulary = getattr(text_config, "vocab_size", None)
    if not vocabulary:
        raise AdapterError(
            f"{type(model).__name__} has no vocabulary to draw a probe from; give samples"
        )
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (length,), generator=generator).tolist()


def make_probe(adapted: Adapted, ids: Sequence[int]) -> dict[str, Any]:
    """JSON facts of what the adapted model computes on `ids`, as it is routed now.

    ids; positions (spread over them, the last included); what computes_in() says; at each position
    rms, the root mean square of the outputs, and top: [index, value] of the largest, fp32 whole.
    """
    ids = [int(token) for token in ids]
    count = min(_POSITIONS, len(ids))
    places = [len(ids) - 1 - place * len(ids) // count for place in reversed(range(count))]
    with inference(adapted.model):
        outputs = _outputs(adapted.model, ids, places)
    return {
        "ids": ids,
        "positions": places,
        **computes_in(adapted),
        "rms": [_rms(row) for row in outputs],
        "top": [_top(row) for row in outputs],
    }


def check_probe(adapted: Adapted, probe: Mapping[str, Any]) -> float:
    """Largest difference from a probe's values, relative to the rms at their position (of a
    classifier, at least to 1).

    Raises AdapterError for a probe that is malformed.
    """
    try:
        ids = [int(token) for token in probe["ids"]]
        places = [int(place) for place in probe["positions"]]
        rms = [float(value) for value in probe["rms"]]
        top = [[(int(index), float(value)) for index, value in row] for row in probe["top"]]
        with inference(adapted.model):
            outputs = _outputs(adapted.model, ids, places)
        errors, unit = [], unit_of(adapted.model)
        for row, noted, values in zip(outputs, rms, top, strict=True):
            scale = max(noted, unit)
            found = [_rms(row), *(float(row[index]) for index, _ in values)]
            expected = [noted, *(value for _, value in values)]
            errors += [abs(a - b) / scale for a, b in zip(found, expected, strict=True)]
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as fault:
        raise AdapterError(f"rango.json: proof.probe is malformed: {fault!r}") from fault
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def activation_dtype(model: nn.Module) -> torch.dtype:
    """Type in which the model computes."""
    return torch.float32 if stored_dtype(model) else model_dtype(model)


def model_dtype(model: nn.Module) -> torch.dtype:
    """Type in which the model's weights are kept: that of its first floating parameter."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32


def computes_in(adapted: Adapted) -> dict[str, Any]:
    """What a probe's values depend on besides the adapter and the base's source: its dtype
    (float32, bfloat16), quantize and double_quant (false where nothing is in NF4), and compute
    where its arithmetic is of another type."""
    base = adapted.base
    quantize = base.quantize if base else "none"
    kept, computed = model_dtype(adapted.model), activation_dtype(adapted.model)
    facts = {
        "dtype": str(kept).removeprefix("torch."),
        "quantize": quantize,
        "double_quant": base.double_quant if base and quantize == "nf4" else False,
    }
    if computed != kept:
        facts["compute"] = str(computed).removeprefix("torch.")
    return facts


def _outputs(model: nn.Module, ids: Sequence[int], places: Sequence[int]) -> Tensor:
    """fp32 (places, V)."""
    columns = torch.tensor(list(places))
    input_ids = torch.tensor([list(ids)])
    if getattr(model, "can_generate", lambda: False)():
        outputs = forward_logits(model, input_ids, columns=columns)[0]
    else:
        outputs = forward_logits(model, input_ids)[0]
        outputs = outputs[columns] if outputs.ndim == 2 else outputs[None]
    return outputs.float().cpu()


def _relative(found: Tensor, expected: Tensor, unit: float) -> float:
    if found.shape != expected.shape:
        return math.inf
    error = float((found.double() - expected.double()).norm())
    scale = max(float(expected.double().norm()), unit)
    if error == 0:
        return 0.0
    return error / scale if math.isfinite(error) and scale > 0 else math.inf


def _rms(row: Tensor) -> float:
    return float(row.double().square().mean().sqrt())


def _top(row: Tensor) -> list[list[float | int]]:
    values, indices = row.topk(min(_TOP, len(row)))
    return [[i, v] for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
