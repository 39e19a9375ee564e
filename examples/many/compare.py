"""Every adapter, and the base, on every customer's held-out set.

    python examples/many/compare.py runs/many --output runs/many-losses.json

All adapters are rows of one bank, and a batch has a held-out set's samples under several of them.
Printed: how many adapters beat the base on their own set, and on how many of the other sets the
set's own adapter beats them. The losses of all pairs go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import rango
from rango.adapters.routing import NO_ROW
from rango.base.packing import packing_probe
from rango.data.samples import Sample
from rango.data.tokens.pack import Packed, collate
from rango.evaluation.loss import token_losses
from rango.files.atomic import refuse_existing, write_text

HERE = Path(__file__).parent
BASE = HERE.parents[1] / "src" / "rango" / "demo" / "base"
TOKENS = 4096
"""Of a batch."""


def main() -> None:
    """Load, measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="the folder that rango train wrote")
    parser.add_argument("--heldout", type=Path, default=HERE / "heldout")
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--samples", type=int, help="of each held-out set; all by default")
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args()
    if options.output:
        refuse_existing(options.output)
    folders = {path.parent.name: path for path in sorted(options.run.glob("jobs/*/adapter"))}
    if len(folders) < 2:
        raise SystemExit(
            f"{options.run}: expected jobs/*/adapter of at least two jobs, found {len(folders)}; "
            "is it a finished run's folder?"
        )
    if options.samples is not None and options.samples < 1:
        raise SystemExit(f"--samples: expected at least 1, found {options.samples}")
    base = rango.load_base(options.base)
    tokenizer = rango.load_tokenizer(options.base)
    adapted = bank_of(base, list(folders.values()))
    packed = packing_probe(adapted.model).how
    losses: dict[str, dict[str, float]] = {}
    for number, name in enumerate(folders, 1):
        examples = rango.read_examples(str(options.heldout / f"{name}.jsonl"))[: options.samples]
        samples = rango.tokenize(examples, tokenizer).samples
        rows = [NO_ROW, *range(len(folders))]
        found = losses_under(adapted, samples, rows, packed, tokenizer.pad_token_id)
        losses[name] = dict(zip(["base", *folders], found, strict=True))
        print(f"\r{number} of {len(folders)} sets", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    result = summary(losses)
    print(told(result))
    if options.output:
        text = json.dumps({"summary": result, "losses": losses}, indent=1)
        write_text(options.output, f"{text}\n")


def bank_of(base: rango.Base, folders: Sequence[Path]) -> rango.Adapted:
    """A bank with an adapter a row, of the same ranks and targets all."""
    configs, vectors = [], []
    for folder in folders:
        alone = rango.load_adapter(base, folder)
        configs.append(alone.config)
        vectors.append(alone.bank.row(0).clone())
        alone.detach()
        if configs[-1] != configs[0]:
            raise SystemExit(f"{folder}: its config differs from that of {folders[0]}")
    adapted = rango.attach(base, configs[0], rows=len(folders), trainable=False)
    for row, vector in enumerate(vectors):
        adapted.bank.row(row).copy_(vector)
    return adapted


@torch.no_grad()
def losses_under(
    adapted: rango.Adapted,
    samples: Sequence[Sample],
    rows: Sequence[int],
    packed: Packed,
    pad_id: int,
) -> list[float]:
    """The mean loss over the samples' targets under each of the rows, NO_ROW the base."""
    work = [(place, row) for row in range(len(rows)) for place in range(len(samples))]
    per_batch = max(1, TOKENS // max(len(sample) for sample in samples))
    sums = torch.zeros(len(rows), dtype=torch.float64)
    counts = torch.zeros(len(rows), dtype=torch.int64)
    for first in range(0, len(work), per_batch):
        some = work[first : first + per_batch]
        batch = collate(samples, [place for place, _ in some], packed=packed, pad_id=pad_id)
        owners = torch.tensor([row for _, row in some])  # of each sample in the batch
        row_of = torch.tensor(rows)[owners]
        used = torch.where(batch.samples < 0, NO_ROW, row_of[batch.samples])  # (B, S)
        with adapted.route(rango.Routing.tokens(used)):
            found = token_losses(adapted.model, batch)
        place = owners[found.samples]
        sums.index_add_(0, place, found.losses.double())
        counts.index_add_(0, place, torch.ones_like(place))
    return [float(loss) for loss in sums / counts]


def summary(losses: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What the losses say, by held-out set and then by model."""
    names = list(losses)
    better = [name for name in names if losses[name][name] < losses[name]["base"]]
    # of the sets of others, those whose own adapter beats this one there
    beaten = {
        name: sum(losses[other][other] < losses[other][name] for other in names if other != name)
        for name in names
    }
    return {
        "adapters": len(names),
        "better_than_the_base": len(better),
        "not_better": sorted(set(names) - set(better)),
        "base_loss": statistics.fmean(losses[name]["base"] for name in names),
        "own_loss": statistics.fmean(losses[name][name] for name in names),
        "others_loss": statistics.fmean(
            losses[other][name] for name in names for other in names if other != name
        ),
        "sets_where_beaten": beaten,
        "fewest": min(beaten.values()),
    }


def told(result: dict[str, Any]) -> str:
    """The summary in words."""
    others = result["adapters"] - 1
    pairs = sum(result["sets_where_beaten"].values())
    fewest = [name for name, n in result["sets_where_beaten"].items() if n == result["fewest"]]
    return (
        f"better than the base on their own held-out set: {result['better_than_the_base']} of "
        f"{result['adapters']} (mean loss {result['own_loss']:.3f}, base "
        f"{result['base_loss']:.3f})\n"
        f"on the sets of others, where the mean loss is {result['others_loss']:.3f}, the set's own "
        f"adapter beats them in {pairs} of {result['adapters'] * others} cases; each on at least "
        f"{result['fewest']} of {others} sets (fewest: {', '.join(fewest[:5])})"
    )


if __name__ == "__main__":
    main()
