"""The base's fingerprint: which weights an adapter belongs to, whatever the sharding.

It is the BLAKE3 (which costs less than half of SHA-256 even where processors help with that) over
one line a tensor of the source checkpoint, sorted: the JSON of [name, type, shape, BLAKE3 of its
bytes]. Copies that other tools write of the same weights share it: resharded ones have the same
tensors, and where embeddings are tied, some writers store the head too and others leave it out, so
there the vocabulary matrices are entered once and by content alone. A converted copy (quantized or
cast) has other bytes; save_base notes the source's fingerprint beside it, together with a digest of
the copy's own tensors, so that the note is believed only as long as it is about these tensors.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from rango.base.architecture import model_config
from rango.base.checkpoint import TORCH_DTYPES, Checkpoint, open_checkpoint, read_json
from rango.base.workers import Workers
from rango.errors import CheckpointError
from rango.files.tensors import TensorFile
from rango.progress import Progress, silent

FACTS = "rango.json"
_PIECE = 16 * 2**20


@dataclass(frozen=True)
class TensorDigest:
    """One tensor's share of a fingerprint; `dtype` is safetensors' name of the type."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str


def digest_stored(file: TensorFile, name: str, stopping: threading.Event) -> TensorDigest:
    """The digest of a stored tensor's bytes, whose pages are given back. Cut short, and wrong, once
    `stopping` is set."""
    entry, data = file.entries[name], file.view(name)
    digest = blake3()
    for start in range(0, entry.nbytes, _PIECE):
        if stopping.is_set():
            break
        digest.update(data[start : start + _PIECE])
    file.release(name)
    return TensorDigest(entry.name, entry.dtype, entry.shape, digest.hexdigest())


def digest_tensor(name: str, tensor: Tensor) -> TensorDigest:
    """The digest of a tensor in memory: that of its bytes if it were stored."""
    names = {dtype: stored for stored, dtype in TORCH_DTYPES.items()}
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = blake3(flat.numpy().data).hexdigest()
    dtype = names.get(tensor.dtype, str(tensor.dtype))
    return TensorDigest(name, dtype, tuple(tensor.shape), digest)


def combine(digests: Iterable[TensorDigest], tied_vocabulary: int | None) -> str:
    """The fingerprint ``blake3:<hex>`` of these tensors.

    `tied_vocabulary` is the size of the vocabulary where embeddings are tied, else None.
    """
    lines = set()
    for tensor in digests:
        tied = len(tensor.shape) == 2 and tensor.shape[0] == tied_vocabulary
        name = "" if tied else tensor.name
        lines.add(json.dumps([name, tensor.dtype, list(tensor.shape), tensor.digest]))
    total = blake3()
    for line in sorted(lines):
        total.update(f"{line}\n".encode())
    return f"blake3:{total.hexdigest()}"


def tied_vocabulary(config: Any) -> int | None:
    """The size of the vocabulary if a transformers config ties its embeddings, else None."""
    if not getattr(config, "tie_word_embeddings", False):
        return None
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def resolve(folder: Path, own: str) -> str:
    """The fingerprint of the checkpoint in `folder` whose tensors give `own`: its source's, if a
    note beside it says that they were made from one, else `own`."""
    path = folder / FACTS
    if not path.is_file():
        return own
    facts = read_json(path)
    base = facts.get("base") if isinstance(facts, dict) else None
    if not isinstance(base, dict) or base.get("tensors") != own:
        return own
    source = base.get("fingerprint")
    if not isinstance(source, str) or not source.startswith("blake3:"):
        raise CheckpointError(f"{path}: base.fingerprint: expected 'blake3:…', found {source!r}")
    return source


def note(fingerprint: str, own: str) -> dict[str, Any]:
    """What rango.json says beside a checkpoint: its source's fingerprint, and its own."""
    return {"base": {"fingerprint": fingerprint, "tensors": own}}


def fingerprint(source: str | Path, *, progress: Progress = silent) -> str:
    """The fingerprint of a checkpoint folder, without building the model.

    Raises CheckpointError as `open_checkpoint` does.
    """
    checkpoint = open_checkpoint(Path(source))
    own = combine(digest_files(checkpoint, progress), tied_vocabulary(model_config(checkpoint)))
    return resolve(checkpoint.folder, own)


def digest_files(checkpoint: Checkpoint, progress: Progress = silent) -> list[TensorDigest]:
    """The digest of every tensor of a checkpoint, read once."""
    total = sum(entry.nbytes for entry in checkpoint.entries.values())
    done, digests = 0, []
    with Workers() as workers:
        started = [
            (entry.nbytes, workers.start(digest_stored, file, entry.name, workers.stopping))
            for file in checkpoint.files
            for entry in file.entries.values()
        ]
        for nbytes, digest in started:
            digests.append(digest.result())
            done += nbytes
            progress("fingerprint", done, total, "B")
    return digests
