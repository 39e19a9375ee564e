"""The models that are measured: shapes of real ones, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A causal model's shape."""

    name: str
    config_class: str
    model_class: str
    fields: dict[str, Any] = field(repr=False)

    @property
    def vocabulary(self) -> int:
        return int(self.fields["vocab_size"])

    @property
    def linear_weights(self) -> int:
        """Weights of the layers' linear projections, the head and the embedding left out."""
        hidden, intermediate = self.fields["hidden_size"], self.fields["intermediate_size"]
        share = self.fields["num_key_value_heads"] / self.fields["num_attention_heads"]
        attention = int(2 * hidden * hidden * (1 + share))
        return int(self.fields["num_hidden_layers"]) * (attention + 3 * hidden * intermediate)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * int(self.fields["hidden_size"])

    def step_flops(self, tokens: int, supervised: int) -> int:
        """What a step over a frozen base cannot do without: y = x·Wᵀ and dx = dy·W, the head only
        where there is something to predict. Attention and the adapter are left out."""
        return 4 * (tokens * self.linear_weights + supervised * self.head_weights)


def _fields(
    hidden: int, intermediate: int, layers: int, heads: int, kv: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    common = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True}
    return common | {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        **more,
    }


_LLAMA = ("LlamaConfig", "LlamaForCausalLM")
_QWEN = ("Qwen2Config", "Qwen2ForCausalLM")
_QWEN_MORE = {"rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6}
_UNTIED = {"tie_word_embeddings": False}

# Every in_features is a multiple of 64: on CPUs with AVX-512, bitsandbytes unpacks others wrongly.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("toy", *_LLAMA, _fields(64, 128, 2, 4, 2, 256)),
        Shape("25m", *_LLAMA, _fields(512, 1536, 6, 8, 8, 8192)),
        # Qwen2.5-0.5B
        Shape("0.5b", *_QWEN, _fields(896, 4864, 24, 14, 2, 151_936, **_QWEN_MORE)),
        # as many calls as that, next to nothing to compute
        Shape("0.5b-thin", *_QWEN, _fields(64, 64, 24, 2, 1, 256, **_QWEN_MORE)),
        # TinyLlama
        Shape("1.1b", *_LLAMA, _fields(2048, 5632, 22, 32, 4, 32_000, **_UNTIED)),
        # Llama 2
        Shape("7b", *_LLAMA, _fields(4096, 11_008, 32, 32, 32, 32_000, **_UNTIED)),
    )
}


def write_checkpoint(name: str, folder: str, dtype: str = "float32") -> int:
    """Save the shape with random weights, stored as `dtype`; returns the number of parameters."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape = SHAPES[name]
    config = getattr(transformers, shape.config_class)(**shape.fields)
    model = getattr(transformers, shape.model_class)(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))
