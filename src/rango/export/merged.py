"""A checkpoint with the adapter in its weights: the base's format, no adapter needed any more."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rango.adapters.attach import Adapted
from rango.adapters.files import load_adapter, read_adapter
from rango.adapters.matching import noted_revision
from rango.adapters.merge import base_weight, merged_module, merged_whole, module_delta
from rango.base.config import BaseDtype
from rango.base.linear import QuantizedLinear, quantized_linear
from rango.base.load import Base, base_from_model, load_base
from rango.base.quantizer import quantized_as
from rango.base.save import save_base
from rango.base.tokenizer import load_tokenizer
from rango.data.templates.choose import TEMPLATE, load_template, save_template
from rango.errors import ConfigError
from rango.files.atomic import refuse_existing
from rango.progress import Progress, silent

Onto = Literal["stored", "nf4", "int8"]


@dataclass(frozen=True)
class MergeReport:
    """What merging did.

    update: ‖ΔW‖ / ‖W‖ over the modules with a low-rank update together; what the adapter holds
        whole, such as a head, counts among `modules` alone.
    surviving: share of ΔW that is left once the sum is rounded to the type on disk:
        ⟨W' − W, ΔW⟩ / ⟨ΔW, ΔW⟩, over the same modules. Near 1 in fp32 and bf16; quantizing again
        may erase most of a small update, in NF4 above all, and never touches a head, whose large
        one would hide that.
    """

    output: str
    modules: int
    dtype: str
    onto: Onto
    update: float
    surviving: float

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


def merge_checkpoint(
    base_source: str | Path,
    adapter_folder: str | Path,
    output: str | Path,
    *,
    dtype: BaseDtype = "as stored",
    onto: Onto = "stored",
    double_quant: bool = True,
    progress: Progress = silent,
) -> MergeReport:
    """Write base + adapter as a Hugging Face checkpoint (W + ΔW in fp32, one cast).

    onto="stored" adds to the weights as the base stores them; "nf4" and "int8" add to the
    quantized weights (those that were trained over) and quantize the sum again, so read
    `surviving`.

    Raises AdapterError if the adapter is another base's, CheckpointError, OutputExistsError,
    StorageError; nothing half-written is left.
    """
    if onto not in get_args(Onto):
        raise ConfigError(f"onto: expected one of {', '.join(get_args(Onto))}; found {onto!r}")
    output = Path(output)
    refuse_existing(output)  # before the work rather than after it
    file = read_adapter(adapter_folder)
    noted = file.facts.get("base")
    base = load_base(
        base_source,
        revision=noted_revision(noted, base_source),
        dtype=dtype,
        compute="as stored",
        quantize="none" if onto == "stored" else onto,
        double_quant=double_quant,
        labels=file.labels or None,
        progress=progress,
    )
    if onto not in ("stored", base.quantize):
        raise ConfigError(
            f"onto {onto}: {base_source} is stored in {base.quantize}; expected stored or "
            f"{base.quantize}"
        )
    adapted = load_adapter(base, adapter_folder)
    dots = _merge_all(adapted, base, onto, double_quant, progress)
    adapted.detach()
    _untie_if_they_differ(base.model)
    merged = base_from_model(base.model, source=f"{base_source} + {adapter_folder}")
    save_base(dataclasses.replace(merged, path=base.path), output, progress=progress)
    if base.path is not None and (Path(adapter_folder) / TEMPLATE).is_file():
        tokenizer, _ = load_template(load_tokenizer(base.path), adapter_folder)
        save_template(tokenizer, output, overwrite=True)
    return MergeReport(
        output=str(output),
        modules=dots.modules,
        dtype=str(base.dtype).removeprefix("torch."),
        onto=onto,
        update=(dots.delta_delta / dots.weight_weight) ** 0.5 if dots.weight_weight else 0.0,
        surviving=dots.effect_delta / dots.delta_delta if dots.delta_delta else 1.0,
    )


@dataclass
class _Dots:
    """Inner products summed over modules."""

    modules: int = 0
    weight_weight: float = 0.0
    delta_delta: float = 0.0
    effect_delta: float = 0.0

    def add(self, weight: Tensor, delta: Tensor, merged: Tensor) -> None:
        self.modules += 1
        self.weight_weight += float(weight.square().sum())
        self.delta_delta += float(delta.square().sum())
        self.effect_delta += float(((merged - weight) * delta).sum())


@torch.no_grad()
def _merge_all(
    adapted: Adapted, base: Base, onto: Onto, double_quant: bool, progress: Progress
) -> _Dots:
    """Give each stand-in a merged base layer, for detach() to leave in the model."""
    dots = _Dots()
    plain = _skeleton(base)
    for number, (name, stand_in) in enumerate(adapted.modules.items()):
        delta = module_delta(stand_in, 0)
        if delta is None:
            continue
        weight = base_weight(stand_in.base_layer).float()
        merged = merged_module(stand_in.base_layer, delta, base.dtype)
        if onto != "stored" and isinstance(stand_in.base_layer, QuantizedLinear):
            bias = stand_in.base_layer.bias
            again = quantized_as(onto, base_weight(merged), double_quant)
            merged = quantized_linear(again, bias)
        dots.add(weight, delta, base_weight(merged).float())
        # quantized, GPT-2's weights are (out, in); the checkpoint wants them as its own class does
        if isinstance(plain.get_submodule(name), Conv1D):
            merged = _as_conv1d(merged)
        stand_in.base_layer = merged
        progress("merging", number + 1, len(adapted.modules), "module")
    for layer in adapted.saved.values():
        if layer.saves[0]:
            layer.base_layer = merged_whole(layer, 0)
            dots.modules += 1
    return dots


def _skeleton(base: Base) -> nn.Module:
    with torch.device("meta"):
        return type(base.model)(copy.deepcopy(base.config))


def _as_conv1d(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Linear):
        return module
    conv = Conv1D(module.out_features, module.in_features)
    conv.weight = nn.Parameter(module.weight.T.contiguous(), requires_grad=False)
    conv.register_parameter("bias", module.bias)
    return conv


def _untie_if_they_differ(model: PreTrainedModel) -> None:
    """An adapted embedding is no longer the head that it was tied to."""
    output = model.get_output_embeddings()
    if output is not None and output.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
