"""What a base is made of, and what quantization does to it, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rango.base.architecture import architecture
from rango.base.checkpoint import Checkpoint, open_checkpoint
from rango.base.classifier import is_classifier, labels_of
from rango.base.config import Quantize
from rango.base.fingerprint import combine, resolve, tied_vocabulary
from rango.base.linear import QuantizedLinear
from rango.base.model import Base
from rango.base.product import Quantized, dequantize
from rango.base.quantized_files import is_quantized
from rango.base.quantizer import LoadPlan, Measure, quantized_as
from rango.base.roles import adaptable_modules
from rango.base.source import local_folder
from rango.base.stored import NARROW
from rango.base.stream import stream_model
from rango.errors import CheckpointError
from rango.numerics.nf4 import NF4Tensor
from rango.progress import Progress, silent


@dataclass(frozen=True)
class LayerFacts:
    """One quantized layer."""

    name: str
    shape: tuple[int, ...]
    """(out, in)."""
    nbytes: int
    """With its constants."""
    ratio: float
    """Bytes before quantization over bytes after."""
    zeros: float
    """Share of the weights that are exactly zero."""
    error: float | None
    """‖W − W_quantized‖ / ‖W‖; None without the source's weights."""


@dataclass(frozen=True)
class BaseFacts:
    """A base's composition. Sizes are in bytes as held in memory."""

    source: str
    architecture: str
    """transformers' class."""
    model_type: str
    kind: str
    fingerprint: str
    dtype: str
    """Of the weight matrices that are not quantized."""
    quantize: str
    double_quant: bool
    tied: bool
    """Whether the output head is the embedding."""
    parameters: dict[str, int]
    """By part: linear, embedding, head, other, and total; tied ones once."""
    nbytes: int
    linear_nbytes: int
    ratio_linear: float
    """Bytes of the linear layers before quantization over bytes held; 1 when not quantized."""
    ratio_whole: float
    """The same of the whole model."""
    zeros: float | None
    """Share of the quantized weights that are exactly zero; None when not quantized."""
    error: float | None
    """‖W − W_quantized‖ / ‖W‖ over all quantized layers together."""
    layers: tuple[LayerFacts, ...]
    labels: tuple[str, ...] = ()
    """Of a classifier, in the order of its logits."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def inspect_base(
    source: Base | str | Path,
    *,
    quantize: Quantize = "none",
    double_quant: bool = True,
    against: str | Path | None = None,
    revision: str | None = None,
    progress: Progress = silent,
) -> BaseFacts:
    """The facts of a loaded base, or of a checkpoint, which is streamed and not held.

    With quantize="nf4" or "int8" an unquantized checkpoint is quantized tensor by tensor to measure
    what it would lose. Sizes are those of a base that load_base holds by default. The errors of a
    base that is already quantized are measured against the checkpoint `against`, or against the one
    it was quantized from when it was loaded.

    Raises CheckpointError as load_base does, and when `against` is another architecture's or is
    quantized itself.
    """
    if isinstance(source, Base):
        return _inspect_loaded(source, against, progress)
    checkpoint = open_checkpoint(local_folder(source, revision))
    already = is_quantized(checkpoint)
    shape = architecture(checkpoint)
    layers: list[_Measured] = []

    def quantize_and_measure(name: str, weight: Tensor) -> None:
        layers.append(_measure(name, quantized_as(quantize, weight, double_quant), weight))

    measuring = quantize != "none" and not already
    plan = LoadPlan(
        "none",
        double_quant,
        widen=checkpoint.dtype in NARROW,
        measure=quantize_and_measure if measuring else None,
    )
    streamed = stream_model(checkpoint, shape, plan, dtype=checkpoint.dtype, progress=progress)
    if already:
        layers = _quantized_layers(streamed.model, against, progress)
    own = combine(streamed.digests, tied_vocabulary(shape.config))
    return _facts(
        streamed.model,
        layers,
        source=str(source),
        kind=shape.kind,
        fingerprint=resolve(checkpoint.folder, own),
        dtype=checkpoint.dtype,
    )


def _inspect_loaded(base: Base, against: str | Path | None, progress: Progress) -> BaseFacts:
    if against is None and base.path is not None and not is_quantized(open_checkpoint(base.path)):
        against = base.path
    return _facts(
        base.model,
        _quantized_layers(base.model, against, progress),
        source=base.source,
        kind=base.kind,
        fingerprint=base.fingerprint,
        dtype=base.dtype,
    )


@dataclass(frozen=True)
class _Measured:
    facts: LayerFacts
    kind: Quantize
    nested: bool
    bytes_before: int
    squares: tuple[float, float] | None
    """‖W − W_quantized‖² and ‖W‖²."""


def _quantized_layers(
    model: PreTrainedModel, against: str | Path | None, progress: Progress
) -> list[_Measured]:
    held = {
        name: module.quantized
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    if against is None or not held:
        return [_measure(name, quantized, None) for name, quantized in held.items()]
    measured: dict[str, _Measured] = {}

    def compare(name: str, weight: Tensor) -> None:
        if name in held:
            measured[name] = _measure(name, held[name], weight)

    _show_linear_weights(open_checkpoint(local_folder(against)), compare, progress)
    unknown = sorted(set(held) - set(measured))
    if unknown:
        raise CheckpointError(f"{against}: no weights to compare with: {', '.join(unknown)}")
    return [measured[name] for name in held]


def _show_linear_weights(checkpoint: Checkpoint, measure: Measure, progress: Progress) -> None:
    if is_quantized(checkpoint):
        raise CheckpointError(
            f"{checkpoint.folder}: is quantized itself; errors are measured against the "
            "unquantized checkpoint"
        )
    plan = LoadPlan("none", double_quant=True, measure=measure)
    shape = architecture(checkpoint)
    stream_model(checkpoint, shape, plan, dtype=checkpoint.dtype, progress=progress)


def _measure(name: str, quantized: Quantized, weight: Tensor | None) -> _Measured:
    squares = None
    if weight is not None:
        if tuple(weight.shape) != tuple(quantized.shape):
            raise CheckpointError(
                f"{name}: expected shape {list(quantized.shape)}, found {list(weight.shape)}: the "
                "checkpoint to compare with is another model's"
            )
        original = weight.float()
        difference = original - dequantize(quantized, torch.float32)
        squares = (difference.pow_(2).sum().item(), original.pow(2).sum().item())
    before = quantized.dtype.itemsize * _elements(quantized.shape)
    facts = LayerFacts(
        name=name,
        shape=tuple(quantized.shape),
        nbytes=quantized.nbytes,
        ratio=before / quantized.nbytes,
        zeros=_zeros(quantized),
        error=_relative(squares),
    )
    kind: Quantize = "nf4" if isinstance(quantized, NF4Tensor) else "int8"
    nested = isinstance(quantized, NF4Tensor) and quantized.nested
    return _Measured(facts, kind, nested, before, squares)


def _zeros(quantized: Quantized) -> float:
    """Share of the weights whose level is zero; in NF4 counted by byte, as each holds two."""
    if not isinstance(quantized, NF4Tensor):
        return 1 - int(torch.count_nonzero(quantized.codes)) / quantized.codes.numel()
    counts = torch.bincount(quantized.packed.reshape(-1), minlength=256)
    is_zero = (quantized.code == 0).long()
    zeros_in_byte = (is_zero.unsqueeze(1) + is_zero.unsqueeze(0)).reshape(-1)
    total = _elements(quantized.shape)
    zeros = int((counts * zeros_in_byte).sum())
    if total % 2:  # the last byte's low nibble is padding
        zeros -= int(is_zero[int(quantized.packed.reshape(-1)[-1]) & 15])
    return zeros / total


def _facts(
    model: PreTrainedModel,
    measured: list[_Measured],
    *,
    source: str,
    kind: str,
    fingerprint: str,
    dtype: torch.dtype,
) -> BaseFacts:
    sizes = _sizes(model)
    layers = tuple(layer.facts for layer in measured)
    quantized = sum(layer.nbytes for layer in layers)
    before = sum(layer.bytes_before for layer in measured)
    names = {layer.name for layer in layers}
    rest = {
        part: sum(_bytes(p) for n, p in items if n not in names) for part, items in sizes.items()
    }
    linear, held = rest["linear"] + quantized, sum(rest.values()) + quantized
    weights = sum(_elements(layer.shape) for layer in layers)
    parameters = {part: sum(_count(p) for _, p in items) for part, items in sizes.items()}
    return BaseFacts(
        source=source,
        architecture=type(model).__name__,
        model_type=str(model.config.model_type),
        kind=kind,
        fingerprint=fingerprint,
        dtype=str(dtype).removeprefix("torch."),
        quantize=measured[0].kind if measured else "none",
        double_quant=bool(layers) and all(layer.nested for layer in measured),
        tied=bool(model.all_tied_weights_keys),
        parameters=parameters | {"total": sum(parameters.values())},
        nbytes=held,
        linear_nbytes=linear,
        ratio_linear=(rest["linear"] + before) / linear if linear else 1.0,
        ratio_whole=(held - quantized + before) / held,
        zeros=sum(la.zeros * _elements(la.shape) for la in layers) / weights if layers else None,
        error=_relative(_summed(layer.squares for layer in measured)),
        layers=layers,
        labels=labels_of(model.config) if is_classifier(model) else (),
    )


_Sized = Tensor | Quantized


def _sizes(model: PreTrainedModel) -> dict[str, list[tuple[str, _Sized]]]:
    """Every parameter by the part it belongs to, with its module's name; tied ones once."""
    roles = {name: module.role for name, module in adaptable_modules(model).items()}
    parts: dict[str, list[tuple[str, _Sized]]] = {
        part: [] for part in ("linear", "embedding", "head", "other")
    }
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            parts["linear"].append((name, module.quantized))
    for name, parameter in model.named_parameters():
        module_name, _, leaf = name.rpartition(".")
        role = roles.get(module_name, "other") if leaf == "weight" else "other"
        known = module_name in roles and leaf == "weight"
        part = role if role in ("embedding", "head") else "linear" if known else "other"
        parts[part].append((module_name if known else name, parameter))
    return parts


def _bytes(tensor: _Sized) -> int:
    return tensor.nbytes


def _count(tensor: _Sized) -> int:
    return _elements(tensor.shape)


def _elements(shape: Iterable[int]) -> int:
    return int(torch.Size(shape).numel())


def _summed(pairs: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [pair for pair in pairs if pair is not None]
    return (sum(a for a, _ in known), sum(b for _, b in known)) if known else None


def _relative(squares: tuple[float, float] | None) -> float | None:
    if squares is None:
        return None
    difference, original = squares
    return (difference / original) ** 0.5 if original > 0 else 0.0
