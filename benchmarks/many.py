"""Many jobs at once: Rango's `train_many` against Rango, and PEFT, one job after another.

    python benchmarks/many.py --shapes 25m --counts 1 16 --kinds fp32

A job trains r = 8 on four texts of 128 tokens a step. The contestants take turns: a turn of K jobs
at once is a round, in which each does a step; a turn of those that train one job after another is a
step, and K jobs take them K times that. Times of whole jobs are medians times --steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contest import Contestant, Turns, apart, compete, lower_peak
from contestants import LEARNING_RATE, MAX_GRAD_NORM, NF4, RANGO_IMPORTS, contestant
from result import Findings, Row, program
from shapes import SHAPES
from texts import Text, equal_texts

RANK, BATCH, TOKENS = 8, 4, 128
BYTES = 16
"""A parameter of a row: itself, its gradient and AdamW's two moments, in fp32."""
KINDS = {"fp32": ("rango-fp32", "peft-fp32"), "nf4": ("rango-nf4", "peft-nf4")}
STORED = {"fp32": "float32", "nf4": "bfloat16"}
ROUNDS = {"25m": {1: 20, 4: 12, 16: 8, 64: 2}, "0.5b": {1: 3, 4: 2, 16: 2}}
"""Counted turns, by shape and number of jobs: two cores take some 50 minutes for all."""
SWEEP, SWEEP_ROUNDS = 8, {"25m": 8, "0.5b": 2}
"""Jobs that differ in their learning rate alone, over the same samples."""
SPEED = {"fp32": (1.3, 2.0), "nf4": (1.6, 2.0)}
"""Goals of 16 jobs at once over PEFT's tokens a second, as many times as fast."""
MEMORY, SWEEP_TIME = (1.15, None), (1.1, None)
FIRST_LOSS = {"fp32": 1e-5, "nf4": 1e-3}
"""Tolerance of first losses; over NF4, a few double-quantized constants of the peer's differ."""


class RangoMany:
    """`train_many`, a turn a round; the first turn is loading, and taking up the jobs."""

    def __init__(
        self,
        folder: str,
        data: list[str],
        rates: list[float],
        load: dict[str, Any],
        micro_tokens: int,
    ) -> None:
        """data, rates: a file and a learning rate for each job."""
        from rango.adapters.config import LoraConfig
        from rango.base.config import BaseConfig
        from rango.data.config import DataConfig
        from rango.training.config import TrainingConfig
        from rango.training.many.config import JobConfig, ManyConfig

        self.output = tempfile.TemporaryDirectory(prefix="rango-many-")
        jobs = [
            JobConfig(
                f"job-{number}",
                DataConfig(file, valid_share=0.0),
                LoraConfig(r=RANK, lora_alpha=2 * RANK),
                TrainingConfig(
                    max_steps=10_000,
                    epochs=10_000,
                    batch_size=BATCH,
                    learning_rate=rate,
                    max_grad_norm=MAX_GRAD_NORM,
                    warmup_share=0.0,
                ),
            )
            for number, (file, rate) in enumerate(zip(data, rates, strict=True))
        ]
        self.config = ManyConfig(
            BaseConfig(folder, **load),
            jobs,
            str(Path(self.output.name) / "run"),
            rows=len(jobs),
            round_tokens=len(jobs) * BATCH * TOKENS,
            micro_tokens=micro_tokens,
            snapshot_seconds=1e9,  # saving is left out
        )
        self.facts: dict[str, Any] = {}

    def run(self, turns: Turns) -> None:
        from rango.training.many.train import train_many

        seen = 0

        def watch(fleet: Any) -> None:
            nonlocal seen
            if fleet.round == 0 and len(fleet.jobs) == len(self.config.jobs):
                lower_peak()  # what follows is training
                turns.next(parameters=fleet.adapted.bank.layout.size)
            elif fleet.round > seen:
                if len(fleet.jobs) < len(self.config.jobs):
                    raise RuntimeError(f"a job ended: {fleet.outcomes}")
                seen = fleet.round
                turns.next(loss=fleet.jobs["job-0"].loss)

        train_many(self.config, watch=watch)


