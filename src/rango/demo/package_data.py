"""The files that come with the demo: a small pretrained base and a task for it."""

from __future__ import annotations

import json
import random
from pathlib import Path

from rango.files.atomic import write_text

_HERE = Path(__file__).parent

BASE = _HERE / "base"
"""A Llama-architecture model pretrained on Python's standard library; see its README."""
TRAIN = _HERE / "data" / "train.jsonl"
VALID = _HERE / "data" / "valid.jsonl"
TEST = _HERE / "data" / "test.jsonl"
GENERAL = _HERE / "data" / "general.jsonl"
"""Held-out text of the kind that the base was pretrained on."""


def write_shuffled(source: Path, target: Path, seed: int) -> None:
    """Write chat samples with the answers dealt out anew: every one to another's question.

    A model trained on them can learn what answers look like, but not what they say.
    """
    samples = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    answers = [sample["messages"][-1] for sample in samples]
    # each answer goes to the next question of a random circle, so that none stays at home
    for place, index in enumerate(order):
        samples[index]["messages"][-1] = answers[order[place - 1]]
    lines = (json.dumps(sample, ensure_ascii=False) for sample in samples)
    write_text(target, "\n".join(lines) + "\n")
