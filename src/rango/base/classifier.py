"""Classifiers: a model that gives one row of logits a text, and its head.

A checkpoint that was not made to classify lacks the head that transformers' class has above the
body (and, in some, the pooler). In the base such a head is zero: the base alone says that all
labels are alike, ln K nats a text. What is learnt of it belongs to the adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from rango.base.checkpoint import read_config
from rango.base.roles import adaptable_modules
from rango.base.source import local_folder
from rango.errors import CheckpointError, ConfigError

_DEVIATION = 0.02
"""transformers' initializer_range where a configuration has none."""


def classifier_names() -> set[str]:
    """The classes of transformers that classify sequences."""
    return set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())


def is_classifier(model: nn.Module) -> bool:
    """Whether a model is one of transformers' that give one row of logits a text."""
    return isinstance(model, PreTrainedModel) and type(model).__name__ in classifier_names()


def labels_of(config: Any) -> tuple[str, ...]:
    """The labels of a classifier's configuration, in the order of its logits."""
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))


def stored_labels(source: str | Path, revision: str | None = None) -> tuple[str, ...] | None:
    """The labels of a checkpoint that is a classifier itself, without loading it; None of another.

    Raises CheckpointError where there is no checkpoint.
    """
    folder = local_folder(source, revision, weights=False)
    config = read_config(folder)
    if not any(name in classifier_names() for name in config.get("architectures") or ()):
        return None
    try:
        by_number = config.get("id2label")
        if not by_number:
            return generic_labels(int(config.get("num_labels") or 2))
        return tuple(str(by_number[number]) for number in sorted(by_number, key=int))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: id2label: {error}") from error


def check_single_label(model: nn.Module, name: str) -> None:
    """Raise ConfigError for a classifier whose logits are not one choice among its labels."""
    config: Any = model.config
    kind = getattr(config, "problem_type", None)
    if kind in ("regression", "multi_label_classification") or config.num_labels < 2:
        raise ConfigError(
            f"{name}: a model for {kind or 'regression'} ({config.num_labels} outputs); expected "
            "one that chooses one of several labels"
        )


def set_labels(config: Any, labels: Sequence[str], where: str) -> None:
    """Have a configuration describe a classifier with these labels.

    Raises ConfigError for fewer than two labels or equal ones, CheckpointError where a causal model
    has no token that could pad.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ConfigError(f"labels: expected at least two, all different; found {list(labels)}")
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    set_padding(config, where)


def set_padding(config: Any, where: str) -> None:
    """Have a classifier's configuration name a token that pads, by default the one that ends a
    text. Raises CheckpointError where it names neither."""
    text = config.get_text_config()
    if getattr(text, "pad_token_id", None) is not None:
        return
    end = getattr(text, "eos_token_id", None)
    end = end[0] if isinstance(end, list) and end else end
    if end is None:
        raise CheckpointError(
            f"{where}: config.json names neither pad_token_id nor eos_token_id, and a "
            "classifier finds the end of a text by its padding; add pad_token_id"
        )
    text.pad_token_id = end


def same_labels(given: Sequence[str], stored: Sequence[str]) -> bool:
    """Whether labels are those stored; LABEL_0, LABEL_1, … say nothing and fit any as many."""
    return tuple(given) in (tuple(stored), generic_labels(len(stored)))


def generic_labels(count: int) -> tuple[str, ...]:
    """transformers' names for labels that have none."""
    return tuple(f"LABEL_{number}" for number in range(count))


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """The linear layers above a classifier's body, and a pooler that its checkpoint lacked."""
    if not is_classifier(model):
        return ()
    return tuple(
        name
        for name, found in adaptable_modules(model).items()
        if found.role == "head" or (is_pooler(name) and is_new(model.get_submodule(name)))
    )


def is_pooler(name: str) -> bool:
    """Whether a module or tensor is part of what condenses a body's output."""
    return "pooler" in name.split(".")


def is_new(module: nn.Module) -> bool:
    """Whether a layer is one that the checkpoint lacked: it computes zero."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not weight.is_meta and not weight.any()


def spread_of(model: nn.Module) -> float:
    """Standard deviation with which transformers starts the linear layers of a model."""
    found = getattr(getattr(model, "config", None), "initializer_range", None)
    return float(found) if found else _DEVIATION


@torch.no_grad()
def zero_missing(model: PreTrainedModel, missing: Sequence[str], widen: bool, where: str) -> None:
    """Zero the linear layers whose tensors are `missing`, in fp32 if `widen`.

    Norms among them stay as transformers starts them. Raises CheckpointError for anything else.
    """
    for name in {tensor.rpartition(".")[0] for tensor in missing}:
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear):
            for parameter in module.parameters():
                parameter.data = torch.zeros(
                    parameter.shape, dtype=torch.float32 if widen else parameter.dtype
                )
        elif "norm" not in type(module).__name__.lower():
            raise CheckpointError(
                f"{where}: the head of {type(model).__name__} has {name}, which is not a linear "
                "layer, and the checkpoint has no tensors for it"
            )


@torch.no_grad()
def draw_head(model: nn.Module, seed: int) -> None:
    """Draw the layers of a classifier's head that its checkpoint lacked, in place, as `drawn` does;
    their biases stay 0."""
    for name in head_modules(model):
        layer = model.get_submodule(name)
        if is_new(layer):
            weight = layer.get_parameter("weight")
            weight.copy_(drawn(tuple(weight.shape), name, seed, spread_of(model)))


def drawn(shape: tuple[int, ...], name: str, seed: int, deviation: float) -> Tensor:
    """A layer's first weight, fp32 from N(0, deviation²), which depends on seed and name alone."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(shape, generator=generator) * deviation
