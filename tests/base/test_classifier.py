"""Classifiers as bases: a head over a body, zero where the checkpoint has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from labelled_texts import LABELS, save_encoder
from models import ENCODERS, build, inputs
from safetensors.torch import load_file, save_file

from rango.base.classifier import head_modules, stored_labels
from rango.base.inspect import inspect_base
from rango.base.load import base_from_model, load_base
from rango.base.packing import packing_probe
from rango.base.save import save_base
from rango.errors import CheckpointError, ConfigError

HEADS = {
    "bert": ("classifier",),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "classifier"),
    "llama": ("score",),
    "gpt2": ("score",),
    "qwen3": ("score",),
}


@pytest.mark.parametrize("name", HEADS)
def test_labels_put_a_head_of_zeros_over_the_body(tmp_path: Path, name: str) -> None:
    folder = save_encoder(tmp_path / "base", name)
    plain, base = load_base(folder), load_base(folder, labels=LABELS)
    assert base.kind == "classifier"
    assert base.labels == LABELS
    assert base.head == HEADS[name]
    assert base.fingerprint == plain.fingerprint
    assert plain.labels == plain.head == ()
    assert base.config.id2label == dict(enumerate(LABELS))
    assert base.config.problem_type == "single_label_classification"
    ids = inputs(2, 8)
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, torch.zeros(2, 3))
    assert not packing_probe(base.model).ok


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_head_is_never_quantized(tmp_path: Path, quantize: str) -> None:
    folder = save_encoder(tmp_path / "base")
    base = load_base(folder, labels=LABELS, quantize=quantize)  # type: ignore[arg-type]
    assert type(base.model.classifier) is torch.nn.Linear
    assert base.model.classifier.weight.dtype == torch.float32
    assert base.quantize == quantize
    assert base.fingerprint == load_base(folder).fingerprint


def test_a_head_over_a_narrow_body_is_wide(tmp_path: Path) -> None:
    build("bert").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", labels=LABELS)
    assert base.dtype == torch.bfloat16
    assert type(base.model.classifier) is torch.nn.Linear
    assert base.model.classifier.weight.dtype == torch.float32


def test_a_missing_pooler_is_part_of_the_head(tmp_path: Path) -> None:
    model = build("bert")
    transformers.BertModel(model.config, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", labels=LABELS)
    assert base.head == ("bert.pooler.dense", "classifier")


def test_a_body_that_lacks_something_is_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: bert.encoder.layer.0.output.dense.weight"):
        load_base(folder, labels=LABELS)


def test_another_tasks_head_is_left_behind(tmp_path: Path) -> None:
    config = build("bert").config
    config.num_labels = 5
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", labels=LABELS)
    assert base.head == ("bert.pooler.dense", "classifier")
    assert not base.model.classifier.weight.any()
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "masked")
    assert load_base(tmp_path / "masked", labels=LABELS).labels == LABELS


@pytest.mark.parametrize("labels", [[], ["one"], ["a", "b", "a"]])
def test_labels_that_make_no_classifier(tmp_path: Path, labels: list[str]) -> None:
    folder = save_encoder(tmp_path / "base")
    with pytest.raises(ConfigError, match="expected at least two, all different"):
        load_base(folder, labels=labels)


def test_a_causal_body_pads_with_its_end_token(tmp_path: Path) -> None:
    build("llama", pad_token_id=None).save_pretrained(tmp_path / "base")
    assert load_base(tmp_path / "base", labels=LABELS).config.pad_token_id == 1
    build("llama", pad_token_id=None, eos_token_id=None).save_pretrained(tmp_path / "endless")
    with pytest.raises(CheckpointError, match="neither pad_token_id nor eos_token_id"):
        load_base(tmp_path / "endless", labels=LABELS)


def test_a_checkpoint_that_is_a_classifier(tmp_path: Path) -> None:
    config = build("bert").config
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base")
    assert (base.kind, base.labels) == ("classifier", LABELS)
    assert base.head == ("classifier",)
    assert base.model.classifier.weight.any()
    ids = inputs(2, 8)
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert load_base(tmp_path / "base", labels=LABELS).labels == LABELS
    with pytest.raises(ConfigError, match=r"labels even, odd, zero; asked for are odd, even"):
        load_base(tmp_path / "base", labels=["odd", "even"])
    assert stored_labels(tmp_path / "base") == LABELS
    assert inspect_base(tmp_path / "base").kind == "classifier"
    assert base_from_model(model).labels == LABELS


def test_what_is_saved_is_a_classifier_again(tmp_path: Path) -> None:
    base = load_base(save_encoder(tmp_path / "base"), labels=LABELS, quantize="nf4")
    with torch.no_grad():
        base.model.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    save_base(base, tmp_path / "saved")
    again = load_base(tmp_path / "saved")
    assert (again.kind, again.labels, again.quantize) == ("classifier", LABELS, "nf4")
    assert again.fingerprint == base.fingerprint
    assert torch.equal(again.model.classifier.weight, base.model.classifier.weight)
    assert stored_labels(tmp_path / "base") is None


def test_the_cache_keeps_bases_with_other_heads_apart(tmp_path: Path) -> None:
    folder, cache = save_encoder(tmp_path / "base"), tmp_path / "cache"
    options = {"quantize": "nf4", "cache": cache}
    for labels in (None, LABELS, ["a", "b"], None, LABELS):
        base = load_base(folder, labels=labels, **options)  # type: ignore[arg-type]
        assert base.labels == tuple(labels or ())
        assert base.head == (("classifier",) if labels else ())
    assert len([entry for entry in cache.iterdir() if "-" in entry.name]) == 3


def test_heads_are_a_classifiers_alone() -> None:
    for name in ENCODERS:
        assert head_modules(build(name)) == ()
    assert head_modules(build("llama")) == ()


def test_config_json_stays_as_it_is(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "base")
    before = json.loads((folder / "config.json").read_text())
    load_base(folder, labels=LABELS)
    assert json.loads((folder / "config.json").read_text()) == before
