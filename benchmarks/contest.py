"""Contestants: processes that keep their model loaded and take turns, one working at a time.

The order rotates from round to round, so that whatever drifts on the machine hits all alike.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from foreign import Moment, foreign_load

_SPAWN = multiprocessing.get_context("spawn")
_FIELDS = ("VmHWM", "VmRSS", "RssAnon")


@dataclass(frozen=True)
class Contestant:
    """`make`, a "module:name", is called in a process of its own with `options`. What it returns
    has `facts` and either step(), which does one piece of work and returns what it found, or
    run(turns), which has the turn when it is called and calls turns.next() between the pieces."""

    title: str
    make: str
    options: dict[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    """What making it imports, so that this can be told from the model's own memory."""
    environment: dict[str, str] = field(default_factory=dict)
    rounds: int | None = None
    """At most this many: for one that is very slow."""


class ContestError(Exception):
    """A contestant failed; the message says how."""


class Stopped(Exception):
    """No more turns."""


class Turns:
    """A contestant's end: it works while it has the turn."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._began: tuple[float, float] | None = None

    def next(self, **found: float) -> None:
        """Hand in the turn under way, if there is one, and wait for another. Raises Stopped."""
        if self._began is not None:
            self._answer(found)
        if self._pipe.recv() != "turn":
            raise Stopped
        self._began = time.perf_counter(), time.process_time()

    def over(self) -> None:
        """Hand in the last turn: all work is done."""
        self._answer({"over": 1.0})

    def _answer(self, found: dict[str, float]) -> None:
        assert self._began is not None  # noqa: S101
        wall, cpu = self._began
        measured = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "peak_bytes": memory()["VmHWM"],
        }
        self._pipe.send(measured | found)


def compete(
    contestants: dict[str, Contestant],
    rounds: int | None,
    threads: int,
    *,
    warm_up: int = 2,
    at_once: bool = False,
    poll_seconds: float = 0.002,
) -> dict[str, dict[str, Any]]:
    """Load all, then let each take its turn in every round (None: until its work is done).

    The `warm_up` turns are not counted; anonymous memory is watched in them (in all turns, where
    there are none). at_once: load them side by side, for small ones. Raises ContestError.
    """
    with ExitStack() as stack:
        workers: list[_Worker] = []
        for name, contestant in contestants.items():
            process = _process(_serve, contestant, threads)
            workers.append(_Worker(name, contestant, stack.enter_context(process)))
            if not at_once:  # loading is what takes most memory
                workers[-1].load()
        for worker in workers:
            worker.load()
        for number in range(warm_up):
            for worker in workers:
                if number == 0 or worker.goes_on(number, None):
                    worker.warm_up(poll_seconds)
        watch = None if warm_up else poll_seconds
        number = 0
        while going := [worker for worker in workers if worker.goes_on(number, rounds)]:
            first = number % len(going)  # so that no one always follows the same other
            for worker in [*going[first:], *going[:first]]:
                worker.measure(watch)
            number += 1
            if rounds or number % 20 == 0:
                say(f"  round {number}" + (f" of {rounds}" if rounds else ""))
        for worker in workers:
            worker.ask("stop")
        return {worker.name: worker.result() for worker in workers}


def apart(function: str, *arguments: Any) -> Any:
    """Call the function "module:name" in a process of its own, so that nothing of it stays."""
    with _process(_call, function, arguments) as pipe:
        return _received(pipe, function)["value"]


def memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes of a process: VmHWM (peak resident), VmRSS (resident), RssAnon (its anonymous part)."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = {name: re.search(rf"{name}:\s+(\d+) kB", text) for name in _FIELDS}
    return {name: int(match[1]) * 1024 for name, match in found.items() if match}


def age() -> float:
    """Seconds since this process began."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # proc(5): starttime
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


