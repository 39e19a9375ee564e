"""Ctrl-C and termination: asked politely, a run ends between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether someone asked the run to end."""

    def __init__(self) -> None:
        self.asked = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; a second one interrupts at once."""
        if self.asked:
            raise KeyboardInterrupt("interrupted again before the step was finished")
        self.asked = True
        # a handler may run amid a print, where only the plain system call is safe
        os.write(2, b"\nrango: ending after this step; once more ends at once\n")


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block SIGINT and SIGTERM are noted instead of acting. Outside the main thread,
    where Python allows no handlers, nothing is changed."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            # None: a handler that was not installed from Python, which can't be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
