"""Forgetting: loss and KL against the base."""

from __future__ import annotations

import copy
import math
from typing import Any

import models
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from rango.adapters.attach import Adapted, attach
from rango.data.samples import Origin, Sample
from rango.errors import ConfigError
from rango.evaluation import forgetting as module
from rango.evaluation.evaluate import evaluate
from rango.evaluation.forgetting import divergence, forgetting, record_base


def text(length: int, seed: int) -> Sample:
    ids = tuple(models.inputs(1, length, seed)[0].tolist())
    return Sample(ids, (False, *(True,) * (length - 1)), (False,) * length, Origin("a.txt", seed))


TEXTS = [text(6 + 4 * i, i) for i in range(4)]


def tuned(std: float = 0.2) -> Adapted:
    adapted = attach(models.build("llama"), r=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(std=std, generator=generator)
    return adapted


def test_equals_torchs_divergence_token_by_token() -> None:
    adapted = tuned()
    total, tokens = 0.0, 0
    for one in TEXTS:
        ids = torch.tensor([one.input_ids])
        with torch.no_grad():
            q = log_softmax(adapted.model(input_ids=ids).logits[0, :-1], -1)
            with adapted.disabled():
                p = log_softmax(adapted.model(input_ids=ids).logits[0, :-1], -1)
        total += float(kl_div(q, p, log_target=True, reduction="sum"))
        tokens += len(p)
    for options in ({}, {"micro_tokens": 20, "packed": False}):
        found = forgetting(adapted, TEXTS, **options)
        assert found.kl == pytest.approx(total / tokens, rel=1e-4)
        assert found.tokens == tokens
    assert found.loss == pytest.approx(evaluate(adapted.model, TEXTS).loss, rel=1e-5)
    with adapted.disabled():
        assert found.base_loss == pytest.approx(evaluate(adapted.model, TEXTS).loss, rel=1e-5)
    assert found.kl > 0


def test_a_fresh_adapter_has_forgotten_nothing() -> None:
    found = forgetting(attach(models.build("llama"), r=2), TEXTS)
    assert found.kl == 0
    assert found.loss == found.base_loss


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = tuned()
    whole = forgetting(adapted, TEXTS)
    monkeypatch.setattr(module, "_CHUNK", 300)  # two positions at a vocabulary of 128
    monkeypatch.setattr(module, "_MOST_LOGITS", 128 * 12)
    assert forgetting(adapted, TEXTS).as_dict() == pytest.approx(whole.as_dict(), rel=1e-5)


def test_full_fine_tuning_against_another_model_or_its_record() -> None:
    base = models.build("llama")
    changed: Any = copy.deepcopy(base)
    recorded = record_base(changed, TEXTS, micro_tokens=32)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    against_model = forgetting(changed, TEXTS, base=base, micro_tokens=32)
    against_record = forgetting(changed, TEXTS, base=recorded, micro_tokens=32)
    assert against_record.as_dict() == pytest.approx(against_model.as_dict(), rel=1e-5)
    assert against_model.kl > 0
    with pytest.raises(ConfigError, match="record_base"):
        forgetting(changed, TEXTS)
    with pytest.raises(ConfigError, match="same samples"):
        forgetting(changed, TEXTS[:2], base=recorded, micro_tokens=7)


def test_masked_vocabulary_and_extremes_stay_finite() -> None:
    base = torch.tensor([[0.0, 0.0, -math.inf], [200.0, 0.0, -200.0]])
    other = torch.tensor([[0.0, 1.0, -math.inf], [200.0, 0.0, -200.0]])
    base_loss, loss, kl = divergence(base, other, torch.tensor([1, 0])).tolist()
    p, q = math.log(0.5), math.log(1 / (1 + math.e))
    assert base_loss == pytest.approx(-p, rel=1e-6)
    assert loss == pytest.approx(-math.log(math.e / (1 + math.e)), rel=1e-6)
    assert kl == pytest.approx(0.5 * (p - q) + 0.5 * (p - q - 1), rel=1e-5)


def test_a_broken_model_shows_as_nan() -> None:
    adapted = tuned()
    with torch.no_grad():
        adapted.parameters()[1].fill_(math.nan)
    assert math.isnan(forgetting(adapted, TEXTS).kl)
