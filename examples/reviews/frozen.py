"""The baseline: logistic regression on features of the frozen encoder.

    python examples/reviews/frozen.py BASE examples/reviews/train.csv examples/reviews/test.csv

Features are the sentence embeddings that the encoder was made for (the mean of its last hidden
states, normalised), or, as a second set, what its pooler gives. The strength of the regression's
L2 penalty is chosen on a fifth of the training data, then it is fitted on all of them.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import rango

STRENGTHS = tuple(10.0**power for power in range(-6, 0))
"""λ of the penalty λ·‖W‖² beside the mean loss."""


def read(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


@torch.no_grad()
def features(base: rango.Base, texts: list[str]) -> dict[str, Tensor]:
    """By name, one row a text (N, H)."""
    tokenizer = rango.load_tokenizer(base.path)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    means, pooled = torch.empty(len(texts), base.config.hidden_size), []
    for some in (order[first : first + 64] for first in range(0, len(order), 64)):
        batch = tokenizer(
            [texts[index] for index in some], padding=True, truncation=True, return_tensors="pt"
        )
        output = base.model(**batch)
        mask = batch["attention_mask"][:, :, None]
        mean = (output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
        means[some] = nn.functional.normalize(mean)
        if output.pooler_output is not None:
            pooled.append((some, output.pooler_output))
    found = {"sentence embeddings": means}
    if pooled:
        found["pooler"] = torch.empty_like(means)
        for some, rows in pooled:
            found["pooler"][some] = rows
    return found


def fit(x: Tensor, y: Tensor, strength: float) -> nn.Linear:
    """Logistic regression, to convergence; x (N, H), y (N,)."""
    layer = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-6
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(x), y) + strength * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer


@torch.no_grad()
def accuracy(layer: nn.Linear, x: Tensor, y: Tensor) -> float:
    """Share of rows given their label."""
    return float((layer(x).argmax(dim=1) == y).float().mean())


def baselines(base: rango.Base, train: Path, test: Path) -> dict[str, float]:
    """Accuracy on the test file of each set of features."""
    (texts, labels), (test_texts, test_labels) = read(train), read(test)
    names = sorted(set(labels))
    y, test_y = (
        torch.tensor([names.index(label) for label in some]) for some in (labels, test_labels)
    )
    x, test_x = features(base, texts), features(base, test_texts)
    return {
        name: accuracy(fit(x[name], y, _strength(x[name], y)), test_x[name], test_y) for name in x
    }


def _strength(x: Tensor, y: Tensor) -> float:
    """The penalty that does best on every fifth sample, which it is not fitted on."""
    held = torch.arange(len(x)) % 5 == 0

    def tries() -> Iterator[tuple[float, float]]:
        for strength in STRENGTHS:
            yield accuracy(fit(x[~held], y[~held], strength), x[held], y[held]), strength

    return max(tries())[1]


def main() -> None:
    """Print the accuracies as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("base", "train", "test"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    base = rango.load_base(options.base)
    print(json.dumps(baselines(base, options.train, options.test), indent=2))


if __name__ == "__main__":
    main()
