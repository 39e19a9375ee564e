"""What becomes of memory that is freed, or zeroed; other C libraries than glibc do as they do."""

from __future__ import annotations

import ctypes
import os
import sys
from mmap import PAGESIZE
from typing import Any

from torch import Tensor

_LIBC = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_WIDE = 3072
_LARGEST_PIECE, _WIDE_PIECE = 32 * 2**20, 2**20
_LARGE_TABLE = 128 * 2**20
_MADV_DONTNEED = 4  # of Linux; the mmap module has it on other systems too, where it zeroes nothing
_CHOSEN = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}


def return_freed_memory() -> None:
    """Hand freed pages back to the system; glibc would keep tens of megabytes of them."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def settle_freed_memory(config: Any) -> None:
    """Choose, for the rest of the process, what becomes of the memory that a training step frees,
    by the width of the layers in a model's transformers config.

    The next step takes the same again, so below a width of 3072 all of it is kept. (glibc comes to
    that by itself, but over a dozen steps, in which it hands tens of thousands of pages back and
    forth.) Fetching pages takes time by the width, products by its square: in a wider model each
    block is given back at once, for a hundredth of the time or two, and the gradients take the room
    of the activations. Whoever has set these thresholds in the environment has chosen.
    """
    if hasattr(_LIBC, "mallopt") and not _CHOSEN & os.environ.keys():
        width = getattr(config.get_text_config(), "hidden_size", 0)
        largest = _LARGEST_PIECE if width < _WIDE else _WIDE_PIECE
        _LIBC.mallopt(_MMAP_THRESHOLD, largest)
        _LIBC.mallopt(_TRIM_THRESHOLD, 2 * largest)


def zero(table: Tensor) -> None:
    """Zero a contiguous tensor that shares its memory with nobody else's; the pages of a large one
    are given back to the system, which returns them, as zeros, when they are written to."""
    small = table.device.type != "cpu" or table.nbytes < _LARGE_TABLE
    if small or table.is_shared() or sys.platform != "linux":  # shared pages come back as they were
        table.zero_()
        return
    start, end = table.data_ptr(), table.data_ptr() + table.nbytes
    first, last = -(-start // PAGESIZE) * PAGESIZE, end // PAGESIZE * PAGESIZE
    if _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED) != 0:
        table.zero_()
        return
    ctypes.memset(start, 0, first - start)
    ctypes.memset(last, 0, end - last)
