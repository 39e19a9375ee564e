"""What an adapter on disk is: targets, ranks, effective ranks, norms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rango.adapters.files import AdapterFile, read_adapter
from rango.adapters.peft_format import PREFIX, pair_tensors
from rango.adapters.targets import pattern_value
from rango.errors import AdapterError
from rango.numerics.lowrank import scaling
from rango.numerics.svd import effective_rank, spectrum_of_product


@dataclass(frozen=True)
class ModuleFacts:
    """One adapted module."""

    module: str
    shape: tuple[int, int]
    """(out, in)."""
    r: int
    scaling: float
    effective_rank: int
    """Numerical rank of ΔW."""
    norm: float
    """Frobenius norm of ΔW, scaling included."""
    top_share: float
    """Share of ΔW's energy (squared norm) in its largest singular value."""


@dataclass(frozen=True)
class SavedFacts:
    """One layer that the adapter holds whole."""

    module: str
    shape: tuple[int, int]
    """(out, in)."""
    norm: float
    """Frobenius norm of its weight."""


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter directory at a glance."""

    folder: str
    r: int
    lora_alpha: float
    use_rslora: bool
    target_modules: str | list[str]
    parameters: int
    bytes: int
    base: dict[str, Any]
    modules: list[ModuleFacts]
    saved: list[SavedFacts] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """Of a classifier's adapter, in the order of its logits."""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


def inspect_adapter(folder: str | Path) -> AdapterFacts:
    """Read an adapter directory without its base. Raises AdapterError as read_adapter does."""
    file = read_adapter(folder)
    config = file.config
    return AdapterFacts(
        folder=str(file.folder),
        r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        target_modules=config.target_modules,
        parameters=sum(tensor.numel() for tensor in file.tensors.values()),
        bytes=sum(tensor.nbytes for tensor in file.tensors.values()),
        base=dict(file.facts.get("base") or {}),
        modules=[_module_facts(file, module, pair) for module, pair in _pairs(file)],
        saved=_saved(file),
        labels=list(file.labels),
    )


def _saved(file: AdapterFile) -> list[SavedFacts]:
    """The weights that are neither factor of an update."""
    if not file.config.modules_to_save:
        return []
    _, _, others = pair_tensors(file.tensors)
    return [
        SavedFacts(
            name.removeprefix(PREFIX).removesuffix(".weight"),
            (tensor.shape[0], tensor.shape[1]),
            float(tensor.float().norm()),
        )
        for name in others
        if name.endswith(".weight") and (tensor := file.tensors[name]).ndim == 2
    ]


def _pairs(file: AdapterFile) -> list[tuple[str, dict[str, Any]]]:
    pairs, _, _ = pair_tensors(file.tensors)
    faults = [
        f"{module}: lora_A {tuple(pair['A'].shape) if 'A' in pair else 'missing'}, "
        f"lora_B {tuple(pair['B'].shape) if 'B' in pair else 'missing'}"
        for module, pair in pairs.items()
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]
    ]
    if faults:
        raise AdapterError(f"{file.folder}: pairs that do not fit:\n  " + "\n  ".join(faults))
    return list(pairs.items())


def _module_facts(file: AdapterFile, module: str, pair: dict[str, Any]) -> ModuleFacts:
    lora_A, lora_B = pair["A"].float(), pair["B"].float()
    r = lora_A.shape[0]
    alpha = pattern_value(file.config.alpha_pattern, module, file.config.lora_alpha)
    scale = scaling(alpha, r, file.config.use_rslora)
    spectrum = spectrum_of_product(lora_B, lora_A)
    energy = float(spectrum.square().sum())
    return ModuleFacts(
        module=module,
        shape=(lora_B.shape[0], lora_A.shape[1]),
        r=r,
        scaling=scale,
        effective_rank=effective_rank(spectrum),
        norm=scale * energy**0.5,
        top_share=float(spectrum[0]) ** 2 / energy if energy else 0.0,
    )
