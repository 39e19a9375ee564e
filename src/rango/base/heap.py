"""When memory goes back to the system, and when not."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

_LIBC = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST_PIECE = 32 * 2**20
_LARGE = 64 * 2**20


def return_freed_memory() -> None:
    """Hand freed pages back to the system; glibc would keep tens of megabytes of them. (Other C
    libraries are left alone, here and below.)"""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def keep_freed_memory() -> None:
    """From here on, keep what is freed for the next request, up to 64 MB of it.

    A training step frees what the next one takes again. glibc comes to these thresholds by itself,
    but over a dozen steps, in which it hands tens of thousands of pages back and forth.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_MMAP_THRESHOLD, _LARGEST_PIECE)
        _LIBC.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_PIECE)


def zero_(table: Tensor) -> None:
    """Set a table that owns its memory to zero. A large one on the CPU gives its pages back, which
    are zero when they are next touched: until a backward pass writes to it, it takes no memory."""
    if (
        table.device.type != "cpu"
        or table.nbytes < _LARGE
        or not table.is_contiguous()
        or table.is_shared()
        or not hasattr(_LIBC, "madvise")
    ):
        table.zero_()
        return
    first, last = table.data_ptr(), table.data_ptr() + table.nbytes
    begin = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    end = last // mmap.PAGESIZE * mmap.PAGESIZE
    length = ctypes.c_size_t(end - begin)
    if _LIBC.madvise(ctypes.c_void_p(begin), length, mmap.MADV_DONTNEED) != 0:
        table.zero_()
        return
    flat = table.view(-1).view(torch.uint8)
    flat[: begin - first].zero_()  # what shares its page with others
    flat[end - first :].zero_()
