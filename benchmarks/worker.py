"""A process that keeps one contestant loaded and answers requests over a pipe."""

from __future__ import annotations

import importlib
import os
import re
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from contestants import ENTRIES
from shapes import SHAPES, write_checkpoint

_FIELDS = ("VmHWM", "VmRSS", "RssAnon")


def memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes of a process: VmHWM (peak resident), VmRSS (resident), RssAnon (its anonymous part)."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = {name: re.search(rf"{name}:\s+(\d+) kB", text) for name in _FIELDS}
    return {name: int(match[1]) * 1024 for name, match in found.items() if match}


def serve(pipe: Connection, entry: str, shape: str, folder: Path, rank: int, threads: int) -> None:
    """Load, say so, then answer each "step" until "stop"."""
    try:
        _serve(pipe, entry, shape, folder, rank, threads)
    except EOFError:  # the parent is gone
        return
    except Exception:
        pipe.send({"error": traceback.format_exc()})


def _serve(pipe: Connection, entry: str, shape: str, folder: Path, rank: int, threads: int) -> None:
    chosen, spec = ENTRIES[entry], SHAPES[shape]
    import torch
    import transformers

    torch.set_num_threads(threads)
    getattr(transformers, spec.model_class)
    for name in chosen.imports:
        importlib.import_module(name)
    imported = memory()
    started = time.perf_counter()
    contestant = chosen.make(folder, spec, rank, chosen.quantized)
    seconds = time.perf_counter() - started
    loaded = memory()
    lowered = _lower_peak()
    pipe.send(
        {
            "pid": os.getpid(),
            "trainable": contestant.trainable,
            "load_seconds": seconds,
            "imports_bytes": imported["VmRSS"],
            "loaded_bytes": loaded["VmRSS"],
            "load_peak_bytes": loaded["VmHWM"],
            "peak_excludes_loading": lowered,
        }
    )
    while pipe.recv() == "step":
        cpu, started = time.process_time(), time.perf_counter()
        loss = contestant.step()
        pipe.send(
            {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu,
                "loss": loss,
                "peak_bytes": memory()["VmHWM"],
            }
        )


def _lower_peak() -> bool:
    """Lower the system's mark of the highest resident memory to the present value."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    except OSError:
        return False
    return True


def prepare(pipe: Connection, shape: str, folder: Path, threads: int, quick: bool) -> None:
    """Write the checkpoint, and measure the machine."""
    try:
        pipe.send(
            {
                "parameters": write_checkpoint(SHAPES[shape], folder),
                "machine": _speed(threads, 256 if quick else 2048, 16 if quick else 256),
            }
        )
    except Exception:
        pipe.send({"error": traceback.format_exc()})


def _speed(threads: int, side: int, megabytes: int) -> dict[str, Any]:
    """Best of eight: fp32 product of two squares, copy between two reused buffers."""
    import torch

    torch.set_num_threads(threads)
    a, b, out = torch.randn(side, side), torch.randn(side, side), torch.empty(side, side)
    source = torch.ones(megabytes * 2**18)  # four bytes each
    target = torch.ones_like(source)
    product = min(_seconds(lambda: torch.mm(a, b, out=out)) for _ in range(8))
    copy = min(_seconds(lambda: target.copy_(source)) for _ in range(8))
    return {
        "gemm_fp32_gflops": 2 * side**3 / product / 1e9,
        "gemm_side": side,
        # one read and one write
        "copy_gb_per_second": 2 * megabytes * 2**20 / copy / 1e9,
        "copy_megabytes": megabytes,
    }


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
