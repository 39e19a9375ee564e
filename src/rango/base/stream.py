"""Stream a checkpoint into a model: one tensor at a time, each hashed as it passes."""

from __future__ import annotations

import ctypes
import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from rango.base.architecture import Architecture, quiet_transformers
from rango.base.checkpoint import Checkpoint, read_json, read_tensor
from rango.base.fingerprint import TensorDigest, digest_bytes
from rango.base.nf4_files import from_tensors, owner
from rango.base.quantizer import LoadPlan, StreamConfig, exchange_layers
from rango.errors import CheckpointError
from rango.files.tensors import TensorFile
from rango.numerics.nf4 import NF4Tensor
from rango.progress import Progress, silent

_TRIM_EVERY = 32 * 2**20
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Streamed:
    """A model as it came from a checkpoint, and the digest of each of its tensors."""

    model: PreTrainedModel
    digests: list[TensorDigest]


def stream_model(
    checkpoint: Checkpoint,
    architecture: Architecture,
    plan: LoadPlan,
    *,
    dtype: torch.dtype,
    keep: bool = True,
    progress: Progress = silent,
) -> Streamed:
    """Build the model and fill it from the checkpoint, quantizing as `plan` says.

    At any time at most the finished part of the model and the tensor in hand are held. With `keep`
    false the weights stay views of the files, for a look at them only.

    Raises CheckpointError listing every missing, unexpected and mis-shaped tensor.
    """
    arrivals = _Arrivals(checkpoint, plan, dtype, progress)
    model = _fill(checkpoint, architecture, plan, arrivals, dtype)
    if keep:
        _own_memory(model, arrivals.mapped)
    exchange_layers(model, plan.quantized)
    _restore_plainness(model)
    _read_generation_config(model, checkpoint.folder)
    model.requires_grad_(False)
    arrivals.finish()
    return Streamed(model.eval(), arrivals.digests)


def return_freed_memory() -> None:
    """Hand freed heap pages back to the system; glibc would keep tens of megabytes of them."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


class _Arrivals:
    """The tensors of a checkpoint, each read when the loader asks for it."""

    def __init__(
        self, checkpoint: Checkpoint, plan: LoadPlan, dtype: torch.dtype, progress: Progress
    ) -> None:
        self.plan = plan
        self.dtype = dtype
        self.progress = progress
        self.digests: list[TensorDigest] = []
        self.mapped: dict[int, tuple[TensorFile, str]] = {}
        """By address, the tensors handed out as views of their files."""
        self._checkpoint = checkpoint
        self._homes = checkpoint.homes
        self._waiting = dict.fromkeys(self._homes)
        self._total = sum(entry.nbytes for entry in checkpoint.entries.values())
        self._done = 0
        self._since_trim = 0
        self._last: tuple[TensorFile, str] | None = None

    def lazy_state(self) -> dict[str, Any]:
        """What transformers takes for a state dict; NF4 weights stand for all their parts."""
        state: dict[str, Any] = {name: _Lazy(self, name) for name in self._homes}
        for weight, group in nf4_groups(self._checkpoint).items():
            self.plan.stored[weight] = partial(self._read_nf4, weight, group)
            for name in group:
                state.pop(name, None)
            state[weight] = _Placeholder(self.dtype)
        return state

    def read(self, name: str) -> Tensor:
        """The tensor as a view of its file, hashed and counted."""
        file = self._homes[name]
        self._pass(file, name)
        tensor = read_tensor(file, name)
        self.mapped[tensor.untyped_storage().data_ptr()] = (file, name)
        return tensor

    def finish(self) -> None:
        """Hash what the model had no use for."""
        for name in list(self._waiting):
            self._pass(self._homes[name], name)
        return_freed_memory()

    def _read_nf4(self, weight: str, group: list[str]) -> NF4Tensor:
        return from_tensors(weight, {name: self.read(name).clone() for name in group})

    def _pass(self, file: TensorFile, name: str) -> None:
        if name not in self._waiting:
            return
        del self._waiting[name]
        entry = file.entries[name]
        self.digests.append(digest_bytes(entry, file.view(name)))
        if self._last is not None:
            self._last[0].release(self._last[1])
        self._last = (file, name)
        self._done += entry.nbytes
        self._since_trim += entry.nbytes
        if self._since_trim >= _TRIM_EVERY:
            return_freed_memory()
            self._since_trim = 0
        self.progress("loading", self._done, self._total, "B")


class _Lazy:
    """Stands for a tensor in the file; indexing reads it."""

    def __init__(self, arrivals: _Arrivals, name: str) -> None:
        self.arrivals, self.name = arrivals, name

    def __getitem__(self, index: Any) -> Tensor:
        return self.arrivals.read(self.name)


class _Placeholder:
    """Stands for a weight stored in NF4, which the plan reads itself, in the load's dtype so that
    no cast is made of it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __getitem__(self, index: Any) -> Tensor:
        return torch.empty(0, dtype=self.dtype)


