from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import build

import rango


def test_effective_rank_is_the_true_one(tmp_path: Path) -> None:
    adapted = rango.attach(build("llama"), r=7, lora_alpha=14)
    torch.manual_seed(0)
    adapted.bank.parameters.normal_()
    for site in adapted.sites.values():
        site.A.data[0, 3:] = site.A.data[0, :1]  # seven rows that span three dimensions
        site.A.data[0, 3:] *= 0.5
    folder = rango.save_adapter(adapted, tmp_path / "a")
    facts = rango.inspect_adapter(folder)
    assert {module.effective_rank for module in facts.modules} == {3}
    assert facts.parameters == adapted.trainable_parameters()
    assert facts.bytes == 4 * facts.parameters
    up = next(module for module in facts.modules if module.module == "model.layers.0.mlp.up_proj")
    lora_A, lora_B = adapted.sites[up.module].factors(0)
    delta = 2.0 * lora_B @ lora_A
    values = torch.linalg.svdvals(delta.double())
    assert up.shape == (64, 32)
    assert up.scaling == 2.0
    assert up.norm == pytest.approx(float(delta.norm()), rel=1e-5)
    assert up.top_share == pytest.approx(float(values[0] ** 2 / values.square().sum()), rel=1e-4)


def test_an_untrained_adapter_has_rank_zero(tmp_path: Path) -> None:
    folder = rango.save_adapter(rango.attach(build("llama"), r=2), tmp_path / "a")
    facts = rango.inspect_adapter(folder)
    assert {module.effective_rank for module in facts.modules} == {0}
    assert {module.top_share for module in facts.modules} == {0.0}
    assert facts.as_dict()["r"] == 2
