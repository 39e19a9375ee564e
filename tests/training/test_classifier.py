"""Whole runs over text+label data: LoRA, QLoRA, full; resumed; and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_texts import LABELS, save_encoder, write_data
from safetensors.torch import load_file

from rango.adapters.config import LoraConfig
from rango.adapters.files import load_adapter
from rango.adapters.matching import load_base_for
from rango.base.config import BaseConfig
from rango.base.load import load_base
from rango.data.config import DataConfig
from rango.errors import ConfigError, DataError, TokenizerError
from rango.evaluation.classify import classify
from rango.evaluation.proof import verify
from rango.export.merged import merge_checkpoint
from rango.tracking.events import read_events
from rango.training.config import RunConfig, TrainingConfig
from rango.training.result import RunResult
from rango.training.train import train

Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """A run over a tiny encoder and eighty texts."""

    def make(
        output: str = "run",
        *,
        encoder: str = "bert",
        data: dict[str, Any] | None = None,
        **fields: Any,
    ) -> RunConfig:
        folder = tmp_path / encoder
        if not folder.exists():
            save_encoder(folder, encoder)
        texts = tmp_path / "texts.csv"
        if not texts.exists():
            write_data(texts, range(80))
        quantize = fields.pop("quantize", "none")
        return RunConfig(
            base=BaseConfig(str(folder), quantize=quantize),
            data=DataConfig(str(texts), **({"valid_share": 0.2} | (data or {}))),
            output=str(tmp_path / output),
            adapter=LoraConfig(r=4),
            training=TrainingConfig(
                **({"epochs": 6, "learning_rate": 3e-3, "batch_size": 8} | fields)
            ),
        )

    return make


def accuracy(result: RunResult, of: str = "adapted") -> float:
    return float(result.facts["evaluation"][of]["accuracy"])


@pytest.mark.parametrize(
    ("encoder", "quantize"),
    [
        ("bert", "none"),
        ("bert", "nf4"),
        ("bert", "int8"),
        ("roberta", "none"),
        ("modernbert", "none"),
        ("llama", "none"),
    ],
)
def test_a_run_learns_the_labels(configure: Configure, encoder: str, quantize: str) -> None:
    result = train(configure(encoder=encoder, quantize=quantize))
    facts = result.facts
    assert facts["evaluation"]["base"]["loss"] == pytest.approx(math.log(3))
    assert accuracy(result) > 0.9
    assert facts["proof"]["passed"]
    assert "forgetting" not in facts
    assert facts["data"]["labels"] == list(LABELS)
    assert "loss_on" not in facts["data"]
    saved = Path(result.saved)
    noted = json.loads((saved / "rango.json").read_text())
    assert noted["labels"] == list(LABELS)
    assert noted["base"]["quantize"] == quantize
    card = (saved / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert "macro F1" in card
    assert "perplexity" not in card
    assert "macro F1" in (Path(result.output) / "report.html").read_text()


def test_what_was_trained_is_used_again(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    result = train(config)
    texts = ["one three", "two eight", "ten ten"]
    from rango.base.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.base.model)
    adapted = load_adapter(load_base_for(result.saved, config.base.model), result.saved)
    found = classify(adapted, tokenizer, texts)
    assert [entry.label for entry in found] == ["odd", "even", "zero"]
    assert verify(config.base.model, result.saved).passed
    report = merge_checkpoint(config.base.model, result.saved, tmp_path / "merged")
    assert report.modules == len(adapted.modules) + 1
    merged = load_base(tmp_path / "merged")
    assert merged.labels == LABELS
    for one, other in zip(classify(merged, tokenizer, texts), found, strict=True):
        assert list(one.probabilities.values()) == pytest.approx(
            list(other.probabilities.values()), abs=1e-5
        )
    # a merged classifier is a base like another, with a head of its own
    again = replace(
        config,
        base=BaseConfig(str(tmp_path / "merged")),
        output=str(tmp_path / "again"),
        training=replace(config.training, max_steps=3),
    )
    onwards = train(again)
    assert accuracy(onwards, "base") == pytest.approx(accuracy(result))


def test_figures_by_label_are_kept_of_few_looks(configure: Configure) -> None:
    result = train(configure(max_steps=10, eval_every=2))
    looks = result.trained.evaluations
    assert [look["step"] for look in looks] == [0, 2, 4, 6, 8, 10]
    assert all("macro_f1" in look for look in looks)
    for name in ("labels", "confusion"):
        kept = {look["step"] for look in looks if name in look}
        assert kept == {0, result.trained.best_step, 10}
        assert all(name in values for values in result.facts["evaluation"].values())
    events = list(read_events(Path(result.output) / "events.jsonl"))
    told = [event for event in events if event["event"] == "evaluation"]
    assert len(told) == 6
    assert not any("confusion" in event or "labels" in event for event in told)


def test_full_tuning_trains_the_head_too(configure: Configure, tmp_path: Path) -> None:
    result = train(configure(method="full", learning_rate=3e-3))
    assert accuracy(result) > 0.9
    base = load_base(result.saved)
    assert (base.kind, base.labels) == ("classifier", LABELS)
    assert base.model.classifier.weight.any()


@pytest.mark.parametrize("fields", [{"gradient_checkpointing": True}, {"micro_tokens": 16}])
def test_what_saves_memory_changes_nothing(configure: Configure, fields: dict[str, Any]) -> None:
    steps = {"max_steps": 6}
    dropping = LoraConfig(r=4, lora_dropout=0.2)
    plain = train(replace(configure("plain", **steps), adapter=dropping))
    other = train(replace(configure("other", **steps, **fields), adapter=dropping))
    for name in ("loss", "accuracy"):
        found, expected = (run.facts["evaluation"]["adapted"][name] for run in (other, plain))
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("onto", ["nf4", "int8"])
def test_merging_onto_a_quantized_base(configure: Configure, tmp_path: Path, onto: Any) -> None:
    config = configure(quantize=onto, max_steps=6)
    saved = train(config).saved
    merge_checkpoint(config.base.model, saved, tmp_path / "merged", onto=onto)
    merged = load_base(tmp_path / "merged")
    assert (merged.labels, merged.quantize) == (LABELS, onto)
    assert type(merged.model.classifier) is torch.nn.Linear
    assert merged.model.classifier.weight.any()


class Stop(Exception):
    pass


def test_a_resumed_run_is_the_undisturbed_one(configure: Configure, tmp_path: Path) -> None:
    fields = {"max_steps": 12, "checkpoint_every": 4, "weight_decay": 0.01}
    whole = train(configure("whole", **fields))

    def interrupt(task: str, done: int, total: int | None, *rest: Any) -> None:
        if task == "train" and done == 7:
            raise Stop

    config = configure("broken", **fields)
    with pytest.raises(Stop):
        train(config, progress=interrupt)
    resumed = train(config, resume=True)
    one = load_file(Path(whole.saved) / "adapter_model.safetensors")
    other = load_file(Path(resumed.saved) / "adapter_model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.facts["evaluation"] == resumed.facts["evaluation"]


def test_held_out_labels_are_those_of_the_training_data(
    configure: Configure, tmp_path: Path
) -> None:
    (tmp_path / "valid.csv").write_text("text,label\none two,odd\ntwo one,evn\n")
    with pytest.raises(DataError, match=r"valid\.csv:3: label 'evn' is none .* nearest: even"):
        train(configure(data={"valid": str(tmp_path / "valid.csv")}))
    (tmp_path / "valid.csv").write_text("text,label\none two,odd\ntwo one,even\n")
    result = train(configure(data={"valid": str(tmp_path / "valid.csv")}, max_steps=2))
    assert result.facts["evaluation"]["adapted"]["samples"] == 2


def test_data_without_labels_need_a_causal_base(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one two three\n\ntwo one\n")
    config = configure()
    config = replace(config, data=replace(config.data, train=str(tmp_path / "texts.txt")))
    with pytest.raises(TokenizerError, match="no end token"):  # an encoder's writes nothing
        train(config)


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        ({"general": "general.txt"}, {}, "leave it out for a classifier"),
        ({"loss_on": "all"}, {}, "learns its labels and no tokens"),
        ({}, {"max_forgetting": 0.1}, "max_forgetting"),
    ],
)
def test_options_that_say_nothing_are_refused(
    configure: Configure, data: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(configure(data=data, **fields))


def test_one_label_is_refused(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label\none,odd\nthree,odd\n")
    with pytest.raises(DataError, match="needs two labels at least"):
        train(configure())
