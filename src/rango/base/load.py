"""Load the frozen base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from rango.base.architecture import Architecture, architecture, kind_of
from rango.base.cache import BaseCache, Wanted, open_cache
from rango.base.checkpoint import Checkpoint, open_checkpoint
from rango.base.classifier import is_classifier, labels_of
from rango.base.config import DEFAULT_CACHE_GB, BaseConfig, BaseDtype, Compute, Quantize
from rango.base.fingerprint import combine, digest_tensor, resolve, tied_vocabulary
from rango.base.linear import QuantizedLinear
from rango.base.model import Base
from rango.base.quantized_files import is_quantized
from rango.base.quantizer import LoadPlan
from rango.base.save import save_base
from rango.base.source import local_folder
from rango.base.state import state_on_disk
from rango.base.stored import NARROW, stored_dtype
from rango.base.stream import stream_model
from rango.errors import CheckpointError, ConfigError, nearest
from rango.numerics.nf4 import NF4Tensor
from rango.progress import Progress, silent

__all__ = ["Base", "base_from_model", "load_base", "load_configured"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_base(
    source: str | Path,
    *,
    dtype: BaseDtype = "as stored",
    compute: Compute = "auto",
    quantize: Quantize = "none",
    double_quant: bool = True,
    labels: Sequence[str] | None = None,
    revision: str | None = None,
    cache: bool | str | Path = False,
    cache_gb: float = DEFAULT_CACHE_GB,
    progress: Progress = silent,
) -> Base:
    """Load a causal language model, an encoder or a classifier from a checkpoint folder or the hub.

    The tensors are streamed: quantized or cast a few at a time, so the unquantized model is never
    held. What is held as the file has it stays a view of the file, read when it is needed: the file
    may be removed or replaced, but must not be written into.

    "as stored" means the type of most of the file's elements. A base of 16 bits is computed in fp32
    (compute="auto"): its matrices and embeddings are kept in 16 bits and widened in the product,
    and everything else is held in fp32, as exactly as the file has it. With compute="as stored" all
    of the model takes its 16 bits (fp32 norms in a bf16 file too, as transformers' own code
    expects), except what the architecture insists on holding in fp32. A checkpoint stored in
    bitsandbytes' NF4 or int8 keeps those layers bit for bit, whatever `quantize` and `double_quant`
    say.

    With `labels` the model is a classifier over the checkpoint's body; the head that the checkpoint
    lacks is zero, for an adapter to learn. A checkpoint that is a classifier itself needs none.

    With `cache`, a folder or True for the user's ($RANGO_CACHE, else ~/.cache/rango/bases), what
    is quantized here is kept there for the next time, at most `cache_gb` 10⁹ bytes in all; see
    rango.base.cache. A cache that cannot be read or written is logged and does without.

    Raises CheckpointError for a checkpoint that is missing, damaged, incomplete or of a kind that
    is not supported, ConfigError for an unknown dtype, compute or quantize, or for labels that make
    no classifier or are not those of a checkpoint that is one.
    """
    _check_choice("dtype", dtype, BaseDtype)
    _check_choice("compute", compute, Compute)
    _check_choice("quantize", quantize, Quantize)
    checkpoint = open_checkpoint(local_folder(source, revision))
    already = is_quantized(checkpoint)
    target = _DTYPES.get(dtype) or checkpoint.dtype
    widen = compute == "auto" and target in NARROW
    shape = architecture(checkpoint, labels)
    heading = tuple(labels or ()) if shape.new_head else ()
    held = _Held("none" if already else quantize, double_quant, target, widen, heading)
    store = open_cache(cache, cache_gb) if held.quantize != "none" else None
    wanted = store.wanted(checkpoint, held.facts(), progress) if store else None
    found = _kept(store, wanted, checkpoint, shape, held, progress) if store and wanted else None
    if found is None:
        streamed = stream_model(checkpoint, shape, held.plan(), dtype=target, progress=progress)
        own = combine(streamed.digests, tied_vocabulary(streamed.model.config))
        model, fingerprint = streamed.model, resolve(checkpoint.folder, own)
    else:
        model, fingerprint = found
    model.config.name_or_path = str(source)
    base = Base(
        model=model,
        config=model.config,
        fingerprint=fingerprint,
        source=str(source),
        path=checkpoint.folder,
        kind=shape.kind,
        dtype=target,
        compute=torch.float32 if widen else target,
        **_quantization(model, double_quant),
        labels=_labels(model),
    )
    if store and wanted and found is None:
        _keep(base, store, wanted, checkpoint, progress)
    return base


def load_configured(
    config: BaseConfig, *, labels: Sequence[str] | None = None, progress: Progress = silent
) -> Base:
    """`load_base` as a run's config says."""
    options = asdict(config)
    return load_base(options.pop("model"), **options, labels=labels, progress=progress)


