"""What glibc's heap does with memory that was freed. Nothing happens with other C libraries."""

from __future__ import annotations

import ctypes
import os

_LIBC = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST_PIECE = 32 * 2**20
_CHOSEN = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}


def return_freed_memory() -> None:
    """Hand freed pages back to the system; glibc would keep tens of megabytes of them."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def keep_freed_memory() -> None:
    """For the rest of the process, keep what is freed for the next request.

    A training step frees what the next one takes again. glibc comes to these thresholds by itself,
    but over a dozen steps, in which it hands tens of thousands of pages back and forth. Whoever has
    set them in the environment has chosen.
    """
    if hasattr(_LIBC, "mallopt") and not _CHOSEN & os.environ.keys():
        _LIBC.mallopt(_MMAP_THRESHOLD, _LARGEST_PIECE)
        _LIBC.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_PIECE)
