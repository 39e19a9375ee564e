"""Which kernels run: the compiled ones for this processor, or the reference in numerics/.

RANGO_KERNELS chooses: ``auto`` (the default: the fastest there are), ``avx2`` or ``portable`` (one
build of the compiled module, or an error), ``reference``. It is read at the first kernel, and what
is chosen holds for the whole process.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rango.errors import ConfigError, nearest

VARIABLE = "RANGO_KERNELS"
MODES = ("auto", "avx2", "portable", "reference")
_MODULE = "rango.kernels._native"


def _load() -> tuple[Any, str]:
    """The compiled module, or None and why there is none."""
    try:
        # after torch, whose thread pool the module finds in the process
        return importlib.import_module(_MODULE), ""
    except ModuleNotFoundError as error:
        if error.name != _MODULE:
            raise
        return None, "the compiled kernels are not installed"
    except ImportError as error:
        return None, f"the compiled kernels cannot be loaded: {error}"


_native, _missing = _load()


@dataclass(frozen=True)
class KernelFacts:
    """What runs, for people to read."""

    in_use: str
    """``avx2``, ``portable`` or ``reference``."""
    reason: str
    """Why it is the reference; empty otherwise."""
    threads: int


@dataclass(frozen=True)
class _Choice:
    """Replaced as a whole, so that no thread ever sees half of one."""

    module: Any
    mode: str
    reason: str


_choice: _Choice | None = None
_lock = threading.RLock()


def choose(mode: str) -> None:
    """Use this mode from now on. ConfigError, and no change, if it is unknown or not possible
    here."""
    with _lock:
        _use(_resolve(mode))


def facts() -> KernelFacts:
    """What runs, and why."""
    choice = _chosen()
    return KernelFacts(choice.mode, choice.reason, torch.get_num_threads())


def available() -> tuple[str, ...]:
    """The modes that this build and processor can run, besides auto; the fastest first."""
    if _native is None:
        return ("reference",)
    return (*(("avx2",) if _native.widest() == "avx2" else ()), "portable", "reference")


@contextmanager
def using(mode: str) -> Iterator[None]:
    """Within the block, use this mode: in the whole process, whichever thread asks."""
    before = _chosen()
    choose(mode)
    try:
        yield
    finally:
        with _lock:
            _use(before)


def native(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> Any:
    """The compiled module, if it can work on these tensors (None is skipped): plain ones on the
    CPU, contiguous, of this dtype, and with no gradient to be traced through; else None.

    A subclass of Tensor (a shard, a fake) keeps its elements elsewhere than where its address says.
    """
    module = (_choice or _chosen()).module
    if module is None:
        return None
    traced = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and not (
            type(tensor) in PLAIN
            and tensor.dtype == dtype
            and tensor.device.type == "cpu"
            and tensor.layout == torch.strided
            and tensor.is_contiguous()
            and not (traced and tensor.requires_grad)
        ):
            return None
    return module


def written(*tensors: Tensor | None) -> None:
    """Tell autograd that a kernel wrote into these, as every operation of torch does: what was
    saved of them for a backward pass is no longer there. A quarter of a microsecond a tensor.

    The layers of decoder_layer, which run where no gradient is traced, do not tell.
    """
    for tensor in tensors:
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)


PLAIN = (Tensor, torch.nn.Parameter)
"""Tensors that hold their elements where their address says."""


def _chosen() -> _Choice:
    """What is in use; by the environment, the first time."""
    if _choice is not None:
        return _choice
    with _lock:
        return _choice or _use(_resolve(os.environ.get(VARIABLE) or "auto"))


def _resolve(mode: str) -> _Choice:
    if mode not in MODES:
        raise ConfigError(
            f"{VARIABLE}: expected one of {', '.join(MODES)}; found {mode!r}{nearest(mode, MODES)}"
        )
    if mode == "reference":
        return _Choice(None, mode, f"{VARIABLE}=reference")
    if mode == "auto":
        mode = available()[0]
        return _Choice(_native, mode, _missing)
    if _native is None:
        raise ConfigError(
            f"{VARIABLE}={mode}: {_missing}; install a C++ compiler and then Rango again, or use "
            "auto or reference"
        )
    if mode not in available():
        raise ConfigError(
            f"{VARIABLE}={mode}: this processor or build has no {mode} kernels; found "
            f"{', '.join(available())}"
        )
    return _Choice(_native, mode, "")


def _use(choice: _Choice) -> _Choice:
    """With the lock held."""
    global _choice
    if choice.module is not None:
        choice.module.use(choice.mode)
    _choice = choice
    return choice
