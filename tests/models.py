"""Tiny random models of real architectures, for tests."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

CAUSAL = ("llama", "qwen2", "falcon", "gpt2", "phi", "gemma")
ALL = (*CAUSAL, "bert")
ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
VOCABULARY = 128

_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1}
_LLAMA: dict[str, Any] = _COMMON | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
}
_FALCON: dict[str, Any] = _COMMON | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 2,
}
_SPECS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA | {"num_key_value_heads": 2}),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        _LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "falcon": ("FalconConfig", "FalconForCausalLM", _FALCON),
    "falcon_grouped": (
        "FalconConfig",
        "FalconForCausalLM",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon_rw": (
        "FalconConfig",
        "FalconForCausalLM",
        _FALCON | {"multi_query": False, "alibi": True, "bias": True, "parallel_attn": False},
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        _COMMON | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 2},
    ),
    "phi": ("PhiConfig", "PhiForCausalLM", _LLAMA),
    "gemma": (
        "GemmaConfig",
        "GemmaForCausalLM",
        _LLAMA | {"num_key_value_heads": 1, "head_dim": 8},
    ),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        _LLAMA | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    ),
    "mistral": (
        "MistralConfig",
        "MistralForCausalLM",
        _LLAMA | {"num_key_value_heads": 2, "sliding_window": 6},
    ),
    "qwen3": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        _LLAMA | {"num_key_value_heads": 2, "head_dim": 8},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _LLAMA | {"num_key_value_heads": 2}),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        _LLAMA | {"num_key_value_heads": 2, "num_local_experts": 4},
    ),
    "bert": (
        "BertConfig",
        "BertModel",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "roberta": (
        "RobertaConfig",
        "RobertaModel",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 130,
            "pad_token_id": 1,
        },
    ),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "hidden_dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
        },
    ),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertModel",
        _COMMON
        | {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "bos_token_id": 2,
            "cls_token_id": 2,
            "sep_token_id": 3,
        },
    ),
}


def build(name: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny model in eval mode with random weights (norms and biases too, so that nothing is
    the identity by accident)."""
    config_name, model_name, fields = _SPECS[name]
    config = getattr(transformers, config_name)(**(fields | overrides))
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(batch: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    """(batch, length) token ids without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)
