"""Time and peak memory of a training step: Rango against PEFT and bitsandbytes.

python benchmarks/train_step.py --groups lora qlora
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from contest import apart, compete
from contestants import ENTRIES, LEARNING_RATE, MAX_GRAD_NORM, contestant
from result import Findings, Row, has_bf16_units, program
from shapes import SHAPES
from texts import equal_texts, targets

FP32_TOLERANCE = 1e-5
"""Of first losses: nothing is rounded, only the order of sums differs."""
NF4_TOLERANCE = 1e-3
"""Of first losses: a few double-quantized constants fall to a neighbouring code."""
BF16_TOLERANCE = 2e-2
"""Of losses: PEFT computes in bf16."""
TRAINED_TOLERANCE = 1e-3
"""Of the losses after the first rounds, and so as many AdamW steps."""


@dataclass(frozen=True)
class Goal:
    """A row of the table: ours against a peer, and the ratio required, and the stretch."""

    ours: str
    peer: str
    what: Literal["speed", "time", "memory"]
    bounds: tuple[float, float | None] | None = None


@dataclass(frozen=True)
class Group:
    """Contestants that are loaded together, and what is asked of them."""

    name: str
    shape: str
    goals: tuple[Goal, ...]
    batch: int = 1
    tokens: int = 512
    supervised: float = 1.0
    stored: str = "float32"
    """The checkpoint's type."""

    @property
    def contestants(self) -> list[str]:
        return list(dict.fromkeys(name for goal in self.goals for name in (goal.ours, goal.peer)))


AGAINST_BF16 = Goal("rango-bf16", "peft-bf16", "speed", (6.0, None))

# What fits in 24 GB is loaded together: three contestants of the 0.5B shape at most.
GROUPS = (
    Group(
        "25M shape",
        "25m",
        (
            Goal("rango-fp32", "peft-fp32", "speed", (1.4, 1.7)),
            Goal("rango-fp32", "peft-fp32", "memory"),
        ),
        batch=4,
        tokens=256,
    ),
    Group(
        "LoRA",
        "0.5b",
        (
            Goal("rango-fp32", "peft-fp32", "speed", (1.15, 1.4)),
            Goal("rango-fp32", "peft-fp32", "memory", (0.55, None)),
            Goal("rango-fp32", "frozen", "time"),
        ),
    ),
    Group(
        "a quarter supervised",
        "0.5b",
        (
            Goal("rango-fp32", "peft-fp32", "speed", (1.45, 1.8)),
            Goal("rango-fp32", "peft-fp32", "memory"),
        ),
        supervised=0.25,
    ),
    Group(
        "base in bf16",
        "0.5b",
        (
            Goal("rango-bf16", "rango-fp32", "time", (1.08, 1.02)),
            Goal("rango-bf16", "peft-fp32", "memory", (0.42, 0.35)),
        ),
    ),
    Group("base in bf16, against bf16", "0.5b", (AGAINST_BF16,)),
    Group(
        "QLoRA",
        "0.5b",
        (
            Goal("rango-nf4", "peft-nf4", "speed", (1.15, 1.4)),
            Goal("rango-nf4", "rango-fp32", "time", (1.08, None)),
            Goal("rango-nf4", "peft-nf4", "memory", (0.35, 0.28)),
        ),
        stored="bfloat16",  # as what people train on is published
    ),
    Group(
        "1.1B QLoRA",
        "1.1b",
        (
            Goal("rango-nf4", "peft-nf4", "speed", (1.3, 1.5)),
            Goal("rango-nf4", "peft-nf4", "memory", (0.45, 0.35)),
        ),
        stored="bfloat16",
    ),
    Group(
        "full checkpointing",
        "0.5b",
        (
            Goal("rango-checkpointing", "rango-fp32", "time", (1.30, 1.25)),
            Goal("rango-checkpointing", "rango-fp32", "memory"),
        ),
    ),
)
QUICK = ("25M shape", "a quarter supervised", "QLoRA")


