"""What makes sense about a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rango.errors import ConfigError
from rango.training.config import TrainingConfig
from rango.training.schedule import check_training
from rango.training.sweep.config import CANDIDATES, SweepConfig
from rango.training.sweep.space import Space
from rango.training.sweep.written import parse_space


def check_sweep(config: SweepConfig) -> tuple[Space, int]:
    """The space, and how many candidates there will be.

    Raises ConfigError naming what makes no sense.
    """
    space = parse_space(config.space)
    check_training(config.training)
    wrong = [*_faults(config, space)]
    if wrong:
        raise ConfigError("; ".join(wrong))
    if config.sampler == "grid":
        return space, space.size or 0
    asked = CANDIDATES if config.candidates is None else config.candidates
    return space, asked if space.size is None else min(asked, space.size)


def _faults(config: SweepConfig, space: Space) -> Iterator[str]:
    least = {"eta": 2, "halvings": 0, "rows": 1, "seed": 0}
    for name, value in least.items():
        if getattr(config, name) < value:
            yield f"{name}: expected at least {value}, found {getattr(config, name)}"
    if config.candidates is not None and config.candidates < 1:
        yield f"candidates: expected at least 1, found {config.candidates}"
    if not config.snapshot_seconds > 0:
        yield f"snapshot_seconds: expected above 0, found {config.snapshot_seconds}"
    if config.sampler not in ("tpe", "random", "grid"):
        yield f"sampler: expected tpe, random or grid, found {config.sampler!r}"
    if config.sampler == "grid":
        if space.size is None:
            endless = [name for name, d in space.dimensions.items() if d.size is None]
            yield (
                f"sampler grid: {', '.join(endless)}: a range has no end of points; list values, "
                "or say how many after the range (1e-5..1e-2:9)"
            )
        if config.candidates is not None:
            yield "sampler grid tries every point; leave candidates out"
    if config.data.valid is None and not config.data.valid_share > 0:
        yield (
            "data: a sweep judges on held-out samples; give data.valid, or a data.valid_share "
            "above 0"
        )
    if config.data.train == "-":
        yield "data.train: standard input cannot be read again; name a file"
    if config.training.method != "lora":
        yield f"training.method {config.training.method}: a sweep trains adapters; set it to lora"
    for name in ("eval_every", "patience", "max_forgetting"):
        if getattr(config.training, name) is not None:
            yield (
                f"training.{name}: a sweep judges at its rungs and compares what the runs end "
                "with; leave it out"
            )
    if config.training.max_steps is not None and "batch_size" in space.dimensions:
        yield (
            "training.max_steps counts steps, so that a larger batch_size would see more samples; "
            "bound the run by training.epochs, or leave batch_size out of the space"
        )
    for name in ("checkpoint_every", "keep_checkpoints"):
        if getattr(config.training, name) != getattr(TrainingConfig, name):
            yield f"training.{name}: a sweep keeps snapshots of all its candidates; leave it out"
    if "?" in str(Path(config.output).resolve()):
        yield f"output: {config.output}: Optuna's storage takes no path with a question mark"
    if config.adapter.modules_to_save:
        yield "adapter.modules_to_save: candidates share batches and hold no layer whole"