def nf4_groups(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """By the name of each weight stored as NF4, the names of all its tensors (itself included)."""
    if not checkpoint.config.get("quantization_config"):
        return {}
    groups: dict[str, list[str]] = {}
    for name in checkpoint.homes:
        weight = owner(name)
        if weight is not None:
            groups.setdefault(weight, []).append(name)
    for weight, group in groups.items():
        if weight in checkpoint.homes:
            group.append(weight)
    return groups


def _fill(
    checkpoint: Checkpoint,
    architecture: Architecture,
    plan: LoadPlan,
    arrivals: _Arrivals,
    dtype: torch.dtype,
) -> PreTrainedModel:
    options: dict[str, Any] = {}
    accepted = inspect.signature(architecture.model_class.__init__).parameters
    if "add_pooling_layer" in accepted and not any("pooler." in name for name in checkpoint.homes):
        options["add_pooling_layer"] = False  # encoders are often published without their pooler
    try:
        with quiet_transformers():
            model, info = architecture.model_class.from_pretrained(
                None,
                config=architecture.config,
                state_dict=arrivals.lazy_state(),
                quantization_config=StreamConfig(plan),
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                **options,
            )
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        problems = "\n  ".join(plan.problems) or str(error)
        raise CheckpointError(
            f"{checkpoint.folder}: the tensors do not make a "
            f"{architecture.model_class.__name__}:\n  {problems}"
        ) from error
    _check_complete(checkpoint, architecture, model, info)
    return model


def _check_complete(
    checkpoint: Checkpoint, architecture: Architecture, model: PreTrainedModel, info: dict[str, Any]
) -> None:
    """Every tensor of the model came from the checkpoint, and the other way round."""
    unexpected = set(info["unexpected_keys"])
    prefix = f"{model.base_model_prefix}."
    named = getattr(architecture.config, "architectures", None) or []
    if architecture.kind == "encoder" and type(model).__name__ not in named:
        # the checkpoint is an encoder with a task's head, which is left behind
        backbone = any(name.startswith(prefix) for name in checkpoint.homes)
        unexpected = {name for name in unexpected if name.startswith(prefix) or not backbone}
    faults = [f"missing: {name}" for name in sorted(info["missing_keys"])]
    faults += [f"unexpected: {name}" for name in sorted(unexpected)]
    faults += [
        f"mis-shaped: {name}: expected {list(expected)}, found {list(found)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    if faults:
        shown = "\n  ".join(faults)
        raise CheckpointError(
            f"{checkpoint.folder}: its tensors are not those of {type(model).__name__} as "
            f"config.json describes it ({len(faults)} differ):\n  {shown}"
        )


def _own_memory(model: nn.Module, mapped: dict[int, tuple[TensorFile, str]]) -> None:
    """Copy the tensors that are still views of the files, so that no file is needed any more."""
    for tensor in [*model.parameters(), *model.buffers()]:
        home = mapped.get(tensor.untyped_storage().data_ptr())
        if home is not None:
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
            home[0].release(home[1])


def _restore_plainness(model: PreTrainedModel) -> None:
    """Remove the marks that loading through a quantizer leaves on a model."""
    model.hf_quantizer.remove_quantization_config(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module.config).pop("_is_quantized", None)


def _read_generation_config(model: PreTrainedModel, folder: Path) -> None:
    path = folder / "generation_config.json"
    if not model.can_generate() or not path.is_file():
        return
    try:
        with quiet_transformers():
            model.generation_config = GenerationConfig.from_dict(read_json(path))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a valid generation configuration: {error}") from error
