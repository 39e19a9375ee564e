"""Quantization while loading, through transformers' own registration for quantizers.

transformers renames, splits and fuses a checkpoint's tensors on their way into the model (old
names, fused experts); a registered quantizer sees each one after that, one at a time. Rango
registers one that quantizes linear weights as they arrive and keeps the quantized tensors aside;
the layers are exchanged when everything has arrived, so the loader only ever sees plain layers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from rango.base.config import Quantize
from rango.base.linear import quantized_linear
from rango.base.product import Quantized
from rango.base.roles import adaptable_modules
from rango.base.stored import widen_the_rest
from rango.kernels.int8 import quantize_int8
from rango.kernels.nf4 import quantize_nf4

METHOD = "rango"

Measure = Callable[[str, Tensor], None]
"""Shown each linear weight as it passes: module name, weight (out, in)."""
Later = Callable[[Tensor, Callable[[Tensor], Quantized]], "Future[Quantized]"]
"""Quantizes a weight on another thread."""


@dataclass
class LoadPlan:
    """One load: what to quantize, what arrives quantized, and what came of it."""

    quantize: Quantize
    double_quant: bool
    widen: bool = False
    """Hold in fp32 what is not kept as stored: arithmetic is in fp32."""
    stored: dict[str, Callable[[], Quantized]] = field(default_factory=dict)
    """By the checkpoint's name of a weight, how to read it where it is stored quantized."""
    measure: Measure | None = None
    """Look at the linear weights instead of keeping them; they stay on the meta device."""
    later: Later | None = None
    """How to quantize while the loader goes on; None waits for each weight."""
    targets: set[str] = field(default_factory=set)
    quantized: dict[str, Quantized] = field(default_factory=dict)
    """By module name."""
    started: dict[str, Future[Quantized]] = field(default_factory=dict)
    """By module name, those that are being quantized."""
    problems: list[str] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadPlan:
        return self  # from_pretrained copies the configuration that carries it; the load is one

    def receive(self, name: str, value: Tensor, source: str, expected: torch.Size) -> bool:
        """Take weight `name` of the model if it is to be held quantized; say whether it was."""
        module_name = name.removesuffix(".weight")
        if source in self.stored:
            quantized = self.stored[source]()
            _check_shape(name, tuple(quantized.shape), tuple(expected))
            self.quantized[module_name] = quantized
            return True
        if not self.converts:
            return False
        _check_shape(name, tuple(value.shape), tuple(expected))
        if self.measure is not None:
            self.measure(module_name, value)
        elif self.later is not None:
            self.started[module_name] = self.later(value, self._quantize)
        else:
            self.quantized[module_name] = self._quantize(value)
        return True

    def settle(self) -> None:
        """Wait for what was started; what is wrong with a weight is added to the problems."""
        while self.started:
            module_name, started = self.started.popitem()
            try:
                self.quantized[module_name] = started.result()
            except ValueError as fault:
                self.problems.append(f"{module_name}.weight: {fault}")

    def _quantize(self, weight: Tensor) -> Quantized:
        return quantized_as(self.quantize, weight, self.double_quant)

    @property
    def converts(self) -> bool:
        """Whether linear weights are quantized, or looked at, as they arrive."""
        return self.quantize != "none" or self.measure is not None


def quantized_as(kind: Quantize, weight: Tensor, double_quant: bool) -> Quantized:
    """A weight (out, in) in NF4 or int8."""
    if kind == "int8":
        return quantize_int8(weight)
    return quantize_nf4(weight, double_quant=double_quant)


@register_quantization_config(METHOD)
class StreamConfig(QuantizationConfigMixin):
    """Carries a LoadPlan through from_pretrained."""

    def __init__(self, plan: LoadPlan) -> None:
        self.quant_method = METHOD
        self.plan = plan


@register_quantizer(METHOD)
class StreamQuantizer(HfQuantizer):
    """Hands the linear weights to the plan.

    A quantizer that works on the fly also makes transformers load one tensor at a time, where its
    threads would otherwise run ahead of the conversion and hold the whole model unquantized.
    """

    def __init__(self, quantization_config: StreamConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.plan = quantization_config.plan

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self.plan.widen:
            widen_the_rest(model)
        if self.plan.converts or self.plan.stored:
            self.plan.targets = {
                name
                for name, module in adaptable_modules(model).items()
                if module.role != "embedding" and (self.plan.stored or module.role != "head")
            }
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        return model

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Whether the plan sees this parameter."""
        module_name, _, leaf = param_name.rpartition(".")
        return leaf == "weight" and module_name in self.plan.targets

    def get_quantize_ops(self) -> ConversionOps:
        """The operation for one tensor, or for the parts of a split one."""
        return _Receive(self.plan)

    def is_serializable(self) -> bool:
        """False: save_base writes quantized models."""
        return False

    @property
    def is_trainable(self) -> bool:
        """The base is frozen."""
        return False


class _Receive(ConversionOps):
    def __init__(self, plan: LoadPlan) -> None:
        self.plan = plan

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        model: nn.Module | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if model is None:
            raise RuntimeError("transformers loaded a tensor without naming the model")
        passed_on = {}
        for name, values in input_dict.items():
            value = values[0] if isinstance(values, list) else values
            parameter = model.get_parameter(name)
            # the name in the file, where the tensor came through unchanged but for its name
            source = source_patterns[0] if len(input_dict) == 1 else ""
            try:
                taken = self._take(model, name, value, source, parameter)
            except ValueError as fault:
                self.plan.problems.append(f"{name}: {fault}")
                raise
            if taken:
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
                if missing_keys is not None:
                    missing_keys.discard(name)
            else:
                passed_on[name] = value
        return passed_on

    def _take(
        self, model: nn.Module, name: str, value: Tensor, source: str, parameter: Tensor
    ) -> bool:
        if name.removesuffix(".weight") not in self.plan.targets:
            return False
        expected = parameter.shape
        if isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D):
            # GPT-2 stores (in, out); here all linear layers are (out, in)
            expected = torch.Size(reversed(expected))
            if self.plan.converts:
                _check_shape(name, tuple(value.shape), tuple(parameter.shape))
                value = value.T.contiguous()
        taken = self.plan.receive(name, value, source, expected)
        if not taken:
            _check_shape(name, tuple(value.shape), tuple(parameter.shape))
        return taken


def exchange_layers(model: nn.Module, quantized: dict[str, Quantized]) -> None:
    """Put a quantized layer in the place of each named linear layer, keeping its bias."""
    while quantized:
        name, tensor = quantized.popitem()
        bias = getattr(model.get_submodule(name), "bias", None)
        model.set_submodule(name, quantized_linear(tensor, bias))


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ValueError(f"expected shape {list(expected)}, found {list(found)}")
