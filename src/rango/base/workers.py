"""Work on a checkpoint's tensors beside the loader: on as many threads as torch computes with."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

_BACKLOG = 256 * 2**20
_T = TypeVar("_T")


class Workers:
    """Threads that hash and quantize one tensor each.

    So that they share the cores evenly, none of them computes on further threads of its own, and
    what they compute does not depend on their number. Leaving the block waits for the pieces in
    hand and drops the rest.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        """Set when the work is no longer wanted."""
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(
            self._threads, "rango-loading", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._pending: deque[tuple[Future[Any], int]] = deque()
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        # torch notes the last number that any thread set for the threads to come
        torch.set_num_threads(self._threads)

    def start(self, work: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have it done, in turn."""
        return self._pool.submit(work, *arguments)

    def start_holding(self, nbytes: int, work: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """The same for work that keeps `nbytes` of memory until it is done; waits while too many
        are kept."""
        while self._pending and self._bytes + nbytes > _BACKLOG:
            oldest, held = self._pending.popleft()
            wait((oldest,))
            self._bytes -= held
        done = self._pool.submit(work, *arguments)
        self._pending.append((done, nbytes))
        self._bytes += nbytes
        return done
