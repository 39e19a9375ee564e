"""Kill a run of many jobs at random, again and again, and see that the adapters are the same.

    python examples/many/kill.py runs/kill --times 10 -- --training.max_steps 8

Trains twice with the same command (what stands after -- is passed on to it): once undisturbed, and
once killed with SIGKILL after some seconds, drawn at random, and continued with --resume. Every
adapter must then be the same file, byte for byte. Exits with 1 where one is not.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, train and kill, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, help="folder for both runs, which must not exist yet")
    parser.add_argument("--jobs", type=Path, default=HERE, help="what rango train is given")
    parser.add_argument("--times", type=int, default=10, help="how often to kill")
    parser.add_argument(
        "--longest",
        type=float,
        help="most seconds until it is killed; by default such that the kills spread over a run",
    )
    parser.add_argument("--seed", type=int, default=0)
    words = [*(sys.argv[1:] if arguments is None else arguments), "--"]
    own = words.index("--")
    options, passed_on = parser.parse_args(words[:own]), words[own + 1 : -1]
    options.output.mkdir(parents=True)
    whole, killed = options.output / "whole", options.output / "killed"
    flags = ["--snapshot_seconds", "1", *passed_on]
    command = [sys.executable, "-m", "rango.cli.main", "train", str(options.jobs), *flags]
    began = time.perf_counter()
    subprocess.run([*command, "--output", str(whole)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    longest = options.longest or 20 + 2 * seconds / options.times  # it starts anew each time
    drawn, kills = random.Random(options.seed), 0
    while not (killed / "result.json").exists():
        resume = ["--resume"] if (killed / "config.yaml").exists() else []
        wait = drawn.uniform(0, longest) if kills < options.times else None
        ended = _run([*command, "--output", str(killed), *resume], wait)
        if ended is None:
            kills += 1
            snapshots = sorted(path.name for path in killed.glob("snapshots/round-*"))
            at = snapshots[-1] if snapshots else "before the first snapshot"
            print(f"killed {kills}: after {wait:.1f} s, {at}", flush=True)
        elif ended:
            raise SystemExit(f"the command ended with exit code {ended}")
    expected, found = digests(whole), digests(killed)
    differing = sorted(name for name in expected if found.get(name) != expected[name])
    print(f"killed {kills} times; {len(expected)} adapters, {len(differing)} of them differ")
    for name in differing:
        print(f"not the same: {name}")
    return 1 if differing or not expected else 0


def _run(command: list[str], wait: float | None) -> int | None:
    """The command's exit code; None where it was killed after `wait` seconds."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **quiet) as process:  # type: ignore[call-overload]
        try:
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return None
    if process.returncode:
        print(errors, file=sys.stderr)
    return int(process.returncode)


def digests(run: Path) -> dict[str, str]:
    """Of the adapters' weights, by job."""
    files = sorted(run.glob("jobs/*/adapter/adapter_model.safetensors"))
    return {path.parts[-3]: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    sys.exit(main())
