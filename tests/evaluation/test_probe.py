"""What a probe notes and how it is compared."""

from __future__ import annotations

import json
import math

import models
import pytest
import torch
import transformers
from torch import nn

from rango.adapters.attach import attach
from rango.errors import AdapterError
from rango.evaluation.probe import check_probe, difference, make_probe, observe, probe_ids, unit_of


def test_a_probe_is_json_and_finds_itself_again() -> None:
    adapted = attach(models.build("llama"), r=2)
    probe = json.loads(json.dumps(make_probe(adapted, range(3, 23)), allow_nan=False))
    assert probe["positions"] == [4, 9, 14, 19]
    assert probe["dtype"] == "float32"
    assert [len(row) for row in probe["top"]] == [8] * 4
    assert check_probe(adapted, probe) == 0
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.fill_(0.01)
    assert check_probe(adapted, probe) > 1e-3


@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_probes(length: int) -> None:
    adapted = attach(models.build("gpt2"), r=2)
    probe = make_probe(adapted, [5] * length)
    assert probe["positions"][-1] == length - 1
    assert len(set(probe["positions"])) == min(4, length)
    assert check_probe(adapted, probe) == 0


def test_outputs_of_the_last_positions() -> None:
    model = models.build("llama")
    ids = models.inputs(1, 20)[0].tolist()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(observe(model, [ids])[0], expected[-16:])
    torch.testing.assert_close(observe(model, [ids[:3]], most=2)[0], expected[1:3])


def test_difference_is_relative_and_infinite_where_nothing_compares() -> None:
    ones = torch.ones(2, 3)
    assert difference([ones * 1.5], [ones]) == pytest.approx(0.5)
    assert difference([ones, ones * 2], [ones, ones]) == pytest.approx(1)
    assert difference([ones * 0], [ones * 0]) == 0
    assert difference([ones], [ones * 0]) == math.inf
    assert difference([ones], [torch.ones(3, 2)]) == math.inf
    assert difference([ones * math.nan], [ones]) == math.inf
    assert difference([ones * math.nan], [ones], 1.0) == math.inf


def test_logits_near_zero_are_measured_in_units_of_one() -> None:
    tiny = torch.tensor([[1e-3, 0.0]])
    assert difference([tiny * 1.5], [tiny]) == pytest.approx(0.5)
    assert difference([tiny * 1.5], [tiny], 1.0) == pytest.approx(5e-4)
    assert difference([tiny * 1.5e4], [tiny * 1e4], 1.0) == pytest.approx(0.5)
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    assert unit_of(transformers.BertForSequenceClassification(config)) == 1.0
    assert unit_of(transformers.BertModel(config)) == 0.0


def test_tokens_for_any_model() -> None:
    model = models.build("llama")
    assert probe_ids(model) == probe_ids(model)
    assert max(probe_ids(model, 1000)) < 128
    with pytest.raises(AdapterError, match="vocabulary"):
        probe_ids(nn.Linear(2, 2))