@dataclass(frozen=True)
class _Held:
    """How a base is to be held."""

    quantize: Quantize
    double_quant: bool
    dtype: torch.dtype
    widen: bool
    labels: tuple[str, ...] = ()
    """Of a head that is made over the checkpoint's body."""

    def plan(self) -> LoadPlan:
        return LoadPlan(self.quantize, self.double_quant, widen=self.widen)

    def facts(self) -> dict[str, Any]:
        """All that decides what is kept of a base."""
        head = {"labels": list(self.labels)} if self.labels else {}
        return {
            "quantize": self.quantize,
            "double_quant": self.double_quant or self.quantize != "nf4",
            "dtype": str(self.dtype),
            "widen": self.widen,
            **head,
        }


def _kept(
    store: BaseCache,
    wanted: Wanted,
    checkpoint: Checkpoint,
    shape: Architecture,
    held: _Held,
    progress: Progress,
) -> tuple[PreTrainedModel, str] | None:
    """The model from the cache, and its fingerprint; None if it is not there, or not in order."""
    entry = store.find(wanted)
    if entry is None or wanted.fingerprint is None:
        return None
    plan = replace(held.plan(), quantize="none")  # its layers are
    try:
        # in the source's name: it says the architecture and how to generate
        kept = replace(open_checkpoint(entry), folder=checkpoint.folder)
        streamed = stream_model(kept, shape, plan, dtype=held.dtype, progress=progress)
        own = combine(streamed.digests, tied_vocabulary(streamed.model.config))
        whole = store.vouches(entry, wanted, own)
    except (CheckpointError, OSError):
        whole = False
    if not whole:
        store.discard(entry)
        return None
    store.used(entry, wanted)
    return streamed.model, wanted.fingerprint


def _keep(
    base: Base, store: BaseCache, wanted: Wanted, checkpoint: Checkpoint, progress: Progress
) -> None:
    held = [*base.model.parameters(), *base.model.buffers()]
    store.keep(
        checkpoint,
        wanted,
        base.fingerprint,
        sum(tensor.nbytes for tensor in held),
        lambda folder: save_base(base, folder, progress=progress),
    )


def base_from_model(model: PreTrainedModel, source: str = "in memory") -> Base:
    """Freeze a transformers model that is already in memory: it is set to eval mode and none of
    its parameters requires a gradient any more."""
    model.requires_grad_(False)
    model.eval()
    stored = stored_dtype(model)
    digests = (digest_tensor(name, tensor) for name, tensor in state_on_disk(model).items())
    return Base(
        model=model,
        config=model.config,
        fingerprint=combine(digests, tied_vocabulary(model.config)),
        source=source,
        path=None,
        kind=kind_of(model),
        dtype=stored or model.dtype,
        compute=torch.float32 if stored else model.dtype,
        **_quantization(model, True),
        labels=_labels(model),
    )


def _labels(model: PreTrainedModel) -> tuple[str, ...]:
    return labels_of(model.config) if is_classifier(model) else ()


def _quantization(model: PreTrainedModel, double_quant: bool) -> dict[str, Any]:
    """What the model's layers are, whatever was asked for."""
    held = [module.quantized for module in model.modules() if isinstance(module, QuantizedLinear)]
    nf4 = [quantized for quantized in held if isinstance(quantized, NF4Tensor)]
    if nf4:
        return {"quantize": "nf4", "double_quant": all(quantized.nested for quantized in nf4)}
    return {"quantize": "int8" if held else "none", "double_quant": double_quant}


def _check_choice(name: str, value: str, choices: Any) -> None:
    known = get_args(choices)
    if value not in known:
        raise ConfigError(
            f"{name}: expected one of {', '.join(map(repr, known))}; found {value!r}"
            f"{nearest(str(value), known)}"
        )
