"""Data on its way to the model: packing beside TRL's, tokenization beside `datasets.map`.

    python benchmarks/data.py --samples 200000

Packing: 10,000 samples of lognormal length (median 180, sigma 1, at most 1024) into rows of 1024,
up to the rows' tensors. Tokenization: a file of synthetic chats, from the file to token ids and
labels, as TRL's SFTTrainer prepares it: apply_chat_template in one map, the labels in another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contest import Contestant, apart, compete
from result import Findings, Row, program

MEDIAN, SIGMA, CAPACITY = 180, 1.0, 1024
AT_LEAST = 0.97
"""Of the rows' capacity that packing has to use."""
VOCABULARY = 8192
END = "<|end|>"
SUPERVISED_TOLERANCE = 1e-3
"""Of supervised tokens: a token that straddles the answer's begin may be counted or not."""
LIBRARIES = ("transformers", "datasets")
OURS = ("rango.data.tokens.pack", "rango.data.tokens.tokenize", "rango.data.reading.read")


def job_lengths(count: int) -> list[int]:
    """Lognormal lengths, cut at the capacity."""
    drawn = np.random.default_rng(3).lognormal(math.log(MEDIAN), SIGMA, count)
    return [int(length) for length in drawn.round().clip(2, CAPACITY)]


def _job_ids(lengths: Sequence[int]) -> list[list[int]]:
    generator = np.random.default_rng(4)
    return [generator.integers(3, VOCABULARY, length).tolist() for length in lengths]


class RangoPacking:
    """plan_batches and collate, from samples as tokenize leaves them."""

    def __init__(self, lengths: list[int], million: bool) -> None:
        from rango.data.samples import Origin, Sample
        from rango.data.tokens.pack import best_fit
        from rango.data.tokens.store import Block, StoreWriter

        nowhere = Origin("random", 1)
        samples = [
            Sample(tuple(ids), (False, *[True] * (len(ids) - 1)), (False,) * len(ids), nowhere)
            for ids in _job_ids(lengths)
        ]
        with tempfile.TemporaryDirectory() as folder, StoreWriter(Path(folder)) as writer:
            writer.add(Block.of(samples))
            self.samples = writer.finish({})
        self.facts: dict[str, Any] = {"samples_cut": 0.0}
        if million:
            many = sorted(job_lengths(1_000_000), reverse=True)
            started = time.perf_counter()
            best_fit(many, CAPACITY)
            self.facts["million_lengths_seconds"] = time.perf_counter() - started

    def step(self) -> dict[str, float]:
        from rango.data.tokens.pack import collate, efficiency, plan_batches

        options: dict[str, Any] = {"micro_tokens": CAPACITY, "packed": True}
        started = time.perf_counter()
        plan = plan_batches(self.samples, range(len(self.samples)), **options)
        planned = time.perf_counter() - started
        tokens = sum(collate(self.samples, indices, packed=True).tokens for indices in plan)
        found = efficiency(self.samples, plan, **options)
        return {"tokens": tokens, "efficiency": found.of_capacity, "plan_seconds": planned}


class TrlPacking:
    """pack_dataset, then each row's tensors as the collator makes them."""

    def __init__(self, lengths: list[int], strategy: str) -> None:
        from datasets import Dataset, disable_caching, disable_progress_bars

        disable_caching()
        disable_progress_bars()
        ids = _job_ids(lengths)
        self.strategy = strategy
        self.dataset = Dataset.from_dict({"input_ids": ids, "labels": ids})
        self.facts = {"samples_cut": _cut(lengths) if strategy == "wrapped" else 0.0}

    def step(self) -> dict[str, float]:
        import torch
        from trl.data_utils import pack_dataset

        packed = pack_dataset(self.dataset, CAPACITY, self.strategy)
        tokens = 0
        for row in packed:
            tokens += len(torch.tensor(row["input_ids"]))
            torch.tensor(row["labels"])
        return {"tokens": tokens, "efficiency": tokens / (len(packed) * CAPACITY)}


