"""Peak memory: a QLoRA step over a 7B-shaped base, and how memory grows with a text's length.

    python benchmarks/memory.py --shape 7b

The 7B base is made on disk layer by layer, its NF4 weights random, and removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contest import apart, compete, say
from contestants import contestant
from result import Findings, Row, program
from shapes import SHAPES
from texts import equal_texts

ALLOWED, STRETCH = 2.5e9, 1.5e9
"""Bytes above the weights' own."""
RANK = 16


def write_nf4_base(name: str, folder: str) -> int:
    """A checkpoint in bitsandbytes' NF4 layout with random weights, a layer a file, so that no
    more than a layer is ever held; embedding, norms and head in bf16. Returns its weights' bytes.
    """
    import torch
    import transformers
    from safetensors.torch import save_file
    from torch import Tensor

    from rango.base.nf4_files import to_tensors
    from rango.numerics.dynamic8 import dynamic_map
    from rango.numerics.nf4 import NF4_CODE, NF4Tensor

    shape, path = SHAPES[name], Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config = getattr(transformers, shape.config_class)(**shape.fields)
    with torch.device("meta"):
        model = getattr(transformers, shape.model_class)(config)
    generator = torch.Generator().manual_seed(0)
    files: dict[str, str] = {}
    total = 0

    def nf4(key: str, size: torch.Size) -> dict[str, Tensor]:
        """Random nibbles, and block constants such that the weights' deviation is near .02."""
        blocks = size.numel() // 64
        return to_tensors(
            key,
            NF4Tensor(
                packed=torch.randint(
                    256, (size.numel() // 2, 1), dtype=torch.uint8, generator=generator
                ),
                absmax=torch.randint(256, (blocks,), dtype=torch.uint8, generator=generator),
                code=NF4_CODE.clone(),
                shape=tuple(size),
                dtype=torch.bfloat16,
                nested_absmax=torch.full((-(-blocks // 256),), 0.01),
                nested_code=dynamic_map().clone(),
                nested_offset=torch.tensor(0.04),
            ),
        )

    def write(tensors: dict[str, Tensor]) -> None:
        nonlocal total
        file = f"model-{len(set(files.values())):05d}.safetensors"
        save_file(tensors, path / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(tensors, file))
        total += sum(tensor.nbytes for tensor in tensors.values())

    pending: dict[str, Tensor] = {}
    last = ""
    for key, parameter in model.named_parameters():
        layer = key.rpartition(".layers.")[2].partition(".")[0]
        if pending and layer != last:
            write(pending)
            pending = {}
        last = layer
        if parameter.ndim == 2 and ".layers." in key:
            pending |= nf4(key, parameter.shape)
        elif parameter.ndim == 2:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.bfloat16)
            pending[key] = drawn.mul_(0.02)
        else:
            pending[key] = torch.ones(parameter.shape, dtype=torch.bfloat16)
    write(pending)
    stored = config.to_dict() | {
        "architectures": [shape.model_class],
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "float32",
        },
    }
    (path / "config.json").write_text(json.dumps(stored))
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def measure(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    giant = options.shape or ("25m" if options.quick else "7b")
    findings.attempt(f"{giant} in NF4", lambda: _giant(giant, options, speed, findings))
    lengths = options.lengths or ([256] if options.quick else [256, 1024])
    if options.shape == "7b" and not options.lengths:
        return  # the peer's fp32 copy of it would take 27 GB
    shape = options.shape or ("25m" if options.quick else "0.5b")
    for tokens in lengths:
        findings.attempt(
            f"QLoRA on {tokens} tokens",
            lambda t=tokens: _length(shape, t, options, findings),
        )


def _giant(
    shape: str, options: argparse.Namespace, speed: dict[str, Any], findings: Findings
) -> None:
    tokens = 256
    texts = equal_texts(SHAPES[shape].vocabulary, 1, tokens)
    with tempfile.TemporaryDirectory(prefix="rango-bench-", dir=options.scratch) as folder:
        weights = apart("memory:write_nf4_base", shape, folder)
        say(f"  {weights / 1e9:.2f} GB of weights written")
        rango = contestant("rango-nf4", folder, texts, RANK)
        rango.options["load"] = {"dtype": "bf16"}  # as stored; what is NF4 stays NF4
        found = compete({"rango-nf4": rango}, options.rounds or 2, options.threads, warm_up=1)
    findings.measured[f"QLoRA step over {shape} 1x{tokens}"] = found
    ours = found["rango-nf4"]
    flops = SHAPES[shape].step_flops(tokens, tokens - 1)
    peak = max(ours["peak_bytes"], ours["load_peak_bytes"])
    bounds = tuple((weights + more) / weights for more in (ALLOWED, STRETCH))
    findings.rows.append(
        Row.of(
            f"QLoRA step over {shape} 1x{tokens}: peak memory",
            "bytes",
            [float(peak)],
            [float(weights)],
            "its weights' bytes",
            (bounds[0], bounds[1]) if shape == "7b" else None,
            shape=shape,
            tokens=tokens,
            rank=RANK,
            load_seconds=ours["load_seconds"],
            step_seconds=ours["seconds"]["median"],
            load_peak_bytes=ours["load_peak_bytes"],
            share_of_gemm_peak=flops / ours["seconds"]["median"] / 1e9 / speed["gemm_fp32_gflops"],
        )
    )


def _length(shape: str, tokens: int, options: argparse.Namespace, findings: Findings) -> None:
    """Peak of one QLoRA step on one text."""
    texts = equal_texts(SHAPES[shape].vocabulary, 1, tokens)
    with tempfile.TemporaryDirectory(prefix="rango-bench-") as folder:
        apart("shapes:write_checkpoint", shape, folder)
        entered = {
            name: contestant(name, folder, texts, RANK) for name in ("rango-nf4", "peft-nf4")
        }
        found = compete(entered, 1, options.threads, warm_up=1)
    findings.measured[f"QLoRA {shape} 1x{tokens}"] = found
    ours, peer = found.values()
    findings.rows.append(
        Row.of(
            f"QLoRA {shape} 1x{tokens}: peak memory",
            "bytes",
            [float(ours["peak_bytes"])],
            [float(peer["peak_bytes"])],
            peer["title"],
            shape=shape,
            tokens=tokens,
            rank=RANK,
        )
    )


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, help="of the base on disk, and of the others")
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens of a text")
    parser.add_argument("--scratch", type=Path, help="where to write the base (7b: 4 GB)")


def main(arguments: Sequence[str] | None = None) -> int:
    return program("memory", __doc__, measure, arguments, _add)


if __name__ == "__main__":
    sys.exit(main())
