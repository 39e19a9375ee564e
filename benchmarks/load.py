"""A checkpoint on disk to an NF4 base that is ready: Rango against bitsandbytes in transformers.

    python benchmarks/load.py --shapes 0.5b

Every load is a new process's first, from files in the page cache. Memory is given twice: the peak
of anonymous memory above its value after the imports, the loaded base included, and the peak of all
resident memory, in which mapped files count while they are mapped.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contest import Contestant, apart, compete, summary
from contestants import NF4, transformers_model
from result import Findings, Row, program
from shapes import SHAPES

GOALS = {"seconds": (1 / 8, 1 / 15), "memory": (0.5, None), "peak_bytes": (0.5, None)}
"""Ours over the peer's: 8 and 15 times as fast."""
MEASURED = {
    "seconds": ("s", ""),
    "memory": ("bytes", ", anonymous memory above imports"),
    "peak_bytes": ("bytes", ", peak memory"),
}
"""Of a sample: its unit, and what a row says of it."""
STORED = ("float32", "bfloat16")
# imported beforehand, for neither time nor memory of an import is of the loading
_MODELS = ("transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2")
_BITSANDBYTES = (
    "bitsandbytes",
    "accelerate",
    "transformers.integrations.bitsandbytes",
    "transformers.quantizers.quantizer_bnb_4bit",
)


class RangoLoading:
    """load_base with quantization, or (cached) from the cache of quantized bases."""

    def __init__(self, folder: str, options: dict[str, Any]) -> None:
        self.folder, self.options = folder, options
        self.facts: dict[str, Any] = {}

    def step(self) -> dict[str, float]:
        from rango.base.load import load_base

        self.base = load_base(self.folder, **self.options)
        return {}


class BitsandbytesLoading:
    """from_pretrained with a BitsAndBytesConfig."""

    def __init__(self, folder: str, dtype: str) -> None:
        """dtype: what is not quantized takes it; that of the file, as Rango does."""
        self.folder, self.dtype = folder, dtype
        self.facts: dict[str, Any] = {}

    def step(self) -> dict[str, float]:
        self.model = transformers_model(self.folder, dtype=self.dtype, nf4=True)
        return {}


def cache_options(folder: Path) -> dict[str, Any] | None:
    """Options of load_base for a cache of quantized bases in `folder`; None before there is one."""
    from rango.base.load import load_base

    found = inspect.signature(load_base).parameters
    return {"cache": folder} if "cache" in found else None


def contestants(folder: str, stored: str, cache: Path) -> dict[str, Contestant]:
    ours, peers = (*_MODELS, "rango.base.load"), (*_MODELS, *_BITSANDBYTES)
    options = {"folder": folder, "options": NF4}
    found = {
        "rango": Contestant("Rango", "load:RangoLoading", options, ours),
        "bitsandbytes": Contestant(
            "bitsandbytes",
            "load:BitsandbytesLoading",
            {"folder": folder, "dtype": stored},
            peers,
        ),
    }
    with_cache = cache_options(cache)
    if with_cache is not None:
        options = options | {"options": NF4 | with_cache}
        found["rango-cached"] = Contestant(
            "Rango, second start", "load:RangoLoading", options, ours
        )
    return found


def measure(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    shapes = options.shapes or (["25m"] if options.quick else ["0.5b", "1.1b"])
    for shape in shapes:
        for stored in STORED[: 1 if options.quick or shape != "0.5b" else None]:
            findings.attempt(
                f"{shape} stored in {stored}",
                lambda s=shape, t=stored: _run(s, t, options, speed, findings),
            )


def _run(
    shape: str,
    stored: str,
    options: argparse.Namespace,
    speed: dict[str, Any],
    findings: Findings,
) -> None:
    with tempfile.TemporaryDirectory(prefix="rango-bench-") as temporary:
        folder, cache = Path(temporary) / "base", Path(temporary) / "cache"
        apart("shapes:write_checkpoint", shape, str(folder), stored)
        size = sum(path.stat().st_size for path in folder.iterdir())
        entered = contestants(str(folder), stored, cache)
        loads: dict[str, list[dict[str, Any]]] = {name: [] for name in entered}
        if "rango-cached" in entered:  # the first start writes the cache
            compete({"first": entered["rango-cached"]}, 1, options.threads, warm_up=0)
        for number in range(options.rounds or (1 if options.quick else 3)):
            names = list(entered)
            for name in names[number % 2 :] + names[: number % 2]:
                alone = {name: entered[name]}
                loads[name].append(compete(alone, 1, options.threads, warm_up=0)[name])
    found = {name: _joined(each) for name, each in loads.items()}
    findings.measured[f"loading {shape}, stored in {stored}"] = found
    settings = {
        "shape": shape,
        "stored": stored,
        "file_bytes": size,
        "quantized": "NF4, double quantization",
        "share_of_copy_bandwidth": {
            name: size / one["seconds"]["median"] / 1e9 / speed["copy_gb_per_second"]
            for name, one in found.items()
        },
    }
    findings.rows += rows(found, settings)


def rows(found: dict[str, Any], settings: dict[str, Any]) -> list[Row]:
    """Each of ours beside bitsandbytes."""
    shape, stored, peer = settings["shape"], settings["stored"], found["bitsandbytes"]
    made = []
    for entry in [name for name in found if name != "bitsandbytes"]:
        goals = GOALS if shape in ("0.5b", "1.1b") and entry == "rango" else {}
        ours = found[entry]
        title = f"{ours['title']}: {shape} stored in {stored} to NF4"
        for what, (unit, said) in MEASURED.items():
            sides = [[float(sample[what]) for sample in one["samples"]] for one in (ours, peer)]
            bounds = goals.get(what)
            made.append(Row.of(title + said, unit, *sides, peer["title"], bounds, **settings))
    return made


def _joined(loads: list[dict[str, Any]]) -> dict[str, Any]:
    """Several processes' first loads as the samples of one contestant."""
    samples = [
        one["samples"][0]
        | {"memory": max(1, one["peak_anonymous_bytes"] - one["imports_anonymous_bytes"])}
        for one in loads
    ]
    return loads[0] | {
        "samples": samples,
        "seconds": summary([sample["seconds"] for sample in samples]),
        "foreign_cores": summary([sample["foreign_cores"] for sample in samples]),
        "peak_anonymous_bytes": max(one["peak_anonymous_bytes"] for one in loads),
    }


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)


def main(arguments: Sequence[str] | None = None) -> int:
    return program("load", __doc__, measure, arguments, _add)


if __name__ == "__main__":
    sys.exit(main())
