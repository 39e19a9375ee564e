"""What is measured: one full training step of each contestant, as its own users run it.

A step is forward, loss, backward, clipping, AdamW and zeroing the gradients. All contestants get
the same weights, tokens, initial adapter and hyperparameters, so their losses must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shapes import Shape, token_ids

LEARNING_RATE = 2e-4
MAX_GRAD_NORM = 1.0


class Contestant(Protocol):
    """A loaded model that can be trained."""

    trainable: int

    def step(self) -> float:
        """One full step; its loss before the update."""
        ...


class Rango:
    """`rango.attach` over `rango.load_base`, and the body of rango.training.loop."""

    def __init__(self, folder: Path, shape: Shape, rank: int, quantized: bool) -> None:
        from rango.adapters.attach import attach
        from rango.adapters.config import LoraConfig
        from rango.base.load import load_base
        from rango.data.pack import collate
        from rango.data.samples import Origin, Sample
        from rango.training.config import TrainingConfig
        from rango.training.trainee import LoraTrainee

        ids = tuple(token_ids(shape))
        every = (True,) * len(ids)
        base = load_base(folder, quantize="nf4" if quantized else "none", double_quant=True)
        adapted = attach(base, LoraConfig(r=rank, lora_alpha=2 * rank))
        self.trainee = LoraTrainee(adapted, TrainingConfig(max_grad_norm=MAX_GRAD_NORM))
        self.batch = collate([Sample(ids, every, every, Origin("random", 1))], [0], packed=True)
        self.trainable = self.trainee.trainable()
        self.steps = 0

    def step(self) -> float:
        from rango.evaluation.loss import token_losses
        from rango.training.determinism import deterministic_kernels

        optimizer = self.trainee.optimizer
        with deterministic_kernels(), self.trainee.learning():
            with self.trainee.prepare(self.batch, self.steps):
                found = token_losses(self.trainee.model, self.batch)
            (found.losses.sum() / self.batch.supervised).backward()
            total = float(found.losses.detach().double().sum())
            float(optimizer.clip(MAX_GRAD_NORM).max())
            optimizer.step(LEARNING_RATE)
            optimizer.zero_grad()
        self.steps += 1
        return total / self.batch.supervised


class Peft:
    """get_peft_model over transformers (and bitsandbytes), with the Trainer's default AdamW."""

    def __init__(self, folder: Path, shape: Shape, rank: int, quantized: bool) -> None:
        import torch
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        base = _transformers_model(folder, quantized)
        if quantized:
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(base, config).train()
        _initialise_as_rango(self.model)
        self.leaves = [leaf for leaf in self.model.parameters() if leaf.requires_grad]
        self.trainable = sum(leaf.numel() for leaf in self.leaves)
        self.optimizer = torch.optim.AdamW(
            self.leaves, lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        ids = torch.tensor([token_ids(shape)])
        self.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def step(self) -> float:
        from torch.nn.utils import clip_grad_norm_

        loss = self.model(**self.inputs, use_cache=False).loss
        loss.backward()
        clip_grad_norm_(self.leaves, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


class Frozen:
    """The floor: forward and backward to the input of the first layer, nothing to train."""

    trainable = 0

    def __init__(self, folder: Path, shape: Shape, rank: int, quantized: bool) -> None:
        import torch

        self.model = _transformers_model(folder, quantized).requires_grad_(False)
        self.ids = torch.tensor([token_ids(shape)])

    def step(self) -> float:
        inputs = self.model.get_input_embeddings()(self.ids).requires_grad_(True)
        loss = self.model(inputs_embeds=inputs, labels=self.ids, use_cache=False).loss
        loss.backward()
        return float(loss.detach())


def _transformers_model(folder: Path, quantized: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if quantized:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        options["device_map"] = {"": "cpu"}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def _initialise_as_rango(model: Any) -> None:
    """Give a PEFT model the adapter that `rango.attach` starts with at seed 0."""
    from rango.adapters.methods import lora

    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        lora.initialise(
            module.lora_A["default"].weight.data,
            module.lora_B["default"].weight.data,
            embedding=False,
            seed=0,
            site=name.removeprefix("base_model.model."),
        )


@dataclass(frozen=True)
class Entry:
    """A contestant by name."""

    title: str
    make: Callable[[Path, Shape, int, bool], Contestant]
    quantized: bool
    imports: tuple[str, ...]
    """What loading it imports, so that this can be told from the model's own memory."""


ENTRIES = {
    "frozen": Entry("frozen forward+backward", Frozen, False, ()),
    "rango-lora": Entry("Rango LoRA", Rango, False, ("rango.training.trainee",)),
    "peft-lora": Entry("PEFT LoRA", Peft, False, ("peft",)),
    "rango-qlora": Entry("Rango QLoRA", Rango, True, ("rango.training.trainee",)),
    "peft-qlora": Entry("PEFT + bitsandbytes QLoRA", Peft, True, ("peft", "bitsandbytes")),
}
