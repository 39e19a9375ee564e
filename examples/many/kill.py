"""Kill a run of many jobs at random, again and again, and see that the adapters are the same.

    python examples/many/kill.py runs/kill --times 10 -- --training.max_steps 8
    python examples/many/kill.py runs/kill-sweep --command sweep --jobs examples/sweep/sweep.yaml

Runs the same command twice (what stands after -- is passed on to it): once undisturbed, and once
killed with SIGKILL at moments drawn from the whole of the run, and continued with --resume. Every
adapter must then be the same file, byte for byte. Exits with 1 where one is not, or where the run
was over before it was killed so often.
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
    parser.add_argument("--command", choices=("train", "sweep"), default="train")
    parser.add_argument("--jobs", type=Path, default=HERE, help="what the command is given")
    parser.add_argument("--times", type=int, default=10, help="how often to kill")
    parser.add_argument("--seed", type=int, default=0)
    words = [*(sys.argv[1:] if arguments is None else arguments), "--"]
    own = words.index("--")
    options, passed_on = parser.parse_args(words[:own]), words[own + 1 : -1]
    options.output.mkdir(parents=True)
    whole, killed = options.output / "whole", options.output / "killed"
    flags = ["--snapshot_seconds", "1", *passed_on]
    command = [sys.executable, "-m", "rango.cli.main", options.command, str(options.jobs), *flags]
    subprocess.run([*command, "--output", str(whole)], check=True, stdout=subprocess.DEVNULL)
    drawn, kills = random.Random(options.seed), 0
    moments = sorted(drawn.uniform(0, written(whole)) for _ in range(options.times))
    while not (killed / "result.json").exists():
        resume = ["--resume"] if (killed / "config.yaml").exists() else []
        moment = moments[kills] if kills < options.times else None
        ended = _run([*command, "--output", str(killed), *resume], killed, moment, drawn.random())
        if ended is None:
            kills += 1
            snapshots = sorted(path.name for path in killed.glob("snapshots/round-*"))
            at = snapshots[-1] if snapshots else "before the first snapshot"
            print(f"killed {kills}: {written(killed) / written(whole):.0%}, {at}", flush=True)
        elif ended:
            raise SystemExit(f"the command ended with exit code {ended}")
    expected, found = digests(whole), digests(killed)
    differing = sorted(name for name in expected if found.get(name) != expected[name])
    print(f"killed {kills} times; {len(expected)} adapters, {len(differing)} of them differ")
    for name in differing:
        print(f"not the same: {name}")
    return 1 if differing or not expected or kills < options.times else 0


def _run(command: list[str], run: Path, moment: float | None, more: float) -> int | None:
    """The command's exit code; None where it was killed, `more` seconds after it had written as
    much as `moment` says."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **quiet) as process:  # type: ignore[call-overload]
        while moment is not None and process.poll() is None:
            if written(run) >= moment:
                time.sleep(more)
                process.send_signal(signal.SIGKILL)
                process.communicate()
                return None if process.returncode == -signal.SIGKILL else int(process.returncode)
            time.sleep(0.02)
        _, errors = process.communicate()
    if process.returncode:
        print(errors, file=sys.stderr)
    return int(process.returncode)


def written(run: Path) -> int:
    """Bytes of events: how far a run is."""
    sizes = [path.stat().st_size for path in run.glob("jobs/*/events.jsonl") if path.exists()]
    return sum(sizes)


def digests(run: Path) -> dict[str, str]:
    """Of the adapters' weights, by their folders."""
    files = sorted([*run.glob("jobs/*/adapter/*.safetensors"), *run.glob("best/*.safetensors")])
    return {
        str(path.parent.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


if __name__ == "__main__":
    sys.exit(main())
