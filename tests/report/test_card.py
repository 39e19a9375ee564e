"""The model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rango.report.card import model_card

FACTS: dict[str, Any] = {
    "rango_version": "0.1.0",
    "steps": 120,
    "base": {"source": "org/model-7b", "quantize": "nf4", "fingerprint": "blake3:ab"},
    "adapter": {"r": 16, "lora_alpha": 32.0, "layers": None},
    "training": {"learning_rate": 2e-4},
    "data": {"digest": "sha256:cd", "train_samples": 2000},
    "evaluation": {
        "base": {"loss": 4.1, "content_accuracy": 0.22},
        "adapted": {"loss": 2.15, "content_accuracy": 0.5},
    },
    "forgetting": {"kl": 0.031, "on": "general text"},
    "proof": {"passed": True},
}


def front(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    value: dict[str, Any] = yaml.safe_load(header)
    return value


def test_front_matter_is_what_the_hub_reads() -> None:
    found = front(model_card(FACTS))
    assert found == {
        "base_model": "org/model-7b",
        "library_name": "peft",
        "tags": ["lora", "rango", "qlora"],
    }


def test_it_tells_data_settings_results_and_use() -> None:
    card = model_card(FACTS)
    for words in (
        "| loss, nats a token | 4.1000 | 2.1500 |",
        "| accuracy on content tokens | 22.0% | 50.0% |",
        "0.0310 nats",
        "sha256:cd",
        "2,000 training samples",
        "learning_rate: 0.0002",
        "120 steps",
        'rango.load_base_for("ADAPTER", "org/model-7b")',
        'base = AutoModelForCausalLM.from_pretrained("org/model-7b")',
        "## Limits",
    ):
        assert words in card
    assert "layers" not in card


def test_a_folder_of_this_machine_is_not_told(tmp_path: Path) -> None:
    folder = tmp_path / "my-base"
    folder.mkdir()
    card = model_card({**FACTS, "base": {"source": str(folder)}})
    assert str(tmp_path) not in card
    assert "my-base" in card
    assert "base_model" not in front(card)


@pytest.mark.parametrize("missing", list(FACTS))
def test_every_fact_may_be_missing(missing: str) -> None:
    assert model_card({key: value for key, value in FACTS.items() if key != missing})


def test_text_cannot_become_markup() -> None:
    card = model_card({**FACTS, "limits": ["[x](http://a) <b>\n# heading"]})
    assert "<b>" not in card.replace("\\<b\\>", "")
    assert "\n# heading" not in card
