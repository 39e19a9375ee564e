"""Who trains: Rango's own loop, PEFT (with bitsandbytes), TRL, and the frozen base as a floor.

A step is forward, loss, backward, clipping, AdamW and zeroing the gradients. All contestants get
the same weights, texts, initial adapter and hyperparameters, so their losses must agree.
"""

from __future__ import annotations

import tempfile
from typing import Any

from contest import Contestant, Turns
from texts import Text

LEARNING_RATE = 2e-4
MAX_GRAD_NORM = 1.0
_ENDLESS = 1e6


class RangoTraining:
    """`load_base`, `attach` and `train_model`, a turn a step."""

    def __init__(
        self,
        folder: str,
        texts: list[Text],
        rank: int,
        *,
        load: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        """load: options of load_base; training: of TrainingConfig, which by default says one step
        after the other, each with all texts."""
        from rango.adapters.attach import attach
        from rango.base.load import load_base
        from rango.data.samples import Origin, Sample
        from rango.training.config import TrainingConfig

        base = load_base(folder, **(load or {}))
        self.adapted = attach(base, r=rank, lora_alpha=2 * rank)
        self.samples = []
        for ids, first in texts:
            supervised = tuple(place >= first for place in range(len(ids)))
            self.samples.append(Sample(tuple(ids), supervised, supervised, Origin("random", 1)))
        common = {
            "learning_rate": LEARNING_RATE,
            "max_grad_norm": MAX_GRAD_NORM,
            "warmup_share": 0.0,
            "epochs": _ENDLESS,
            "batch_size": len(texts),
        }
        self.config = TrainingConfig(**common | (training or {}))
        self.facts = {"trainable": self.adapted.trainable_parameters()}

    def run(self, turns: Turns) -> None:
        from rango.training.train import train_model

        train_model(self.adapted, self.samples, config=self.config, recorder=_Turnstile(turns))


class _Turnstile:
    """A recorder at which the loop hands in each step and waits for its next turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def event(self, event: str, step: int, **values: Any) -> None:
        if event == "step":
            self._turns.next(loss=values["loss"])

    def checkpoint(self, state: Any, tensors: Any) -> None:
        """Nothing is kept."""


class PeftTraining:
    """get_peft_model over transformers (and bitsandbytes), with the Trainer's default AdamW."""

    def __init__(
        self,
        folder: str,
        texts: list[Text],
        rank: int,
        *,
        dtype: str = "float32",
        nf4: bool = False,
    ) -> None:
        import torch

        self.model = peft_model(folder, rank, dtype=dtype, nf4=nf4).train()
        self.leaves = [leaf for leaf in self.model.parameters() if leaf.requires_grad]
        self.facts = {"trainable": sum(leaf.numel() for leaf in self.leaves)}
        self.optimizer = torch.optim.AdamW(
            self.leaves, lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self.inputs = _inputs(texts)

    def step(self) -> dict[str, float]:
        from torch.nn.utils import clip_grad_norm_

        loss = self.model(**self.inputs, use_cache=False).loss
        loss.backward()
        clip_grad_norm_(self.leaves, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": float(loss.detach())}


class FrozenTraining:
    """The floor: forward and backward to the input of the first layer, nothing to train."""

    def __init__(self, folder: str, texts: list[Text], rank: int) -> None:
        self.model = transformers_model(folder).requires_grad_(False)
        self.inputs = _inputs(texts)
        self.ids = self.inputs.pop("input_ids")
        self.facts = {"trainable": 0}

    def step(self) -> dict[str, float]:
        embedded = self.model.get_input_embeddings()(self.ids).requires_grad_(True)
        loss = self.model(inputs_embeds=embedded, **self.inputs, use_cache=False).loss
        loss.backward()
        return {"loss": float(loss.detach())}


class TrlTraining:
    """TRL's SFTTrainer over PEFT in fp32; a turn is an optimizer step."""

    def __init__(
        self,
        folder: str,
        texts: list[Text],
        rank: int,
        learning_rate: float,
        settings: dict[str, Any],
    ) -> None:
        from datasets import Dataset
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast
        from transformers.utils import logging
        from trl import SFTConfig, SFTTrainer

        logging.set_verbosity_error()
        words = {"<pad>": 0, "<s>": 1, "</s>": 2}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<s>")),
            pad_token="<pad>",
            eos_token="</s>",
        )
        rows = [{"input_ids": ids, "labels": _labels(ids, first)} for ids, first in texts]
        self.output = tempfile.TemporaryDirectory(prefix="rango-trl-")
        config = SFTConfig(
            output_dir=self.output.name,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            num_train_epochs=1,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            logging_steps=1,  # the default 10 gives no curve
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **settings,
        )
        self.trainer = SFTTrainer(
            model=peft_model(folder, rank),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        leaves = [leaf for leaf in self.trainer.model.parameters() if leaf.requires_grad]
        self.facts = {"trainable": sum(leaf.numel() for leaf in leaves)}

    def run(self, turns: Turns) -> None:
        from transformers import PrinterCallback, TrainerCallback

        class Turnstile(TrainerCallback):  # type: ignore[misc]
            def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
                if "loss" in logs:
                    turns.next(loss=float(logs["loss"]))

        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(Turnstile())
        self.trainer.train()


def transformers_model(folder: str, *, dtype: str = "float32", nf4: bool = False) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if nf4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        options["device_map"] = {"": "cpu"}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options)


def peft_model(folder: str, rank: int, *, dtype: str = "float32", nf4: bool = False) -> Any:
    """With the adapter that `rango.attach` starts with at seed 0."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    from rango.adapters.methods import lora

    base = transformers_model(folder, dtype=dtype, nf4=nf4)
    if nf4:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            lora.initialise(
                module.lora_A["default"].weight.data,
                module.lora_B["default"].weight.data,
                embedding=False,
                seed=0,
                site=name.removeprefix("base_model.model."),
            )
    return model


def _labels(ids: list[int], first: int) -> list[int]:
    return [-100] * first + ids[first:]


def _inputs(texts: list[Text]) -> dict[str, Any]:
    """Texts of one length as a batch."""
    import torch

    ids = torch.tensor([ids for ids, _ in texts])
    labels = torch.tensor([_labels(ids, first) for ids, first in texts])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


NF4 = {"quantize": "nf4", "double_quant": True}
WITHOUT_BF16_UNITS = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Makes oneDNN, torch and MKL do as on a CPU with AVX2 only."""
RANGO_IMPORTS = ("transformers", "rango.training.train", "rango.adapters.attach")
PEFT_IMPORTS = ("transformers", "peft")
_RANGO = {"make": "contestants:RangoTraining", "imports": RANGO_IMPORTS}
_PEFT = {"make": "contestants:PeftTraining", "imports": PEFT_IMPORTS}

# title, how it is made, its options
ENTRIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rango-fp32": ("Rango LoRA, fp32", _RANGO, {"load": {"dtype": "fp32"}}),
    "rango-bf16": ("Rango LoRA, base in bf16", _RANGO, {"load": {"dtype": "bf16"}}),
    "rango-nf4": ("Rango QLoRA, NF4", _RANGO, {"load": NF4}),
    "rango-checkpointing": (
        "Rango LoRA, fp32, checkpointing",
        _RANGO,
        {"training": {"gradient_checkpointing": True}},
    ),
    "peft-fp32": ("PEFT LoRA, fp32", _PEFT, {}),
    "peft-bf16": ("PEFT LoRA, bf16", _PEFT, {"dtype": "bfloat16"}),
    "peft-bf16-avx2": (
        "PEFT LoRA, bf16, as on a CPU without bf16 units",
        _PEFT | {"environment": WITHOUT_BF16_UNITS, "rounds": 1},  # a minute a step
        {"dtype": "bfloat16"},
    ),
    "peft-nf4": (
        "PEFT + bitsandbytes QLoRA",
        _PEFT | {"imports": (*PEFT_IMPORTS, "bitsandbytes")},
        {"nf4": True},
    ),
    "frozen": (
        "frozen base, forward+backward",
        {"make": "contestants:FrozenTraining", "imports": ("transformers",)},
        {},
    ),
}


def contestant(name: str, folder: str, texts: list[Text], rank: int) -> Contestant:
    """An entry over the checkpoint in `folder`."""
    title, made, options = ENTRIES[name]
    return Contestant(
        title, options={"folder": folder, "texts": texts, "rank": rank, **options}, **made
    )
