"""A whole job: samples of all lengths, a third supervised. Rango against TRL's SFTTrainer.

    python benchmarks/train_job.py --samples 200

The 25M shape, 1,000 texts of lognormal length, one epoch at an effective batch of 16. Contestants
take turns after each optimizer step, so a job's time is the sum of its turns: data loading, logging
and whatever else a trainer does are in it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from contest import Contestant, apart, compete
from contestants import PEFT_IMPORTS, RANGO_IMPORTS
from result import Findings, Row, program
from shapes import SHAPES
from texts import LONGEST, SIGMA, SUPERVISED, Text, job_texts, targets

BATCH = 16
RANK = 16
LEARNING_RATE = 1e-3
LOSS_TOLERANCE = 0.05
"""Of the mean loss over the second half of a job: the contestants see other batches."""
DEFAULTS = "trl-defaults"
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    DEFAULTS: (
        "TRL, its defaults",
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    ),
    "trl-packing": (
        "TRL, packing",
        # rows as short as they can be, for attention is computed over whole rows; the length is
        # set so that a step has 16 samples on average
        {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
    ),
    "trl-padding-free": (
        "TRL, padding-free",
        {
            "padding_free": True,
            "max_length": None,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
        },
    ),
    "trl-by-length": (
        "TRL, grouped by length",
        {
            "train_sampling_strategy": "group_by_length",
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
        },
    ),
}
GOALS = {"defaults": (2.5, 4.0), "best": (1.4, 2.0)}


def contestants(folder: str, texts: list[Text], names: Sequence[str]) -> dict[str, Contestant]:
    """Rango and TRL with these settings."""
    common = {"folder": folder, "texts": texts, "rank": RANK}
    training = {"epochs": 1.0, "batch_size": BATCH, "learning_rate": LEARNING_RATE}
    options = common | {"training": training}
    found = {"rango": Contestant("Rango", "contestants:RangoTraining", options, RANGO_IMPORTS)}
    for name in names:
        title, settings = SETTINGS[name]
        if settings.get("packing"):
            rows = settings["gradient_accumulation_steps"]
            length = math.ceil(sum(len(ids) for ids, _ in texts) / len(texts) * BATCH / rows)
            settings = settings | {"max_length": max(length, max(len(ids) for ids, _ in texts))}
        options = common | {"learning_rate": LEARNING_RATE, "settings": settings}
        found[name] = Contestant(title, "contestants:TrlTraining", options, (*PEFT_IMPORTS, "trl"))
    return found


def measure(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    findings.attempt("the job", lambda: _run(options, speed, findings))


def _run(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    shape = SHAPES[options.shape]
    count = options.samples or (20 if options.quick else 1000)
    texts = job_texts(shape.vocabulary, count)
    with tempfile.TemporaryDirectory(prefix="rango-bench-") as folder:
        apart("shapes:write_checkpoint", shape.name, folder)
        peers = [DEFAULTS, "trl-padding-free"] if options.quick else list(SETTINGS)[:3]
        entered = contestants(folder, texts, options.peers or peers)
        found = compete(
            entered,
            options.rounds,
            options.threads,
            warm_up=0,
            at_once=True,
            poll_seconds=0.05,
        )
    for name, one in found.items():
        one["samples_per_second"] = count / _seconds(one)
        one["settings"] = entered[name].options.get("settings", {})
    findings.measured["the job"] = found
    tokens = sum(len(ids) for ids, _ in texts)
    flops = shape.step_flops(tokens, targets(texts))
    settings = {
        "shape": shape.name,
        "samples": count,
        "tokens": tokens,
        "lengths": f"lognormal, median 180, sigma {SIGMA}, at most {LONGEST}",
        "supervised": SUPERVISED,
        "effective_batch": BATCH,
        "rank": RANK,
        "share_of_gemm_peak": {
            name: flops / _seconds(one) / 1e9 / speed["gemm_fp32_gflops"]
            for name, one in found.items()
        },
    }
    tuned = [one for name, one in found.items() if name not in ("rango", DEFAULTS)]
    against = {"defaults": found.get(DEFAULTS)}
    if tuned:
        against["best"] = max(tuned, key=lambda one: one["samples_per_second"])
    for which, peer in against.items():
        if peer is None:
            continue
        whole = shape.name == "25m" and count >= 1000
        findings.rows.append(
            Row.of(
                f"a job, {shape.name}, {count} samples: against TRL's {which}",
                "samples/s",
                [found["rango"]["samples_per_second"]],
                [peer["samples_per_second"]],
                peer["title"],
                GOALS[which] if whole else None,
                **settings,
            )
        )
    for peer in list(found.values())[1:]:
        losses = [_later_loss(one) for one in (found["rango"], peer)]
        findings.check(f"rango and {peer['title']}: later losses", *losses, LOSS_TOLERANCE)


def _seconds(one: dict[str, Any]) -> float:
    """Of a whole job."""
    return float(sum(sample["seconds"] for sample in one["samples"]) + (one["over_seconds"] or 0))


def _later_loss(one: dict[str, Any]) -> float:
    """Mean over the second half of the steps."""
    losses = [sample["loss"] for sample in one["samples"]]
    return statistics.fmean(losses[len(losses) // 2 :])


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, help="how many; 1000 by default")
    parser.add_argument("--shape", choices=SHAPES, default="25m")
    parser.add_argument("--peers", nargs="+", choices=SETTINGS)


def main(arguments: Sequence[str] | None = None) -> int:
    return program("train_job", __doc__, measure, arguments, _add)


if __name__ == "__main__":
    sys.exit(main())
