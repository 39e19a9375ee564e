"""A million short chats: checked in one process, tokenized in workers, and the memory it takes.

    python benchmarks/million.py --samples 100000 1000000

Writes distinct chats of about 60 tokens made of the demo's words, then does what `rango check` with
--model does (read, audit, verify every sample's supervision), and tokenizes them with one worker a
core. Each piece of work is a process of its own. Its memory is what it and its workers hold at most
above what their imports hold; files that are mapped are left out, the system takes them back.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORKS = ("check", "tokenize")
MAX_LENGTH = 256
POLL_SECONDS = 0.1
_READY = "ready"


def write_chats(path: Path, count: int, seed: int = 11) -> None:
    """`count` chats of the demo's words, a line each; no two are the same."""
    from rango.demo.package_data import TRAIN

    entries = [json.loads(line) for line in TRAIN.read_text(encoding="utf-8").splitlines()]
    contents = [message["content"] for entry in entries for message in entry["messages"]]
    words = sorted({word for content in contents for word in content.split()})
    generator = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            drawn = [words[place] for place in generator.integers(0, len(words), 9)]
            asked = generator.integers(2, 5)
            turns = (
                ("user", f"{number} {' '.join(drawn[:asked])}?"),
                ("assistant", " ".join(drawn[asked:])),
            )
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def work(name: str, path: Path) -> dict[str, Any]:
    """One piece of work, in this process; what is measured begins once it says that it is ready."""
    from rango import load_tokenizer
    from rango.data.check import check
    from rango.data.reading.read import stream_examples
    from rango.data.tokens.tokenize import tokenize
    from rango.demo.package_data import BASE
    from rango.progress import Progress, silent

    tokenizer = load_tokenizer(str(BASE))
    sys.stdout.write(f"{_READY}\n")
    sys.stdout.flush()
    progress: Progress = _shown if sys.stderr.isatty() else silent
    begun = time.perf_counter()
    if name == "check":
        audit = check(path, tokenizer=tokenizer, max_length=MAX_LENGTH, progress=progress)
        found = {"samples": audit.samples, "tokens": audit.lengths.total}
        found |= {f"finding: {one.check}": one.count for one in audit.findings}
    else:
        workers = len(os.sched_getaffinity(0))
        done = tokenize(
            stream_examples(path),
            tokenizer,
            max_length=MAX_LENGTH,
            workers=workers,
            progress=progress,
        )
        found = {"samples": len(done.samples), "tokens": done.tokens, "workers": workers}
    return found | {"seconds": time.perf_counter() - begun}


def measured(name: str, path: Path) -> dict[str, Any]:
    """One piece of work in a process of its own, with the peak of its memory."""
    command = [sys.executable, __file__, "--work", name, "--file", str(path)]
    worker = _imports_of_a_worker()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101
        if process.stdout.readline().strip() != _READY:
            raise RuntimeError(f"{name}: it did not begin")
        imports, peak = held(process.pid), 0
        while process.poll() is None:
            own, *workers = [held(pid) for pid in tree(process.pid)] or [0]
            peak = max(peak, own - imports + sum(max(0, one - worker) for one in workers))
            time.sleep(POLL_SECONDS)
        if process.returncode:
            raise RuntimeError(f"{name}: exit code {process.returncode}")
        found: dict[str, Any] = json.loads(process.stdout.read())
    found["peak_above_imports"] = peak
    found["samples_per_second"] = found["samples"] / found["seconds"]
    found["tokens_per_second"] = found["tokens"] / found["seconds"]
    return found


def tree(pid: int) -> Iterator[int]:
    """A process and those that it has started."""
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(one) for task in tasks for one in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return
    for child in children:
        yield from tree(child)


def held(pid: int) -> int:
    """Bytes that a process holds in memory, mapped files apart; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return 1024 * sum(int(fields.get(key, "0").split()[0]) for key in ("RssAnon", "RssShmem"))


def _imports_of_a_worker() -> int:
    code = (
        "import sys; import rango.data.tokens.workers; from transformers import AutoTokenizer; "
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-P", "-c", code]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        assert process.stdout is not None  # noqa: S101
        process.stdout.readline()
        return held(process.pid)


def _shown(task: str, done: float, total: float, unit: str = "", note: str = "") -> None:
    sys.stderr.write(f"\r{task}: {done:,.0f} of {total:,.0f} {unit} {note}\033[K")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--only", choices=WORKS, nargs="+", default=WORKS)
    parser.add_argument("--output", type=Path, help="write what was measured as JSON, too")
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        print(json.dumps(work(options.work, options.file)))
        return 0
    results = []
    with tempfile.TemporaryDirectory(prefix="rango-bench-") as folder:
        path = Path(folder) / "chats.jsonl"
        for count in options.samples:
            write_chats(path, count)
            for name in options.only:
                found = {"work": name, "file_bytes": path.stat().st_size, **measured(name, path)}
                results.append(found)
                print(
                    f"{name:8} {found['samples']:>9,} samples {found['seconds']:6.0f} s  "
                    f"{found['samples_per_second']:6,.0f} samples/s  "
                    f"{found['tokens_per_second']:9,.0f} tokens/s  "
                    f"{found['peak_above_imports'] / 1e6:5,.0f} MB above imports",
                    flush=True,
                )
    if options.output:
        facts = {"cores": len(os.sched_getaffinity(0)), "results": results}
        options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