def write_data(folder: str, vocabulary: int, jobs: int) -> list[list[Text]]:
    """A tokenizer of words beside the checkpoint, and each job's texts as a file job-N.jsonl;
    returns them as tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )
    tokenizer.save_pretrained(folder)
    # a text is learnt whole, and ends in the token that ends texts
    drawn = [ids[:-1] for ids, _ in equal_texts(vocabulary, BATCH * jobs, TOKENS)]
    of_jobs = [drawn[first : first + BATCH] for first in range(0, len(drawn), BATCH)]
    for number, texts in enumerate(of_jobs):
        lines = (json.dumps({"text": " ".join(f"w{n}" for n in ids)}) + "\n" for ids in texts)
        (Path(folder) / f"job-{number}.jsonl").write_text("".join(lines))
    return [[([*ids, 2], 0) for ids in texts] for texts in of_jobs]


def measure(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    for shape in options.shapes or (["25m"] if options.quick else list(ROUNDS)):
        for kind in options.kinds:
            peaks: dict[int, dict[str, Any]] = {}
            known = ROUNDS.get(shape, ROUNDS["25m"])
            for count in sorted(options.counts or ([4] if options.quick else known)):
                name = f"{count} jobs, {shape}, {kind}" if count > 1 else f"1 job, {shape}, {kind}"
                rounds = options.rounds or (2 if options.quick else known.get(count, 2))
                arguments = (name, shape, kind, count, rounds, options, findings, peaks)
                findings.attempt(name, lambda a=arguments: _run(*a))
            if options.sweep and not options.quick:
                name = f"a sweep of {SWEEP} learning rates, {shape}, {kind}"
                rounds = options.rounds or SWEEP_ROUNDS.get(shape, 2)
                arguments = (name, shape, kind, SWEEP, rounds, options, findings, peaks)
                findings.attempt(name, lambda a=arguments: _run(*a, sweep=True))


def _run(
    name: str,
    shape: str,
    kind: str,
    count: int,
    rounds: int,
    options: argparse.Namespace,
    findings: Findings,
    peaks: dict[int, dict[str, Any]],
    sweep: bool = False,
) -> None:
    """A contest of `count` jobs; peaks keeps what one job took, for those that come after."""
    single, peer = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="rango-bench-") as folder:
        apart("shapes:write_checkpoint", shape, folder, STORED[kind])
        jobs = 1 if sweep else count
        texts = apart("many:write_data", folder, SHAPES[shape].vocabulary, jobs)[0]
        data = [f"{folder}/job-{0 if sweep else number}.jsonl" for number in range(count)]
        rates = [LEARNING_RATE * 2.0 ** -(n if sweep else 0) for n in range(count)]
        load = NF4 if kind == "nf4" else {"dtype": "fp32"}
        made = {"folder": folder, "data": data, "rates": rates, "load": load}
        many = Contestant(
            f"Rango, {count} at once" if count > 1 else "Rango, train_many of one",
            "many:RangoMany",
            made | {"micro_tokens": options.micro_tokens},
            (*RANGO_IMPORTS, "rango.training.many.train"),
        )
        alone = {single: contestant(single, folder, texts, RANK)}
        if not sweep:
            alone[peer] = contestant(peer, folder, texts, RANK)
        found = compete(
            {"many": many, **alone},
            rounds,
            options.threads,
            warm_up=2,
            at_once=options.quick,  # else loading is timed, one after another
        )
    findings.measured[name] = found
    if count == 1:
        peaks[1] = found["many"]
    for entry in alone:
        tolerance = FIRST_LOSS[kind] if entry == peer else FIRST_LOSS["fp32"]
        losses = [_first_loss(one) for one in (found["many"], found[entry])]
        findings.check(f"{name}: first loss of many and {entry}", *losses, tolerance)
    whole = not options.quick and shape in ROUNDS
    findings.rows += _rows(name, kind, count, found, peaks, options, whole, sweep)


def _rows(
    name: str,
    kind: str,
    count: int,
    found: dict[str, Any],
    peaks: dict[int, dict[str, Any]],
    options: argparse.Namespace,
    whole: bool,
    sweep: bool,
) -> list[Row]:
    single, peer = KINDS[kind]
    many, rows = found["many"], []
    parameters = int(many["warm_up"][0]["parameters"])
    common = {
        "jobs": count,
        "rank": RANK,
        "batch": BATCH,
        "tokens": TOKENS,
        "micro_tokens": options.micro_tokens,
        "parameters_of_a_row": parameters,
    }
    goal = SPEED[kind] if whole and count == 16 and not sweep else None
    rounds = _seconds(many)
    for entry, bounds in ((peer, goal), (single, None)):
        if entry not in found:
            continue
        against = f"{found[entry]['title']}, one job after another"
        steps = _seconds(found[entry])
        if sweep:  # as much as one run with as many tokens
            times = [count * each for each in steps]
            asked = SWEEP_TIME if whole else None
            rows.append(Row.of(f"{name}: a round", "s", rounds, times, "one run", asked, **common))
            continue
        speeds = (
            [count * BATCH * TOKENS / each for each in rounds],
            [BATCH * TOKENS / each for each in steps],
        )
        rows.append(Row.of(f"{name}: speed", "tokens/s", *speeds, against, bounds, **common))
        ours = many["ready_seconds"] + many["warm_up"][0]["seconds"]
        ours += options.steps * statistics.median(rounds)
        theirs = found[entry]["ready_seconds"] + options.steps * statistics.median(steps)
        title = f"{name}: {options.steps} steps with imports and loading"
        rows.append(Row.of(title, "s", [ours], [count * theirs], against, None, **common))
    if peer in found:
        sides = ([float(many["peak_bytes"])], [float(found[peer]["peak_bytes"])])
        against = f"{found[peer]['title']}, one job"
        rows.append(Row.of(f"{name}: peak memory", "bytes", *sides, against, None, **common))
    if count > 1 and 1 in peaks:
        more = (count - 1) * parameters * BYTES
        sides = ([float(many["peak_bytes"] - more)], [float(peaks[1]["peak_bytes"])])
        asked = MEMORY if whole and (sweep or count == 16) else None
        title = f"{name}: peak memory less {count - 1} of its rows"
        settings = common | {"left_out_bytes": more, "bytes_a_parameter": BYTES}
        rows.append(Row.of(title, "bytes", *sides, "one job", asked, **settings))
    return rows


def _seconds(one: dict[str, Any]) -> list[float]:
    """Of the counted turns."""
    return [sample["seconds"] for sample in one["samples"]]


def _first_loss(one: dict[str, Any]) -> float:
    """Of the first step."""
    samples = [*one["warm_up"], *one["samples"]]
    return float(next(sample["loss"] for sample in samples if "loss" in sample))


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--counts", nargs="+", type=int, help="jobs at once")
    parser.add_argument("--steps", type=int, default=50, help="of a job, in times of whole jobs")
    parser.add_argument("--micro-tokens", type=int, default=512, help="computed at once")
    parser.add_argument("--no-sweep", dest="sweep", action="store_false", help="leave it out")


def main(arguments: Sequence[str] | None = None) -> int:
    return program("many", __doc__, measure, arguments, _add)


if __name__ == "__main__":
    sys.exit(main())
