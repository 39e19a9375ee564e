"""The models that are measured: shapes of real ones, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A causal model's shape and the batch that is trained on."""

    name: str
    config_class: str
    model_class: str
    fields: dict[str, Any] = field(repr=False)
    tokens: int = 512

    @property
    def vocabulary(self) -> int:
        return int(self.fields["vocab_size"])


_COMMON = {"tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# Every in_features is a multiple of 64: on CPUs with AVX-512, bitsandbytes unpacks others wrongly.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "toy",
            "LlamaConfig",
            "LlamaForCausalLM",
            _COMMON
            | {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 256,
                "max_position_embeddings": 128,
            },
            tokens=32,
        ),
        Shape(
            "25m",
            "LlamaConfig",
            "LlamaForCausalLM",
            _COMMON
            | {
                "hidden_size": 512,
                "intermediate_size": 1536,
                "num_hidden_layers": 6,
                "num_attention_heads": 8,
                "num_key_value_heads": 8,
                "vocab_size": 8192,
                "max_position_embeddings": 2048,
            },
        ),
        Shape(
            "0.5b",  # Qwen2.5-0.5B
            "Qwen2Config",
            "Qwen2ForCausalLM",
            _COMMON
            | {
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "vocab_size": 151_936,
                "max_position_embeddings": 32_768,
                "rope_theta": 1_000_000.0,
                "rms_norm_eps": 1e-6,
            },
        ),
    )
}


def write_checkpoint(shape: Shape, folder: Path) -> int:
    """Save the shape with random fp32 weights; returns the number of parameters."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, shape.config_class)(**shape.fields)
    model = getattr(transformers, shape.model_class)(config)
    model.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def token_ids(shape: Shape) -> list[int]:
    """The tokens that all train on, the special ones left out."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, shape.vocabulary, (shape.tokens,), generator=generator).tolist()
