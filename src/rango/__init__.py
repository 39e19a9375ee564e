"""Rango: LoRA and QLoRA. The base is frozen and shared; an adapter is one row of a bank."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Names are imported where first used, so that `import rango` stays quick (torch takes seconds).
_HOMES = {
    "Adapted": "rango.adapters.attach",
    "Base": "rango.base.load",
    "BaseConfig": "rango.base.config",
    "DataConfig": "rango.data.config",
    "LoRALinear": "rango.adapters.linear",
    "LoraConfig": "rango.adapters.config",
    "RangoError": "rango.errors",
    "Routing": "rango.adapters.routing",
    "JobConfig": "rango.training.many.config",
    "ManyConfig": "rango.training.many.config",
    "RunConfig": "rango.training.config",
    "SweepConfig": "rango.training.sweep.config",
    "TrainingConfig": "rango.training.config",
    "attach": "rango.adapters.attach",
    "check": "rango.data.check",
    "classify": "rango.evaluation.classify",
    "compare": "rango.evaluation.compare",
    "evaluate": "rango.evaluation.evaluate",
    "exact_match": "rango.evaluation.exact",
    "forgetting": "rango.evaluation.forgetting",
    "generate": "rango.generation.generate",
    "inspect_adapter": "rango.adapters.inspect",
    "inspect_base": "rango.base.inspect",
    "load_adapter": "rango.adapters.files",
    "load_base": "rango.base.load",
    "load_base_for": "rango.adapters.matching",
    "load_template": "rango.data.templates.choose",
    "load_tokenizer": "rango.base.tokenizer",
    "merge_checkpoint": "rango.export.merged",
    "read_examples": "rango.data.reading.read",
    "run_demo": "rango.demo.run",
    "save_adapter": "rango.adapters.files",
    "save_base": "rango.base.save",
    "stream": "rango.generation.generate",
    "stream_examples": "rango.data.reading.read",
    "sweep": "rango.training.sweep.sweep",
    "tokenize": "rango.data.tokens.tokenize",
    "train": "rango.training.train",
    "train_many": "rango.training.many.train",
    "use_template": "rango.data.templates.choose",
    "verify": "rango.evaluation.proof",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rango' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
