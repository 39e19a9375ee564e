"""From config.json to a transformers configuration and model class, without any remote code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils import logging as transformers_logging

from rango.base.checkpoint import Checkpoint
from rango.base.classifier import (
    classifier_names,
    is_classifier,
    labels_of,
    same_labels,
    set_labels,
    set_padding,
)
from rango.errors import CheckpointError, ConfigError, nearest

Kind = Literal["causal", "encoder", "classifier"]

# Keys of config.json that choose code or files rather than describe the architecture. A checkpoint
# may not: the implementation is Rango's choice, the files are those that were checked.
_IGNORED = {
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "auto_map",
    "distributed_config",
    "fusion_config",
    "quantization_config",
    "transformers_weights",
}


@dataclass(frozen=True)
class Architecture:
    """What to build: a transformers configuration and class."""

    config: Any
    model_class: type[PreTrainedModel]
    kind: Kind
    new_head: bool = False
    """A classifier's head is made over the body, which the checkpoint has without one."""


def architecture(checkpoint: Checkpoint, labels: Sequence[str] | None = None) -> Architecture:
    """The architecture that a checkpoint's config.json describes; with `labels`, a classifier over
    its body.

    Raises CheckpointError for a model type that transformers has no code for, for encoder-decoder
    models, and for a configuration that it refuses; ConfigError for labels that make no classifier,
    or are not those of a checkpoint that is one.
    """
    config = model_config(checkpoint)
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{checkpoint.folder}: model type {config.model_type!r} is an encoder-decoder; "
            "expected a causal language model or an encoder"
        )
    kind = _kind(config)
    if labels is not None and kind == "classifier" and not same_labels(labels, labels_of(config)):
        raise ConfigError(
            f"{checkpoint.folder}: is a classifier with the labels {', '.join(labels_of(config))}; "
            f"asked for are {', '.join(labels)}: use its own, or start from a checkpoint without "
            "a head"
        )
    new_head = labels is not None and kind != "classifier"
    if new_head and labels is not None:
        kind = "classifier"
        set_labels(config, labels, str(checkpoint.folder))
    elif kind == "classifier":
        set_padding(config, str(checkpoint.folder))
    mapping = _MAPPINGS[kind]
    if type(config) not in mapping:
        raise CheckpointError(
            f"{checkpoint.folder}: transformers has no {kind} model of type {config.model_type!r}"
        )
    found = mapping[type(config)]
    model_class = found[0] if isinstance(found, tuple | list) else found
    return Architecture(config, model_class, kind, new_head)


def model_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The transformers configuration of a checkpoint. Raises CheckpointError."""
    path = checkpoint.folder / "config.json"
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{path}: expected model_type, the architecture's name in transformers; found "
            f"{model_type!r}"
        )
    if model_type not in CONFIG_MAPPING:
        remote = " (code that comes with a checkpoint is never run)"
        raise CheckpointError(
            f"{path}: transformers has no model type {model_type!r}"
            f"{remote if 'auto_map' in checkpoint.config else ''}"
            f"{nearest(model_type, CONFIG_MAPPING.keys())}"
        )
    try:
        with quiet_transformers():
            return CONFIG_MAPPING[model_type].from_dict(_cleaned(checkpoint.config))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a valid {model_type} configuration: {error}") from error


def kind_of(model: PreTrainedModel) -> Kind:
    """Whether a model in memory classifies, predicts the next token, or encodes."""
    if is_classifier(model):
        return "classifier"
    causal = type(model).__name__ in _causal_names() or model.get_output_embeddings() is not None
    return "causal" if causal else "encoder"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own reports and bars: Rango raises and reports what matters itself."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


_MAPPINGS: dict[Kind, Any] = {
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING,
    "encoder": MODEL_MAPPING,
    "classifier": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
}


def _kind(config: PreTrainedConfig) -> Kind:
    architectures = getattr(config, "architectures", None) or []
    if any(name in classifier_names() for name in architectures):
        return "classifier"
    if architectures:
        causal = any(name in _causal_names() for name in architectures)
    else:
        causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return "causal" if causal else "encoder"


def _causal_names() -> set[str]:
    names: set[str] = set()
    for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        names.update([value] if isinstance(value, str) else value)
    return names


def _cleaned(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _cleaned(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _IGNORED
    }