def summary(samples: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "count": len(samples),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Worker:
    """The parent's end of a contestant's process."""

    def __init__(self, name: str, contestant: Contestant, pipe: Connection) -> None:
        self.name, self.contestant, self.pipe = name, contestant, pipe
        self.facts: dict[str, Any] = {}
        self.samples: list[dict[str, float]] = []
        self.warm: list[dict[str, float]] = []
        self.over_seconds: float | None = None
        self.peak_anonymous = 0

    def load(self) -> None:
        """Wait until it has loaded."""
        if not self.facts:
            self.facts = _received(self.pipe, self.name)
            say(f"  {self.name} ready in {self.facts['load_seconds']:.1f} s")

    def ask(self, request: str) -> None:
        if self.over_seconds is not None:
            return
        try:
            self.pipe.send(request)
        except BrokenPipeError:
            raise ContestError(f"{self.name}: its process ended") from None

    def goes_on(self, number: int, rounds: int | None) -> bool:
        limits = [limit for limit in (rounds, self.contestant.rounds) if limit is not None]
        return self.over_seconds is None and all(number < limit for limit in limits)

    def warm_up(self, poll_seconds: float) -> None:
        self.warm.append(self._turn(poll_seconds))

    def measure(self, poll_seconds: float | None) -> None:
        """A turn that is counted."""
        own, before = time.process_time(), Moment.now()
        sample = self._turn(poll_seconds)
        if sample.pop("over", None):
            self.over_seconds = sample["seconds"]
            return
        after = Moment.now()
        busy = sample["cpu_seconds"] + time.process_time() - own
        self.samples.append(sample | foreign_load(before, after, busy))

    def _turn(self, poll_seconds: float | None) -> dict[str, float]:
        self.ask("turn")
        answered = poll_seconds is None
        while not answered:
            with contextlib.suppress(OSError):  # it ended: what it left to be read says why
                found = memory(self.facts["pid"]).get("RssAnon", 0)
                self.peak_anonymous = max(self.peak_anonymous, found)
            answered = self.pipe.poll(poll_seconds)
        return _received(self.pipe, self.name)

    def result(self) -> dict[str, Any]:
        samples = [*self.warm, *self.samples]
        return {
            "title": self.contestant.title,
            "seconds": summary([sample["seconds"] for sample in self.samples]),
            "over_seconds": self.over_seconds,
            "peak_bytes": max(int(sample["peak_bytes"]) for sample in samples),
            "peak_anonymous_bytes": self.peak_anonymous,
            "foreign_cores": summary([sample["foreign_cores"] for sample in self.samples]),
            "environment": self.contestant.environment,
            "warm_up": self.warm,
            "samples": self.samples,
        } | {key: value for key, value in self.facts.items() if key != "pid"}


def _received(pipe: Connection, name: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise ContestError(
            f"{name}: its process ended without an answer (out of memory?)"
        ) from None
    if "error" in answer:
        raise ContestError(f"{name} failed:\n{answer['error']}")
    return answer


@contextmanager
def _process(target: Any, *arguments: Any) -> Iterator[Connection]:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()  # else the end of that process would go unnoticed
    try:
        yield ours
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.terminate()
            process.join()


def _serve(pipe: Connection, contestant: Contestant, threads: int) -> None:
    """The process of a contestant."""
    try:
        os.environ.update(contestant.environment)  # before the libraries that read it
        make = _named(contestant.make)
        import torch

        torch.set_num_threads(threads)
        for name in contestant.imports:
            importlib.import_module(name)
        imported = memory()
        started = time.perf_counter()
        made = make(**contestant.options)
        seconds = time.perf_counter() - started
        loaded = memory()
        lowered = lower_peak()
        pipe.send(
            {
                "pid": os.getpid(),
                "load_seconds": seconds,
                "ready_seconds": age(),
                "imports_bytes": imported["VmRSS"],
                "imports_anonymous_bytes": imported["RssAnon"],
                "loaded_bytes": loaded["VmRSS"],
                "load_peak_bytes": loaded["VmHWM"],
                "peak_excludes_loading": lowered,
            }
            | made.facts
        )
        turns = Turns(pipe)
        turns.next()
        if hasattr(made, "run"):
            made.run(turns)
            turns.over()
        else:
            while True:
                turns.next(**made.step())
    except (Stopped, EOFError, BrokenPipeError):  # told so, or the parent is gone
        return
    except Exception:
        pipe.send({"error": traceback.format_exc()})


def _call(pipe: Connection, function: str, arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send({"value": _named(function)(*arguments)})
    except Exception:
        pipe.send({"error": traceback.format_exc()})


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    hide_folder()
    return found


def hide_folder() -> None:
    """Take this folder off the path, or bitsandbytes would find our kernels.py in place of the
    package of that name."""
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]


def lower_peak() -> bool:
    """Lower the system's mark of the highest resident memory to the present value."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    except OSError:
        return False
    return True