def _cut(lengths: Sequence[int], batch: int = 1000) -> float:
    """Share of the samples that end in another row than they begin in, when rows are filled one
    after the other; `batch` samples at a time, as datasets.map gives them."""
    cut = 0
    for first in range(0, len(lengths), batch):
        ends = list(itertools.accumulate(lengths[first : first + batch]))
        begins = [0, *ends[:-1]]
        cut += sum(a // CAPACITY != (b - 1) // CAPACITY for a, b in zip(begins, ends, strict=True))
    return cut / len(lengths)


class RangoTokenizing:
    """stream_examples and tokenize."""

    def __init__(self, folder: str, workers: int, cached: bool) -> None:
        self.folder, self.workers, self.cached = Path(folder), workers, cached
        self.facts: dict[str, Any] = {}

    def step(self) -> dict[str, float]:
        from transformers import AutoTokenizer

        from rango.data.reading.read import stream_examples
        from rango.data.tokens.tokenize import tokenize
        from rango.files.digests import file_digest

        begun = _cpu_seconds()
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        path = self.folder / "chats.jsonl"
        with tempfile.TemporaryDirectory() as fresh:
            done = tokenize(
                stream_examples(path),
                tokenizer,
                max_length=2**20,  # the maps of the peer cut nothing
                workers=self.workers,
                cache=self.folder / "rango-cache" if self.cached else fresh,
                data=file_digest(path),
            )
        found = {"tokens": done.tokens, "supervised": done.supervised, "rows": len(done.samples)}
        return found | {"cpu_seconds": _cpu_seconds() - begun}


class DatasetsTokenizing:
    """load_dataset and the maps of TRL's SFTTrainer (assistant_only_loss)."""

    def __init__(self, folder: str, processes: int, cached: bool) -> None:
        from datasets import disable_progress_bars

        disable_progress_bars()
        self.folder, self.cached = Path(folder), cached
        self.processes = None if processes == 1 else processes  # TRL's default
        self.facts: dict[str, Any] = {}

    def step(self) -> dict[str, float]:
        from datasets import load_dataset
        from transformers import AutoTokenizer

        begun = _cpu_seconds()
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        with tempfile.TemporaryDirectory() as fresh:
            dataset = load_dataset(
                "json",
                data_files=str(self.folder / "chats.jsonl"),
                split="train",
                cache_dir=str(self.folder / "datasets-cache" if self.cached else fresh),
            )
            dataset = dataset.map(
                _tokenized,
                fn_kwargs={"tokenizer": tokenizer, "template": tokenizer.chat_template},
                num_proc=self.processes,
            )
            dataset = dataset.map(
                _labelled, remove_columns=["assistant_masks"], num_proc=self.processes
            )
            table = dataset.with_format("arrow")
            tokens = supervised = 0
            for batch in table.iter(1000):
                labels = batch.column("labels").combine_chunks().flatten().to_numpy()
                tokens += len(labels)
                supervised += int((labels != -100).sum())
            rows = len(dataset)
        found = {"tokens": tokens, "supervised": supervised, "rows": rows}
        return found | {"cpu_seconds": _cpu_seconds() - begun}


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for, which are no one else's load."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _tokenized(example: dict[str, Any], tokenizer: Any, template: str) -> dict[str, Any]:
    found = tokenizer.apply_chat_template(
        example["messages"],
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return {name: found[name] for name in ("input_ids", "assistant_masks")}


def _labelled(example: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(example["input_ids"], example["assistant_masks"], strict=True)
    return {"labels": [token if learnt else -100 for token, learnt in pairs]}


def prepare(folder: str, count: int) -> None:
    """Write a byte-level BPE tokenizer trained on the demo's text, and `count` chats made of its
    words. In a process of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from rango.demo.package_data import BASE, TRAIN

    entries = [json.loads(line) for line in TRAIN.read_text(encoding="utf-8").splitlines()]
    texts = [message["content"] for entry in entries for message in entry["messages"]]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", END, "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token="<|pad|>")
    tokenizer.chat_template = (BASE / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(Path(folder) / "tokenizer")

    words = np.array(" ".join(texts).split())
    generator = np.random.default_rng(5)
    with open(Path(folder) / "chats.jsonl", "w", encoding="utf-8") as file:
        for _ in range(count):
            messages = []
            for role, median in (("user", 20), ("assistant", 30)) * int(generator.integers(1, 3)):
                length = min(max(1, int(generator.lognormal(math.log(median), 0.6))), 300)
                first = int(generator.integers(0, len(words) - length))
                content = " ".join(words[first : first + length])
                messages.append({"role": role, "content": content})
            file.write(json.dumps({"messages": messages}) + "\n")


def measure(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    findings.attempt("packing", lambda: _packing(options, findings))
    count = options.samples or (500 if options.quick else 100_000)
    with tempfile.TemporaryDirectory(prefix="rango-bench-") as folder:
        apart("data:prepare", folder, count)
        for processes in (1,) if options.quick else (1, 2):
            findings.attempt(
                f"tokenizing in {processes}",
                lambda n=processes: _tokenizing(folder, count, n, False, options, findings),
            )
        findings.attempt(
            "tokenized before", lambda: _tokenizing(folder, count, 1, True, options, findings)
        )


def _packing(options: argparse.Namespace, findings: Findings) -> None:
    count = 2000 if options.quick else 10_000
    lengths = job_lengths(count)
    entered = {
        "rango": Contestant(
            "Rango, best fit",
            "data:RangoPacking",
            {"lengths": lengths, "million": not options.quick},
            OURS,
        )
    }
    for strategy in ("bfd", "wrapped"):
        entered[strategy] = Contestant(
            f"TRL, {strategy}",
            "data:TrlPacking",
            {"lengths": lengths, "strategy": strategy},
            (*LIBRARIES, "trl.data_utils"),
        )
    rounds = options.rounds or (1 if options.quick else 5)
    found = compete(entered, rounds, options.threads, warm_up=1, at_once=True)
    findings.measured["packing"] = found
    ours = found["rango"]
    reached = min(sample["efficiency"] for sample in ours["samples"])
    findings.check(f"packing uses {AT_LEAST:.0%}", min(reached, AT_LEAST), AT_LEAST, 0.0)
    findings.check("tokens packed", ours["samples"][0]["tokens"], sum(lengths), 0.0)
    for strategy in ("bfd", "wrapped"):
        peer = found[strategy]
        settings = {
            "samples": count,
            "tokens": sum(lengths),
            "lengths": f"lognormal, median {MEDIAN}, sigma {SIGMA}, at most {CAPACITY}",
            "capacity": CAPACITY,
            "samples_cut_in_two": {"ours": ours["samples_cut"], "peer": peer["samples_cut"]},
            "plan_seconds": [sample["plan_seconds"] for sample in ours["samples"]],
            "million_lengths_seconds": ours.get("million_lengths_seconds"),
        }
        sides = (ours, peer)
        shares = [[sample["efficiency"] for sample in side["samples"]] for side in sides]
        speeds = [[sum(lengths) / sample["seconds"] for sample in one["samples"]] for one in sides]
        name = f"packing {count:,} samples"
        for what, unit, values in (
            ("efficiency", "of capacity", shares),
            ("to tensors", "tokens/s", speeds),
        ):
            goal = None if options.quick or (what, strategy) == ("efficiency", "wrapped") else 1.0
            bounds = None if goal is None else (goal, None)
            findings.rows.append(
                Row.of(f"{name}: {what}", unit, *values, peer["title"], bounds, **settings)
            )


def _tokenizing(
    folder: str,
    count: int,
    processes: int,
    cached: bool,
    options: argparse.Namespace,
    findings: Findings,
) -> None:
    entered = {
        "rango": Contestant(
            "Rango",
            "data:RangoTokenizing",
            {"folder": folder, "workers": processes, "cached": cached},
            OURS,
        ),
        "datasets": Contestant(
            "datasets.map, as TRL does",
            "data:DatasetsTokenizing",
            {"folder": folder, "processes": processes, "cached": cached},
            LIBRARIES,
        ),
    }
    rounds = options.rounds or (1 if options.quick else 3)
    found = compete(entered, rounds, options.threads, warm_up=1, at_once=True, poll_seconds=0.05)
    named = "1 process" if processes == 1 else f"{processes} processes"
    named = "kept from the first run" if cached else named
    findings.measured[f"tokenizing {count:,} chats, {named}"] = found
    ours, peer = found["rango"], found["datasets"]
    first, other = ours["samples"][0], peer["samples"][0]
    for what, tolerance in (("rows", 0.0), ("tokens", 0.0), ("supervised", SUPERVISED_TOLERANCE)):
        findings.check(f"{what} of {count:,} chats, {named}", first[what], other[what], tolerance)
    settings = {
        "samples": count,
        "tokens": first["tokens"],
        "processes": processes,
        "from": "the cache" if cached else "a JSON Lines file",
    }
    speeds = [
        [sample["tokens"] / sample["seconds"] for sample in one["samples"]] for one in (ours, peer)
    ]
    title = f"tokenizing {count:,} chats, {named}"
    findings.rows.append(Row.of(title, "tokens/s", *speeds, peer["title"], None, **settings))
    if processes == 1 and not cached:
        sizes = [
            [float(max(1, one["peak_anonymous_bytes"] - one["imports_anonymous_bytes"]))]
            for one in (ours, peer)
        ]
        name = f"{title}: memory above imports"
        findings.rows.append(Row.of(name, "bytes", *sizes, peer["title"], None, **settings))


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, help="chats to tokenize; 100,000 by default")


def main(arguments: Sequence[str] | None = None) -> int:
    return program("data", __doc__, measure, arguments, _add)


if __name__ == "__main__":
    sys.exit(main())
