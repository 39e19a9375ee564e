"""Rango, PEFT and the floor compute the same on the same texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Module = Callable[[str], Any]


class _Losses:
    """Turns of a contestant with a loop of its own: this many."""

    def __init__(self, module: Module, count: int) -> None:
        self.stopped, self.count = module("contest").Stopped, count
        self.losses: list[float] = []

    def next(self, **found: float) -> None:
        self.losses.append(found["loss"])
        if len(self.losses) == self.count:
            raise self.stopped


def _losses(module: Module, made: Any, count: int = 4) -> list[float]:
    if not hasattr(made, "run"):
        return [made.step()["loss"] for _ in range(count)]
    turns = _Losses(module, count)
    with pytest.raises(turns.stopped):
        made.run(turns)
    return turns.losses


# peft 0.21 reads a flag that transformers 5.23 renames
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("supervised", [1.0, 0.25])
def test_same_losses(module: Module, tmp_path: Path, supervised: float) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    module("shapes").write_checkpoint("toy", str(tmp_path))
    texts = module("texts").equal_texts(256, 2, 24, supervised)
    names = ("rango-fp32", "peft-fp32", "rango-nf4", "peft-nf4", "rango-bf16", "frozen")
    made, losses = {}, {}
    for name in names:
        one = module("contestants").contestant(name, str(tmp_path), texts, 4)
        make = getattr(module("contestants"), one.make.partition(":")[2])
        made[name] = make(**one.options)
        losses[name] = _losses(module, made[name])
    for kind in ("fp32", "nf4"):
        ours, peer = f"rango-{kind}", f"peft-{kind}"
        assert made[ours].facts["trainable"] == made[peer].facts["trainable"] > 0
        torch.testing.assert_close(losses[ours], losses[peer], rtol=1e-4, atol=0)
        assert losses[ours][-1] < losses[ours][0] - 1e-3  # it trains
    assert losses["rango-fp32"][0] == pytest.approx(losses["frozen"][0], rel=1e-5)
    assert losses["rango-nf4"][0] != losses["rango-fp32"][0]
    assert losses["rango-bf16"][0] == pytest.approx(losses["rango-fp32"][0], rel=2e-2)


def test_job_texts(module: Module) -> None:
    texts = module("texts")
    found = texts.job_texts(8192, 1000)
    lengths = torch.tensor([float(len(ids)) for ids, _ in found])
    assert lengths.median().item() == pytest.approx(180, rel=0.1)
    assert lengths.log().std().item() == pytest.approx(texts.SIGMA, rel=0.1)
    assert lengths.min() >= texts.SHORTEST
    assert lengths.max() <= texts.LONGEST
    assert texts.targets(found) / lengths.sum().item() == pytest.approx(0.3, rel=0.02)
    assert all(3 <= token < 8192 for ids, _ in found for token in ids)
    assert texts.job_texts(8192, 10) == texts.job_texts(8192, 10)


def test_equal_texts(module: Module) -> None:
    texts = module("texts")
    assert [first for _, first in texts.equal_texts(256, 2, 32, 0.25)] == [24, 24]
    assert texts.targets(texts.equal_texts(256, 2, 32)) == 2 * 31


def test_operations_of_a_step(module: Module) -> None:
    toy = module("shapes").SHAPES["toy"]  # 2 layers, 64/128, 4 heads and 2 for keys and values
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    assert toy.linear_weights == 2 * layer
    assert toy.step_flops(10, 3) == 4 * (10 * 2 * layer + 3 * 256 * 64)
