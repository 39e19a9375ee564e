"""Stream a checkpoint into a model, each tensor hashed, and quantized, beside the loader."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from rango.base.architecture import Architecture, quiet_transformers
from rango.base.checkpoint import Checkpoint, read_json, read_tensor
from rango.base.classifier import is_new, is_pooler, zero_missing
from rango.base.fingerprint import TensorDigest, digest_stored
from rango.base.heap import return_freed_memory
from rango.base.product import Quantized
from rango.base.quantized_files import quantized_groups, read_quantized
from rango.base.quantizer import LoadPlan, StreamConfig, exchange_layers
from rango.base.stored import keep_as_stored
from rango.base.workers import Workers
from rango.errors import CheckpointError
from rango.files.tensors import TensorFile
from rango.progress import Progress, silent

_TRIM_EVERY = 32 * 2**20
_HASH_AHEAD = 2**30


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
    progress: Progress = silent,
) -> Streamed:
    """Build the model and fill it from the checkpoint, quantizing as `plan` says; weight matrices
    take `dtype`, and so does the rest unless the plan widens it.

    What the model holds as the file has it stays a private view of the file: it takes no memory
    until it is read, and the file may be removed or replaced, but not be written into. Besides, at
    any time at most the finished part of the model and a few tensors in hand are held.

    Raises CheckpointError listing every missing, unexpected and mis-shaped tensor.
    """
    with Workers() as workers:
        arrivals = _Arrivals(checkpoint, plan, dtype, workers, progress)
        model = _fill(checkpoint, architecture, plan, arrivals, dtype)
        exchange_layers(model, plan.quantized)
        if plan.widen:
            keep_as_stored(model)
        _restore_plainness(model)
        _read_generation_config(model, checkpoint.folder)
        model.requires_grad_(False)
        digests = arrivals.finish()
        arrivals.release()
    return_freed_memory()
    return Streamed(model.eval(), digests)


class _Arrivals:
    """The tensors of a checkpoint, each a view of its file when the loader asks for it; hashing
    begins before, in the order in which it will ask."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: LoadPlan,
        dtype: torch.dtype,
        workers: Workers,
        progress: Progress,
    ) -> None:
        self.plan = plan
        self.dtype = dtype
        self._workers = workers
        self._progress = progress
        self._checkpoint = checkpoint
        self._homes = checkpoint.homes
        self._views: dict[int, tuple[TensorFile, str]] = {}
        """By address, what was handed out."""
        self._unread = set(self._homes)
        self._unhashed = dict.fromkeys(sorted(self._homes, key=dot_natural_key))
        self._ahead = 0
        """Bytes given to be hashed and not yet asked for."""
        self._hashing: deque[tuple[Future[TensorDigest], int]] = deque()
        self._digests: list[TensorDigest] = []
        self._total = sum(entry.nbytes for entry in checkpoint.entries.values())
        self._done = 0
        self._since_trim = 0
        plan.later = self._quantize_later
        self._hash_more()

    def lazy_state(self) -> dict[str, Any]:
        """What transformers takes for a state dict; a weight stored quantized stands for all its
        parts."""
        state: dict[str, Any] = {name: _Lazy(self, name) for name in self._homes}
        for weight, group in quantized_groups(self._checkpoint).items():
            self.plan.stored[weight] = partial(self._read_quantized, weight, group)
            for name in group:
                state.pop(name, None)
            state[weight] = _Placeholder(self.dtype)
        return state

    def read(self, name: str) -> Tensor:
        """The tensor as a view of its file."""
        if name in self._unread:
            self._unread.remove(name)
            if name in self._unhashed:  # out of turn
                self._hash(name)
            self._ahead -= self._size(name)
            self._hash_more()
            self._report()
        tensor = read_tensor(self._homes[name], name)
        self._views[tensor.untyped_storage().data_ptr()] = (self._homes[name], name)
        return tensor

    def finish(self) -> list[TensorDigest]:
        """The digest of every tensor, those included that the model had no use for."""
        for name in list(self._unhashed):
            self._hash(name)
        while self._hashing:
            self._collect()
        return self._digests

    def release(self) -> None:
        """Let go of the pages of what was read; the model's views of the file bring back what is
        used of them, of an embedding a few rows."""
        for file, name in self._views.values():
            file.release(name)

    def _read_quantized(self, weight: str, group: list[str]) -> Quantized:
        return read_quantized(weight, {name: self.read(name) for name in group}, self.dtype)

    def _quantize_later(
        self, weight: Tensor, quantize: Callable[[Tensor], Quantized]
    ) -> Future[Quantized]:
        home = self._views.get(weight.untyped_storage().data_ptr())
        if home is None:  # a copy that the loader made, as it did of those before
            self._trim_after(weight.nbytes)

        def work() -> Quantized:
            try:
                return quantize(weight)
            finally:
                if home is not None:
                    home[0].release(home[1])

        return self._workers.start_holding(weight.nbytes, work)

    def _hash_more(self) -> None:
        while self._unhashed and self._ahead < _HASH_AHEAD:
            self._hash(next(iter(self._unhashed)))

    def _hash(self, name: str) -> None:
        del self._unhashed[name]
        digest = self._workers.start(digest_stored, self._homes[name], name, self._workers.stopping)
        self._hashing.append((digest, self._size(name)))
        self._ahead += self._size(name)

    def _report(self) -> None:
        while self._hashing and self._hashing[0][0].done():
            self._collect()

    def _collect(self) -> None:
        digest, nbytes = self._hashing.popleft()
        self._digests.append(digest.result())
        self._done += nbytes
        self._trim_after(nbytes)
        self._progress("loading", self._done, self._total, "B")

    def _trim_after(self, nbytes: int) -> None:
        self._since_trim += nbytes
        if self._since_trim >= _TRIM_EVERY:
            return_freed_memory()
            self._since_trim = 0

    def _size(self, name: str) -> int:
        return self._homes[name].entries[name].nbytes


