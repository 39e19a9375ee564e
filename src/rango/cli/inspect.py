"""`rango inspect`: what a folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

import rango
from rango.base.config import Quantize
from rango.cli.output import as_facts, print_json, show
from rango.cli.parsing import add_json_flag, collect, new_parser, parse
from rango.cli.progress import ProgressBars
from rango.errors import CheckpointError

DESCRIPTION = """\
Tells what a folder holds, which it recognises by its files. Of an adapter: targets, ranks,
effective ranks, norms. Of a base: sizes, what can be adapted, its fingerprint. Of a quantized base
(or of any, with --quantize): for each layer the error and the share of weights rounded to zero,
and how much smaller the linear layers and the whole have become. And which kernels run here:
compiled for this processor (avx2, portable), or the reference and why; RANGO_KERNELS chooses; and
which path each part of a base takes: fused, over the kernels, or plain."""

EXAMPLE = """\
  rango inspect runs/first/adapter
  rango inspect BASE --quantize nf4"""


@dataclass(frozen=True)
class InspectOptions:
    """What to inspect."""

    path: str
    """Folder of a base or of an adapter, or a base's name on the hub."""
    quantize: Quantize = "none"
    """nf4 or int8 quantizes a base first, and tells what that does to it."""


def parser() -> ArgumentParser:
    """The flags of `rango inspect`."""
    made = new_parser("inspect", DESCRIPTION, EXAMPLE, "PATH ")
    made.add_class_arguments(InspectOptions, as_positional=True)
    add_json_flag(made, "the facts")
    return made


def main(words: Sequence[str]) -> None:
    """Parse, inspect, print."""
    parsed = parse(parser(), words)
    options = collect(InspectOptions, parsed)
    kind = kind_of(Path(options.path))
    from rango.evaluation.paths import base_paths
    from rango.kernels.dispatch import facts as kernel_facts

    kernels = as_facts(kernel_facts())  # first: a mode that cannot be is refused before any work
    with ProgressBars() as progress:
        if kind == "adapter":
            facts = as_facts(rango.inspect_adapter(options.path))
        else:
            found = rango.inspect_base(options.path, quantize=options.quantize, progress=progress)
            facts = as_facts(found)
            facts["paths"] = base_paths(options.path)
    facts["kernels"] = kernels
    if parsed.json:
        print_json({"holds": kind, **facts})
        return
    from rango.report.tables import inspection_view

    show(inspection_view(f"{kind}: {options.path}", facts))


def kind_of(path: Path) -> Literal["adapter", "base"]:
    """By content: an adapter folder has adapter_config.json, a base config.json; what is no
    folder may be a base on the hub. Raises CheckpointError where it is neither."""
    if not path.exists():
        return "base"
    if (path / "adapter_config.json").is_file():
        return "adapter"
    if (path / "config.json").is_file():
        return "base"
    nested = path / "adapter" / "adapter_config.json"
    hint = f"; a run's adapter is in {nested.parent}" if nested.is_file() else ""
    raise CheckpointError(
        f"{path}: neither a base (it has no config.json) nor an adapter (it has no "
        f"adapter_config.json){hint}"
    )
