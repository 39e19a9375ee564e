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

from rango.base.cache import BaseCache
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
    "modernbert": ("head.dense", "classifier"),
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
    assert head_modules(base.model) == HEADS[name]
    assert base.fingerprint == plain.fingerprint
    assert plain.labels == head_modules(plain.model) == ()
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
    assert head_modules(base.model) == ("bert.pooler.dense", "classifier")


def test_a_body_that_lacks_something_is_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: bert.encoder.layer.0.output.dense.weight"):
        load_base(folder, labels=LABELS)


@pytest.mark.parametrize("tags", [5, 3])
def test_another_tasks_head_is_left_behind(tmp_path: Path, tags: int) -> None:
    config = build("bert").config
    config.num_labels = tags
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", labels=LABELS)
    assert head_modules(base.model) == ("bert.pooler.dense", "classifier")
    assert not base.model.classifier.weight.any()
    assert not base.model.classifier.bias.any()
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


def test_so_does_a_causal_classifier_as_stored(tmp_path: Path) -> None:
    config = build("llama", pad_token_id=None).config
    config.num_labels = 3
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base")
    assert base.config.pad_token_id == 1
    assert base.model(input_ids=inputs(2, 8)).logits.shape == (2, 3)
    config.eos_token_id = None
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "endless")
    with pytest.raises(CheckpointError, match="neither pad_token_id nor eos_token_id"):
        load_base(tmp_path / "endless")


def test_a_checkpoint_that_is_a_classifier(tmp_path: Path) -> None:
    config = build("bert").config
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base")
    assert (base.kind, base.labels) == ("classifier", LABELS)
    assert head_modules(base.model) == ("classifier",)
    assert base.model.classifier.weight.any()
    ids = inputs(2, 8)
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert load_base(tmp_path / "base", labels=LABELS).labels == LABELS
    generic = [f"LABEL_{number}" for number in range(3)]
    assert load_base(tmp_path / "base", labels=generic).labels == LABELS
    for other in (["odd", "even"], generic[::-1], [*generic[:2], "LABEL_7"]):
        with pytest.raises(ConfigError, match=rf"even, odd, zero; asked for are {other[0]}"):
            load_base(tmp_path / "base", labels=other)
    assert stored_labels(tmp_path / "base") == LABELS
    assert inspect_base(tmp_path / "base").kind == "classifier"
    assert base_from_model(model).labels == LABELS


@pytest.mark.parametrize("count", [None, 2, 4])
def test_labels_without_names_are_counted(tmp_path: Path, count: int | None) -> None:
    config = build("bert").config
    config.num_labels = count or 2
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields.pop("id2label", None)
    fields.pop("label2id", None)
    fields |= {} if count is None else {"num_labels": count}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    expected = tuple(f"LABEL_{number}" for number in range(count or 2))
    assert stored_labels(tmp_path) == expected == load_base(tmp_path).labels


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
        assert head_modules(base.model) == (("classifier",) if labels else ())
    assert len([entry for entry in cache.iterdir() if "-" in entry.name]) == 3


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_a_head_from_the_cache_is_as_wide_as_a_fresh_one(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(name).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    options = {"labels": LABELS, "quantize": "nf4", "cache": tmp_path / "cache"}
    fresh = load_base(tmp_path / "base", **options)  # type: ignore[arg-type]
    monkeypatch.setattr(BaseCache, "keep", lambda *_: pytest.fail("not from the cache"))
    again = load_base(tmp_path / "base", **options)  # type: ignore[arg-type]
    assert head_modules(again.model) == head_modules(fresh.model) == HEADS[name]
    for layer in HEADS[name]:
        one, other = (base.model.get_submodule(layer) for base in (fresh, again))
        assert type(one) is type(other) is torch.nn.Linear
        for tensor, expected in one.named_parameters():
            assert expected.dtype == torch.float32
            assert torch.equal(other.get_parameter(tensor), expected)


def test_heads_are_a_classifiers_alone() -> None:
    for name in ENCODERS:
        assert head_modules(build(name)) == ()
    assert head_modules(build("llama")) == ()


def test_config_json_stays_as_it_is(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "base")
    before = json.loads((folder / "config.json").read_text())
    load_base(folder, labels=LABELS)
    assert json.loads((folder / "config.json").read_text()) == before
