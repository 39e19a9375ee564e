"""A classifier's figures, written out; and labels for texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_texts import LABELS, make_tokenizer, save_encoder, text_of
from models import build

from rango.adapters.attach import attach
from rango.base.load import Base, base_from_model, load_base
from rango.data.samples import Origin, Sample
from rango.data.tokens.labelled import whole
from rango.errors import ConfigError, DataError
from rango.evaluation.classification import Classification, ClassSums
from rango.evaluation.classify import classify
from rango.evaluation.evaluate import evaluate
from rango.evaluation.probe import observe
from rango.generation.generate import generate
from rango.training.fit import train_model


@pytest.fixture(params=["bert", "roberta", "modernbert", "llama"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    return load_base(save_encoder(tmp_path / "base", request.param), labels=LABELS)


def samples(count: int = 17) -> list[Sample]:
    tokenizer = make_tokenizer()
    found = []
    for number in range(count):
        text, label = text_of(number)
        ids = tuple(tokenizer(text)["input_ids"])
        none = (False,) * len(ids)
        found.append(Sample(ids, none, none, Origin("d.csv", number), LABELS.index(label)))
    return found


def test_figures_are_those_of_the_definitions() -> None:
    sums = ClassSums(["a", "b", "c", "d"])
    truth, given = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 0, 0])
    sums.add(torch.full((4,), 0.5), truth[:4], given[:4])
    sums.add(torch.full((2,), 2.0), truth[4:], given[4:])
    found = sums.result()
    assert found.loss == pytest.approx(1.0)
    assert found.accuracy == pytest.approx(3 / 6)
    assert found.confusion == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    a, b, c, d = found.labels
    assert (a.precision, a.recall, a.f1, a.samples) == pytest.approx((0.5, 2 / 3, 4 / 7, 3))
    assert (b.precision, b.recall, b.f1, b.samples) == pytest.approx((0.5, 0.5, 0.5, 2))
    assert (c.precision, c.recall, c.f1, c.samples) == (None, 0.0, 0.0, 1)
    assert (d.precision, d.recall, d.f1, d.samples) == (None, None, 0.0, 0)
    assert found.macro_f1 == pytest.approx((4 / 7 + 0.5 + 0.0) / 3)  # d is not met with


def test_a_base_alone_knows_nothing(base: Base) -> None:
    found = evaluate(base.model, samples())
    assert isinstance(found, Classification)
    assert found.loss == pytest.approx(math.log(3))
    assert found.samples == 17


def test_batches_do_not_matter(base: Base) -> None:
    adapted = attach(base, r=2)
    torch.nn.init.normal_(adapted.bank.parameters, std=0.1)
    alone = evaluate(adapted.model, samples(), micro_tokens=1)
    together = evaluate(adapted.model, samples(), micro_tokens=1000, pad_id=0)
    assert isinstance(alone, Classification)
    assert isinstance(together, Classification)
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)
    assert together.confusion == alone.confusion


def test_texts_get_the_label_of_the_largest_logit(base: Base) -> None:
    adapted = attach(base, r=2)
    torch.nn.init.normal_(adapted.bank.parameters, std=0.1)
    texts = [text_of(number)[0] for number in range(9)]
    found = classify(adapted, make_tokenizer(), texts, micro_tokens=12)
    logits = observe(adapted.model, [make_tokenizer()(text)["input_ids"] for text in texts])
    for entry, row in zip(found, logits, strict=True):
        shares = torch.softmax(row[0], dim=-1)
        assert list(entry.probabilities) == list(LABELS)
        assert list(entry.probabilities.values()) == pytest.approx(shares.tolist(), abs=1e-5)
        assert entry.probability == max(entry.probabilities.values())
        assert entry.label == LABELS[int(shares.argmax())]


def test_long_texts(base: Base) -> None:
    text = "one " * 200
    with pytest.raises(DataError, match="text 2: 202 tokens, and the model has positions for 128"):
        classify(base, make_tokenizer(), ["two", text])
    assert len(classify(base, make_tokenizer(), ["two", text], too_long="truncate")) == 2


def test_texts_are_tokenized_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(save_encoder(tmp_path / "base"), labels=LABELS)
    calls: list[int] = []

    def counted(tokenizer: Any, examples: Any, numbers: Any) -> list[Sample]:
        calls.append(len(examples))
        return whole(tokenizer, examples, numbers)

    monkeypatch.setattr("rango.evaluation.classify.whole", counted)
    assert len(classify(base, make_tokenizer(), ["one", "two three", "ten"])) == 3
    assert calls == [3]
    assert classify(base, make_tokenizer(), []) == []


def test_other_models_and_samples_are_refused(base: Base) -> None:
    with pytest.raises(ConfigError, match="gives no labels; load the base"):
        classify(build("bert"), make_tokenizer(), ["one"])
    with pytest.raises(ConfigError, match="is a classifier, which writes nothing"):
        generate(base.model, make_tokenizer(), ["one"])
    plain = Sample((5, 6), (False, True), (False, True), Origin("d.csv", 1))
    with pytest.raises(DataError, match=r"has no label, and .* is a classifier"):
        evaluate(base.model, [plain])
    causal = base_from_model(build("qwen2"))
    with pytest.raises(DataError, match="has a label, and Qwen2ForCausalLM is none for labels"):
        evaluate(causal.model, samples())
    with pytest.raises(DataError, match="has a label"):
        train_model(attach(causal, r=2), samples())


def test_a_regression_is_no_choice(tmp_path: Path) -> None:
    import transformers

    config = build("bert").config
    config.num_labels = 1
    model = transformers.BertForSequenceClassification(config).eval()
    with pytest.raises(ConfigError, match="a model for regression"):
        classify(model, make_tokenizer(), ["one"])
