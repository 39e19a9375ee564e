"""Step time and peak memory of a LoRA and a QLoRA step: Rango against PEFT and bitsandbytes.

Each contestant is a process that keeps its model loaded. They step in turn, so that whatever
drifts on the machine hits all alike; one step is never measured while another is under way.

    python benchmarks/train_step.py --shape 25m
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import RESULTS, machine, summary, versions, write_result
from comparison import checks_of, rows_of
from contestants import ENTRIES, LEARNING_RATE, MAX_GRAD_NORM
from foreign import Moment, foreign_load
from rich.console import Console
from shapes import SHAPES
from tables import show
from worker import memory, prepare, serve

_SPAWN = multiprocessing.get_context("spawn")
_POLL_SECONDS = 0.002
_ENDED = "{}: its process ended without an answer (out of memory?)"


class Worker:
    """The parent's end of a contestant's process."""

    def __init__(self, name: str, pipe: Connection, facts: dict[str, Any]) -> None:
        self.name, self.pipe, self.facts = name, pipe, facts
        self.samples: list[dict[str, float]] = []
        self.warm_loss = 0.0
        self.peak_anonymous = 0

    def ask(self, request: str) -> None:
        try:
            self.pipe.send(request)
        except BrokenPipeError:
            sys.exit(_ENDED.format(self.name))

    def warm_up(self) -> None:
        """A step that is not counted: the first one."""
        self.warm_loss = self._step()["loss"]

    def watch_memory(self) -> None:
        """A step that is not counted, for the peak of anonymous memory, which the system does not
        keep."""
        self.ask("step")
        answered = False
        while not answered:
            self.peak_anonymous = max(self.peak_anonymous, memory(self.facts["pid"])["RssAnon"])
            answered = self.pipe.poll(_POLL_SECONDS)
        _received(self.pipe, self.name)

    def measure(self) -> None:
        """A step that is counted."""
        own, before = time.process_time(), Moment.now()
        sample = self._step()
        after = Moment.now()
        busy = sample["cpu_seconds"] + time.process_time() - own
        self.samples.append(sample | foreign_load(before, after, busy))

    def result(self) -> dict[str, Any]:
        seconds = [sample["seconds"] for sample in self.samples]
        return {
            "title": ENTRIES[self.name].title,
            "step_seconds": summary(seconds),
            "peak_bytes": max(int(sample["peak_bytes"]) for sample in self.samples),
            "peak_anonymous_bytes": self.peak_anonymous,
            "first_loss": self.warm_loss,
            "last_loss": self.samples[-1]["loss"],
            "foreign_cores": summary([sample["foreign_cores"] for sample in self.samples]),
            "samples": self.samples,
        } | {key: value for key, value in self.facts.items() if key != "pid"}

    def _step(self) -> dict[str, float]:
        self.ask("step")
        return _received(self.pipe, self.name)


def _received(pipe: Connection, name: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = pipe.recv()
    except EOFError:
        sys.exit(_ENDED.format(name))
    if "error" in answer:
        sys.exit(f"{name} failed:\n{answer['error']}")
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


def run_shape(
    name: str, contestants: Sequence[str], rounds: int, rank: int, threads: int, quick: bool
) -> dict[str, Any]:
    """Measure all contestants on one shape."""
    with tempfile.TemporaryDirectory(prefix="rango-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        with _process(prepare, name, folder, threads, quick) as pipe:
            prepared = _received(pipe, "preparation")
        workers = []
        for entry in contestants:  # one after the other: loading is what takes most memory
            pipe = stack.enter_context(_process(serve, entry, name, folder, rank, threads))
            workers.append(Worker(entry, pipe, _received(pipe, entry)))
            _say(f"{name}: {entry} loaded in {workers[-1].facts['load_seconds']:.1f} s")
        for worker in workers:
            worker.warm_up()
        for worker in workers:
            worker.watch_memory()
        for number in range(rounds):
            first = number % len(workers)  # so that no one always follows the same other
            for worker in [*workers[first:], *workers[:first]]:
                worker.measure()
            _say(f"{name}: round {number + 1} of {rounds}")
        for worker in workers:
            worker.ask("stop")
        return prepared | {"contestants": {worker.name: worker.result() for worker in workers}}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is written to the result's file."""
    settings = {
        "rank": options.rank,
        "lora_alpha": 2 * options.rank,
        "target_modules": "all-linear",
        "batch": 1,
        "dtype": "fp32",
        "quantized": "NF4, double quantization, fp32 compute",
        "supervised": "all positions",
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": MAX_GRAD_NORM,
        "rounds": options.rounds,
        "warm_up_rounds": 2,
        "threads": options.threads,
    }
    shapes = ["25m", "0.5b"] if options.shape == "all" else [options.shape]
    measured, rows = {}, list[dict[str, Any]]()
    for shape in shapes:
        found = run_shape(
            shape, options.only, options.rounds, options.rank, options.threads, options.quick
        )
        measured[shape] = found | {"checks": checks_of(found)}
        rows += [row.as_dict() for row in rows_of(shape, found, settings)]
    return {
        "benchmark": "train_step",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(
            "rango", "torch", "transformers", "peft", "bitsandbytes", "safetensors"
        ),
        "settings": settings,
        "rows": rows,
        "shapes": measured,
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all", help="all: 25m, 0.5b")
    parser.add_argument("--rounds", type=int, default=7, help="counted steps of each contestant")
    parser.add_argument("--rank", type=int, default=16, help="r; lora_alpha is twice that")
    parser.add_argument("--threads", type=int, default=None, help="by default, one a core")
    parser.add_argument("--only", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--output", type=Path, default=RESULTS / "train_step.json")
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it works")
    parser.add_argument("--show", type=Path, help="print a stored result; measure nothing")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.rank < 1:
        parser.error("--rounds and --rank: expected at least 1")
    options.threads = options.threads or len(os.sched_getaffinity(0))
    options.rounds = 2 if options.quick else options.rounds
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all contestants computed the same, else 1; missed goals are printed, not refused."""
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if options.show:
        show(console, json.loads(options.show.read_text()))
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    result = measure(options)
    write_result(options.output, result)
    show(console, result)
    console.print(f"written to {options.output}")
    return 0 if all(c["ok"] for shape in result["shapes"].values() for c in shape["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
