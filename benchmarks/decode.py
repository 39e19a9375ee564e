"""Greedy decoding, tokens a second: one adapter alone, and eight adapters mixed in a batch.

    python benchmarks/decode.py --new-tokens 64

What is timed is decoding: from the first new token to the last, the prompt's pass left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from contest import Contestant, apart, compete
from contestants import NF4, PEFT_IMPORTS, WITHOUT_BF16_UNITS, peft_model
from result import Findings, Row, has_bf16_units, program
from shapes import SHAPES
from texts import equal_texts

RANK = 16
PYTHON_SECONDS = 0.004
"""What a token may take besides arithmetic, at the stretch."""


class _Decoding:
    """Prompts, the clock, and the first tokens of the answer, to compare."""

    def __init__(self, prompts: list[list[int]], new_tokens: int) -> None:
        self.prompts, self.new_tokens = prompts, new_tokens
        self.facts: dict[str, Any] = {}
        self.times: list[float] = []

    def step(self) -> dict[str, float]:
        self.times = []
        answers = self.answer()
        passes = sorted(after - before for before, after in pairwise(self.times))
        return {
            "seconds": self.times[-1] - self.times[0],
            "pass_seconds": statistics.median(passes),
            # enough of the answers to see whether two contestants wrote the same
            "checksum": float(sum((i + 1) * sum(t[:8]) for i, t in enumerate(answers))),
        }

    def tick(self) -> None:
        self.times.append(time.perf_counter())

    def answer(self) -> list[list[int]]:
        """The new tokens of each prompt; tick() at each pass."""
        raise NotImplementedError(type(self))


class RangoDecoding(_Decoding):
    """rango.generation over a bank of `adapters` rows; rows: one a prompt, -1 for the base."""

    def __init__(
        self,
        folder: str,
        prompts: list[list[int]],
        new_tokens: int,
        *,
        load: dict[str, Any],
        adapters: int,
        rows: list[int],
    ) -> None:
        from rango.adapters.attach import attach
        from rango.adapters.routing import Routing
        from rango.base.load import load_base

        super().__init__(prompts, new_tokens)
        base = load_base(folder, **load)
        self.adapted = attach(
            base, r=RANK, lora_alpha=2 * RANK, rows=adapters, seed=0, trainable=False
        )
        for name, site in self.adapted.sites.items():
            for row in range(adapters):
                _fill(*site.factors(row), name, row)
        self.routing = Routing.sequences(rows)

    def answer(self) -> list[list[int]]:
        from rango.generation.decode import decode
        from rango.generation.sampling import Sampler, Sampling

        answers: list[list[int]] = [[] for _ in self.prompts]
        with self.adapted.route(self.routing):
            for tokens in decode(
                self.adapted.model,
                self.prompts,
                limits=[self.new_tokens] * len(self.prompts),
                ends=(),
                choose=Sampler(Sampling(), [0] * len(self.prompts)),
            ):
                self.tick()
                for answer, token in zip(answers, tokens, strict=True):
                    answer += [] if token is None else [token]
        return answers


class PeftDecoding(_Decoding):
    """PEFT's `generate`, with `adapter_names` where several adapters are mixed."""

    def __init__(
        self,
        folder: str,
        prompts: list[list[int]],
        new_tokens: int,
        *,
        dtype: str,
        adapters: int,
        rows: list[int],
    ) -> None:
        super().__init__(prompts, new_tokens)
        self.model = peft_model(folder, RANK, dtype=dtype)
        config = self.model.peft_config["default"]
        self.names = ["default", *(f"adapter{row}" for row in range(1, adapters))]
        for name in self.names[1:]:
            self.model.add_adapter(name, config)
        for path, module in self.model.named_modules():
            for row, name in enumerate(self.names if hasattr(module, "lora_A") else ()):
                factors = module.lora_A[name].weight.data, module.lora_B[name].weight.data
                _fill(*factors, path.removeprefix("base_model.model."), row)
        self.model.eval()
        self.mixed = {"adapter_names": [self.names[row] for row in rows]} if adapters > 1 else {}

    def answer(self) -> list[list[int]]:
        import torch

        def ticking(ids: Any, scores: Any) -> Any:
            self.tick()
            return scores

        ids = torch.tensor(self.prompts)
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.new_tokens,
            min_new_tokens=self.new_tokens,
            do_sample=False,
            logits_processor=[ticking],
            **self.mixed,
        )
        answers: list[list[int]] = written[:, ids.shape[1] :].tolist()
        return answers


def _fill(lora_A: Any, lora_B: Any, site: str, row: int) -> None:
    """The same random adapter for all contestants: small, so that the base still decides."""
    import zlib

    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{site} {row}".encode()))
    for factor in (lora_A, lora_B):
        factor.copy_(torch.randn(factor.shape, generator=generator) * 0.01)


@dataclass(frozen=True)
class Trial:
    """A batch, one adapter a sequence; the goals of ours against each peer."""

    name: str
    batch: int
    goals: dict[str, tuple[float, float] | None]
    shape: str = "0.5b"
    milliseconds: bool = False
    """Time a pass, with the stretch at PYTHON_SECONDS, instead of tokens a second."""


