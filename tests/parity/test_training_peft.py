"""Training in Rango against a plain loop over PEFT and torch.optim.AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import VOCABULARY, build
from torch import nn

from rango.adapters.attach import attach
from rango.adapters.files import save_adapter
from rango.base.load import base_from_model
from rango.data.samples import Origin, Sample
from rango.data.tokens.pack import epoch_order
from rango.training.config import TrainingConfig
from rango.training.fit import train_model

peft = pytest.importorskip("peft")
loraplus = pytest.importorskip("peft.optimizers")

STEPS, BATCH = 20, 5
CONFIG = TrainingConfig(
    max_steps=STEPS,
    epochs=100,
    batch_size=BATCH,
    learning_rate=3e-3,
    warmup_share=0.0,
    weight_decay=0.01,
    max_grad_norm=0.5,
    micro_tokens=40,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_samples(count: int = 12) -> list[Sample]:
    generator = torch.Generator().manual_seed(3)
    samples = []
    for number in range(count):
        length = int(torch.randint(6, 20, (), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        learnt = tuple(place >= length // 3 for place in range(length))
        samples.append(Sample(tuple(ids), learnt, learnt, Origin("made", number + 1)))
    return samples


class Losses:
    """A recorder that keeps the losses of the steps."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def event(self, event: str, step: int, **values: Any) -> None:
        if event == "step":
            self.values.append(values["loss"])

    def checkpoint(self, state: Any, tensors: Any) -> None:
        pass


def peft_losses(
    folder: Path, samples: list[Sample], name: str, ratio: float | None = None
) -> list[float]:
    """The same steps, one sample at a time, with everyday tools."""
    model = peft.PeftModel.from_pretrained(build(name), folder, is_trainable=True)
    leaves = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(leaves, lr=3e-3, weight_decay=0.01)
    if ratio is not None:
        adamw = loraplus.create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=3e-3,
            loraplus_lr_ratio=ratio,
            loraplus_weight_decay=0.01,
        )
    losses = []
    for step in range(STEPS):
        per_epoch = -(-len(samples) // BATCH)
        order = epoch_order(len(samples), CONFIG.seed, step // per_epoch)
        first = step % per_epoch * BATCH
        chosen = [samples[index] for index in order[first : first + BATCH]]
        targets = sum(sum(sample.supervised) for sample in chosen)
        total = 0.0
        for sample in chosen:
            logits = model(input_ids=torch.tensor([sample.input_ids])).logits[0]
            learnt = torch.tensor(sample.supervised)[1:]
            labels = torch.tensor(sample.input_ids)[1:]
            loss = nn.functional.cross_entropy(logits[:-1][learnt], labels[learnt], reduction="sum")
            (loss / targets).backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(leaves, 0.5)
        adamw.step()
        adamw.zero_grad()
        losses.append(total / targets)
    return losses


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_twenty_steps_give_the_same_losses(tmp_path: Path, name: str) -> None:
    samples = make_samples()
    adapted = attach(base_from_model(build(name)), r=4, lora_alpha=8)
    save_adapter(adapted, tmp_path / "start")
    kept = Losses()
    train_model(adapted, samples, config=CONFIG, recorder=kept)
    expected = peft_losses(tmp_path / "start", samples, name)
    assert kept.values[-1] < 0.99 * kept.values[0]
    assert kept.values == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_loraplus_gives_the_same_losses(tmp_path: Path) -> None:
    samples = make_samples()
    losses = {}
    for ratio in (1.0, 16.0):
        adapted = attach(base_from_model(build("llama")), r=4, lora_alpha=8)
        save_adapter(adapted, tmp_path / f"start-{ratio}")
        kept = Losses()
        train_model(
            adapted, samples, config=replace(CONFIG, loraplus_lr_ratio=ratio), recorder=kept
        )
        losses[ratio] = kept.values
    expected = peft_losses(tmp_path / "start-16.0", samples, "llama", 16.0)
    assert losses[16.0] == pytest.approx(expected, rel=1e-5)
    assert losses[16.0] != pytest.approx(losses[1.0], rel=1e-3)
