"""Evaluation: sums over tokens, whatever the batches."""

from __future__ import annotations

import math
from typing import Any

import models
import pytest
import torch
from torch.nn.functional import cross_entropy

from rango.adapters.attach import attach
from rango.data.samples import Origin, Sample
from rango.errors import DataError
from rango.evaluation.evaluate import evaluate


def sample(length: int, first: int, seed: int) -> Sample:
    ids = models.inputs(1, length, seed)[0].tolist()
    supervised = [place >= first for place in range(length)]
    return Sample(
        tuple(ids), tuple(supervised), (*supervised[:-1], False), Origin("valid.jsonl", seed)
    )


SAMPLES = [sample(6 + 3 * i, 2 + i, i) for i in range(6)]


def by_hand(model: Any) -> dict[str, float]:
    losses, correct, content = [], [], []
    for one in SAMPLES:
        logits = model(input_ids=torch.tensor([one.input_ids])).logits[0].detach()
        for place in range(1, len(one)):
            if one.supervised[place]:
                target = torch.tensor(one.input_ids[place])
                losses.append(float(cross_entropy(logits[place - 1], target)))
                correct.append(int(logits[place - 1].argmax()) == int(target))
                content.append(one.content[place])
    inner = [loss for loss, is_content in zip(losses, content, strict=True) if is_content]
    right = [hit for hit, is_content in zip(correct, content, strict=True) if is_content]
    return {
        "loss": math.fsum(losses) / len(losses),
        "perplexity": math.exp(math.fsum(losses) / len(losses)),
        "token_accuracy": sum(correct) / len(correct),
        "content_loss": math.fsum(inner) / len(inner),
        "content_accuracy": sum(right) / len(right),
        "tokens": len(losses),
        "content_tokens": len(inner),
        "samples": len(SAMPLES),
    }


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_equals_the_sum_over_tokens_however_it_is_batched(name: str) -> None:
    model = models.build(name)
    expected = by_hand(model)
    for options in ({}, {"packed": False}, {"micro_tokens": 25}, {"micro_tokens": 1}):
        found = evaluate(model, SAMPLES, **options)
        assert found.as_dict() == pytest.approx(expected, rel=1e-5)


def test_adapters_can_be_left_out() -> None:
    model = models.build("llama")
    base = evaluate(model, SAMPLES)
    adapted = attach(model, r=2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(std=0.2)
    tuned = evaluate(model, SAMPLES)
    assert tuned.loss != base.loss
    with adapted.disabled():
        left_out = evaluate(model, SAMPLES)
        assert evaluate(model, SAMPLES) == left_out
    assert left_out.loss == pytest.approx(base.loss, rel=1e-6)  # sums in another order
    assert tuned.gap(base) == tuned.loss - base.loss


def test_modes_come_back_and_no_gradient_is_left() -> None:
    model = models.build("gpt2")  # it has dropout
    adapted = attach(model, r=2, lora_dropout=0.5)
    adapted.train()
    modes = [module.training for module in model.modules()]
    assert evaluate(model, SAMPLES) == evaluate(model, SAMPLES)
    assert [module.training for module in model.modules()] == modes
    assert adapted.bank.gradients is not None
    assert not adapted.bank.gradients.any()


def test_progress_counts_tokens() -> None:
    reports: list[Any] = []

    def progress(*report: Any) -> None:
        reports.append(report)

    evaluate(models.build("llama"), SAMPLES, micro_tokens=30, progress=progress)
    assert len(reports) > 1
    total = sum(map(len, SAMPLES))
    assert reports[-1] == ("evaluate", total, total, "tokens")


def test_without_supervised_tokens() -> None:
    model = models.build("llama")
    with pytest.raises(DataError, match="supervised"):
        evaluate(model, [])
    # the first token has nothing before it that could predict it
    only_first = Sample((3, 4), (True, False), (False, False), Origin("valid.jsonl", 1))
    with pytest.raises(DataError, match="supervised"):
        evaluate(model, [only_first])


def test_no_content_tokens_give_none() -> None:
    text = Sample((3, 4, 5), (False, True, True), (False, False, False), Origin("a.txt", 1))
    found = evaluate(models.build("llama"), [text])
    assert found.content_loss is None
    assert found.content_accuracy is None
    assert found.tokens == 2