TRIALS = (
    Trial(
        "batch 1",
        1,
        {"peft-fp32": (3.0, 5.0), "peft-bf16": (1.8, 3.0), "peft-bf16-avx2": (1.8, 3.0)},
    ),
    Trial(
        "batch 8, 8 adapters mixed",
        8,
        {"peft-fp32": (2.5, 4.0), "rango-base": (0.9, 0.97), "rango-fp32": None},
    ),
    Trial("Python a token", 1, {"peft-fp32": None}, shape="0.5b-thin", milliseconds=True),
)
_QUICK = ("rango-nf4", "rango-base", "rango-fp32", "peft-fp32")
_RANGO = ("RangoDecoding", ("transformers", "rango.generation.generate"))
_PEFT = ("PeftDecoding", PEFT_IMPORTS)
# title, class and imports, options, environment
_ENTRIES: dict[str, tuple[str, tuple[str, tuple[str, ...]], dict[str, Any], dict[str, str]]] = {
    "rango-nf4": ("Rango, NF4", _RANGO, {"load": NF4}, {}),
    "rango-base": ("Rango, NF4, base only", _RANGO, {"load": NF4}, {}),
    "rango-fp32": ("Rango, fp32", _RANGO, {"load": {"dtype": "fp32"}}, {}),
    "peft-fp32": ("PEFT, fp32", _PEFT, {"dtype": "float32"}, {}),
    "peft-bf16": ("PEFT, bf16", _PEFT, {"dtype": "bfloat16"}, {}),
    "peft-bf16-avx2": (
        "PEFT, bf16, as on a CPU without bf16 units",
        _PEFT,
        {"dtype": "bfloat16"},
        WITHOUT_BF16_UNITS,
    ),
}


def measure(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    for trial in TRIALS[: 2 if options.quick else None]:
        findings.attempt(trial.name, lambda t=trial: _run(t, options, speed, findings))


def _run(
    trial: Trial, options: argparse.Namespace, speed: dict[str, Any], findings: Findings
) -> None:
    small = "25m" if options.quick else trial.shape
    shape = options.shape or small
    new_tokens = options.new_tokens or (16 if options.quick else 48)
    with tempfile.TemporaryDirectory(prefix="rango-bench-") as folder:
        apart("shapes:write_checkpoint", shape, folder, "bfloat16")
        left_out = set(_ENTRIES) - set(_QUICK) if options.quick else set()
        if options.peer_isa != "avx2":
            left_out.add("peft-bf16-avx2")
        names = [name for name in ("rango-nf4", *trial.goals) if name not in left_out]
        found = compete(
            {n: _contestant(n, folder, shape, trial, options.prompt, new_tokens) for n in names},
            options.rounds or (2 if options.quick else 5),
            options.threads,
            warm_up=1,
            at_once=shape != "0.5b",
        )
    findings.measured[f"decoding {shape}, {trial.name}"] = found
    passes = {
        name: [sample["pass_seconds"] for sample in one["samples"]] for name, one in found.items()
    }
    weights = SHAPES[shape].linear_weights * 33 / 64 + SHAPES[shape].head_weights * 2
    settings = {
        "shape": shape,
        "stored": "bfloat16",
        "batch": trial.batch,
        "prompt": options.prompt,
        "new_tokens": new_tokens,
        "rank": RANK,
        "bf16_units": has_bf16_units(),
        # the NF4 layers and the bf16 head, read once a pass
        "share_of_copy_bandwidth": weights
        / statistics.median(passes["rango-nf4"])
        / 1e9
        / speed["copy_gb_per_second"],
    }
    for name in names[1:]:
        sides, title = [passes["rango-nf4"], passes[name]], found[name]["title"]
        if trial.milliseconds:
            unit, sides = "ms", [[1e3 * each for each in side] for side in sides]
            goals: Any = (None, 1e3 * PYTHON_SECONDS / statistics.median(sides[1]))
        else:
            unit, sides = "tokens/s", [[trial.batch / each for each in side] for side in sides]
            goals = trial.goals[name] if shape == trial.shape else None
        row = Row.of(f"decoding {shape}, {trial.name}", unit, *sides, title, goals, **settings)
        findings.rows.append(row)
    if "rango-fp32" in found:
        sums = [found[name]["warm_up"][0]["checksum"] for name in ("rango-fp32", "peft-fp32")]
        findings.check("tokens of rango-fp32 and peft-fp32", *sums, 0.0)


def _contestant(
    name: str, folder: str, shape: str, trial: Trial, prompt: int, new_tokens: int
) -> Contestant:
    title, (make, imports), options, environment = _ENTRIES[name]
    common = {
        "folder": folder,
        "prompts": [ids for ids, _ in equal_texts(SHAPES[shape].vocabulary, trial.batch, prompt)],
        "new_tokens": new_tokens,
        "adapters": trial.batch,
        "rows": [-1] * trial.batch if name == "rango-base" else list(range(trial.batch)),
    }
    return Contestant(title, f"decode:{make}", common | options, imports, environment)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument(
        "--peer-isa", choices=["avx2"], help="also run PEFT bf16 as on a CPU without bf16 units"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    return program("decode", __doc__, measure, arguments, _add)


if __name__ == "__main__":
    sys.exit(main())