def measure(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    wanted = options.groups or (QUICK if options.quick else [group.name for group in GROUPS])
    for group in GROUPS:
        if group.name in wanted:
            findings.attempt(group.name, lambda g=group: _run(g, options, speed, findings))


def _run(
    group: Group, options: argparse.Namespace, speed: dict[str, Any], findings: Findings
) -> None:
    name = options.shape or ("25m" if options.quick else group.shape)
    shape = SHAPES[name]
    tokens = options.tokens or group.tokens
    texts = equal_texts(shape.vocabulary, group.batch, tokens, group.supervised)
    names = group.contestants
    if options.peer_isa == "avx2" and "peft-bf16" in names:
        names.append("peft-bf16-avx2")
    if options.only:
        names = [entry for entry in names if entry in options.only]
    with tempfile.TemporaryDirectory(prefix="rango-bench-") as folder:
        apart("shapes:write_checkpoint", name, folder, group.stored)
        entered = {entry: contestant(entry, folder, texts, options.rank) for entry in names}
        if "peft-bf16" in entered and not has_bf16_units():  # a minute a step
            entered["peft-bf16"] = replace(entered["peft-bf16"], rounds=1)
        found = compete(
            entered,
            options.rounds or (3 if options.quick else 7),
            options.threads,
            at_once=name in ("toy", "25m"),
        )
    findings.measured[f"{group.name}, {name}"] = found
    flops = shape.step_flops(group.batch * tokens, targets(texts))
    settings = {
        "shape": name,
        "batch": group.batch,
        "tokens": tokens,
        "supervised": group.supervised,
        "stored": group.stored,
        "rank": options.rank,
        "target_modules": "all-linear",
        "optimizer": f"AdamW at {LEARNING_RATE}, norm clipped to {MAX_GRAD_NORM}",
        "bf16_units": has_bf16_units(),
        "share_of_gemm_peak": {
            entry: flops / one["seconds"]["median"] / 1e9 / speed["gemm_fp32_gflops"]
            for entry, one in found.items()
        },
    }
    goals = list(group.goals)
    if "peft-bf16-avx2" in found:
        goals.append(replace(AGAINST_BF16, peer="peft-bf16-avx2"))
    for goal in goals:
        if goal.ours in found and goal.peer in found:
            bounds = goal.bounds if name == group.shape else None
            findings.rows.append(_row(group, goal, bounds, found, settings))
            _check(goal, found, findings)


def _row(
    group: Group,
    goal: Goal,
    bounds: tuple[float, float | None] | None,
    found: dict[str, Any],
    settings: dict[str, Any],
) -> Row:
    sides = [found[name] for name in (goal.ours, goal.peer)]
    title = f"{group.name}, {settings['shape']} {settings['batch']}x{settings['tokens']}"
    against = sides[1]["title"]
    if goal.what == "memory":
        peaks = [[float(side["peak_bytes"])] for side in sides]
        return Row.of(f"{title}: peak memory", "bytes", *peaks, against, bounds, **settings)
    seconds = [[sample["seconds"] for sample in side["samples"]] for side in sides]
    if goal.what == "time":
        return Row.of(f"{title}: step", "s", *seconds, against, bounds, **settings)
    tokens = settings["batch"] * settings["tokens"]
    speeds = [[tokens / each for each in side] for side in seconds]
    return Row.of(f"{title}: speed", "tokens/s", *speeds, against, bounds, **settings)


def _check(goal: Goal, found: dict[str, Any], findings: Findings) -> None:
    """Whether both compute the same: the size of the adapter, the first loss and a later one."""
    a, b, what = found[goal.ours], found[goal.peer], f"{goal.ours} and {goal.peer}"
    if goal.what == "memory" or ("nf4" in goal.ours) != ("nf4" in goal.peer):
        return
    bf16, nf4 = ("bf16" in goal.ours), ("nf4" in goal.ours)
    tolerance = BF16_TOLERANCE if bf16 else NF4_TOLERANCE if nf4 else FP32_TOLERANCE
    first = [one["warm_up"][0]["loss"] for one in (a, b)]
    findings.check(f"{what}: first loss", *first, tolerance)
    if b["trainable"]:
        findings.check(f"{what}: trainable", a["trainable"], b["trainable"], 0.0)
        after = min(len(one["samples"]) for one in (a, b)) - 1
        later = [one["samples"][after]["loss"] for one in (a, b)]
        findings.check(f"{what}: loss", *later, BF16_TOLERANCE if bf16 else TRAINED_TOLERANCE)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--groups", nargs="+", choices=[group.name for group in GROUPS])
    parser.add_argument("--only", nargs="+", choices=ENTRIES, help="leave other contestants out")
    parser.add_argument("--shape", choices=SHAPES, help="this one for all groups, without goals")
    parser.add_argument("--tokens", type=int, help="of a sequence, instead of the group's")
    parser.add_argument("--rank", type=int, default=16, help="r; lora_alpha is twice that")
    parser.add_argument(
        "--peer-isa", choices=["avx2"], help="also run PEFT bf16 as on a CPU without bf16 units"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    return program("train_step", __doc__, measure, arguments, _add)


if __name__ == "__main__":
    sys.exit(main())
