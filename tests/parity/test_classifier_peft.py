"""Classifiers' adapters against PEFT: trained alike, and read by each other with equal logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from labelled_texts import LABELS
from models import ENCODERS, VOCABULARY, build, inputs
from torch import nn

from rango.adapters.attach import Adapted, attach
from rango.adapters.files import load_adapter, save_adapter
from rango.adapters.matching import load_base_for
from rango.base.load import load_base
from rango.data.samples import Origin, Sample
from rango.data.tokens.pack import epoch_order
from rango.training.config import TrainingConfig
from rango.training.fit import train_model

peft = pytest.importorskip("peft")

STEPS, BATCH = 15, 5
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
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saved_base(folder: Path, name: str) -> Path:
    build(name).save_pretrained(folder)
    return folder


def plain(folder: Path) -> Any:
    """What a user of transformers has before PEFT; its head is random."""
    torch.manual_seed(5)
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(LABELS)
    ).eval()


def tokens() -> torch.Tensor:
    return inputs(3, 9)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def stirred(adapted: Adapted) -> Adapted:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        drawn = torch.randn(adapted.bank.parameters.shape, generator=generator)
        adapted.bank.parameters.copy_(0.05 * drawn)
    return adapted


@pytest.mark.parametrize("name", [*ENCODERS, "llama", "gpt2"])
def test_peft_reads_what_rango_writes(tmp_path: Path, name: str) -> None:
    folder = saved_base(tmp_path / "base", name)
    adapted = stirred(attach(load_base(folder, labels=LABELS), r=4))
    save_adapter(adapted, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(plain(folder), tmp_path / "adapter").eval()
    assert type(model).__name__ == "PeftModelForSequenceClassification"
    torch.testing.assert_close(logits(model), logits(adapted.model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*ENCODERS, "llama", "gpt2"])
def test_rango_reads_what_peft_writes(tmp_path: Path, name: str) -> None:
    folder = saved_base(tmp_path / "base", name)
    apart = {"distilbert": ["pre_classifier"], "modernbert": ["head.dense"]}
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules="all-linear" if name in ENCODERS else None,
        fan_in_fan_out=name == "gpt2",
        modules_to_save=apart.get(name),
    )
    model = peft.get_peft_model(plain(folder), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "adapter")
    base = load_base_for(tmp_path / "adapter", folder)
    assert base.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    adapted = load_adapter(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted.model), logits(model), atol=1e-5, rtol=1e-4)
    save_adapter(adapted, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(plain(folder), tmp_path / "again").eval()
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-4)


class Losses:
    """A recorder that keeps the losses of the steps."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def event(self, event: str, step: int, **values: Any) -> None:
        if event == "step":
            self.values.append(values["loss"])

    def checkpoint(self, state: Any, tensors: Any) -> None:
        pass


def make_samples(count: int = 12) -> list[Sample]:
    generator = torch.Generator().manual_seed(3)
    samples = []
    for number in range(count):
        length = int(torch.randint(4, 16, (), generator=generator))
        ids = tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())
        none = (False,) * length
        samples.append(Sample(ids, none, none, Origin("made", number + 1), ids[0] % 3))
    return samples


def peft_losses(model: Any, samples: list[Sample]) -> list[float]:
    """The same steps, one sample at a time, with everyday tools."""
    leaves = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(leaves, lr=3e-3, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        per_epoch = -(-len(samples) // BATCH)
        order = epoch_order(len(samples), CONFIG.seed, step // per_epoch)
        first = step % per_epoch * BATCH
        chosen = [samples[index] for index in order[first : first + BATCH]]
        total = 0.0
        for sample in chosen:
            logits = model(input_ids=torch.tensor([sample.input_ids])).logits
            loss = nn.functional.cross_entropy(logits, torch.tensor([sample.label]))
            (loss / len(chosen)).backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(leaves, 0.5)
        adamw.step()
        adamw.zero_grad()
        losses.append(total / len(chosen))
    return losses


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_steps_give_the_same_losses(tmp_path: Path, name: str) -> None:
    folder, samples = saved_base(tmp_path / "base", name), make_samples()
    adapted = attach(load_base(folder, labels=LABELS), r=4, lora_alpha=8)
    save_adapter(adapted, tmp_path / "start")
    kept = Losses()
    train_model(adapted, samples, config=CONFIG, recorder=kept)
    model = peft.PeftModel.from_pretrained(plain(folder), tmp_path / "start", is_trainable=True)
    expected = peft_losses(model.eval(), samples)  # the base's own dropout is off in both
    assert kept.values[-1] < 0.99 * kept.values[0]
    assert kept.values == pytest.approx(expected, rel=1e-5)