class _Lazy:
    """Stands for a tensor in the file; indexing reads it."""

    def __init__(self, arrivals: _Arrivals, name: str) -> None:
        self.arrivals, self.name = arrivals, name

    def __getitem__(self, index: Any) -> Tensor:
        return self.arrivals.read(self.name)


class _Placeholder:
    """Stands for a weight stored quantized, which the plan reads itself, in the load's dtype so
    that no cast is made of it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __getitem__(self, index: Any) -> Tensor:
        return torch.empty(0, dtype=self.dtype)


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
        plan.settle()
        if plan.problems:
            raise ValueError("weights that cannot be quantized")
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        plan.settle()
        problems = "\n  ".join(plan.problems) or str(error)
        raise CheckpointError(
            f"{checkpoint.folder}: the tensors do not make a "
            f"{architecture.model_class.__name__}:\n  {problems}"
        ) from error
    new = _new_tensors(architecture, model, info)
    _check_complete(checkpoint, architecture, model, info, new)
    zero_missing(model, sorted(new), plan.widen, str(checkpoint.folder))
    return model


def _new_tensors(
    architecture: Architecture, model: PreTrainedModel, info: dict[str, Any]
) -> set[str]:
    """Tensors of a classifier's head that the checkpoint has not, or has of another head: what
    makes the logits always is, even if their numbers happen to be equal. Zeros, as in a base that
    was kept with a new head, are as good as none."""
    if not architecture.new_head:
        return set()
    prefix = f"{model.base_model_prefix}."
    found = {*info["missing_keys"], *(name for name, _, _ in info["mismatched_keys"])}
    new = {name for name in found if not name.startswith(prefix) or is_pooler(name)}
    for name, module in model.named_modules():
        outside = not name.startswith(prefix)
        if not isinstance(module, nn.Linear) or module.weight.is_meta:  # that is held quantized
            continue
        makes_logits = outside and module.out_features == architecture.config.num_labels
        if makes_logits or ((outside or is_pooler(name)) and is_new(module)):
            new.update(f"{name}.{tensor}" for tensor, _ in module.named_parameters(recurse=False))
    return new


def _check_complete(
    checkpoint: Checkpoint,
    architecture: Architecture,
    model: PreTrainedModel,
    info: dict[str, Any],
    new: set[str],
) -> None:
    """Every tensor of the model came from the checkpoint, those of a `new` head apart, and the
    other way round."""
    unexpected = set(info["unexpected_keys"])
    prefix = f"{model.base_model_prefix}."
    named = getattr(architecture.config, "architectures", None) or []
    if architecture.kind == "encoder" and type(model).__name__ not in named:
        # the checkpoint is an encoder with a task's head, which is left behind
        backbone = any(name.startswith(prefix) for name in checkpoint.homes)
        unexpected = {name for name in unexpected if name.startswith(prefix) or not backbone}
    if architecture.new_head:  # so is another head; some classifiers have no pooler
        backbone = any(name.startswith(prefix) for name in checkpoint.homes)
        unexpected = {
            name
            for name in unexpected
            if (name.startswith(prefix) or not backbone) and not is_pooler(name)
        }
    faults = [f"missing: {name}" for name in sorted(set(info["missing_keys"]) - new)]
    faults += [f"unexpected: {name}" for name in sorted(unexpected)]
    faults += [
        f"mis-shaped: {name}: expected {list(expected)}, found {list(found)}"
        for name, found, expected in sorted(info["mismatched_keys"])
        if name not in new
    ]
    if faults:
        shown = "\n  ".join(faults)
        raise CheckpointError(
            f"{checkpoint.folder}: its tensors are not those of {type(model).__name__} as "
            f"config.json describes it ({len(faults)} differ):\n  {shown}"
        )


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
