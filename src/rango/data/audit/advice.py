"""Whether there are enough samples for the chosen rank: a rule of thumb, and said to be one."""

from __future__ import annotations

from collections.abc import Iterator

from rango.data.audit.checks import finding
from rango.data.audit.result import Finding

_EACH = 10
"""Samples a direction: regression's old advice of ten observations for each coefficient."""


def sample_count(distinct: int, total: int, rank: int) -> Iterator[Finding]:
    """Advice for `distinct` different samples (of `total`) and an adapter of this rank."""
    least = _EACH * rank
    basis = (
        f"a rule of thumb, after regression's ten observations for each coefficient: rank {rank} "
        f"lets an adapter change {rank} directions in each layer, and fewer than about {least:,} "
        "different samples leave some of them to single samples"
    )
    if distinct < least:
        smaller = max(1, distinct // _EACH)
        advice = f"collect more, or take a smaller rank (about {smaller}); hold out enough to see "
        yield finding(
            "sample count",
            total,
            f"{distinct:,} different samples are few for rank {rank} ({basis})",
            advice + "whether the model learns or memorises",
            [],
        )
    else:
        yield finding(
            "sample count",
            total,
            f"{distinct:,} different samples are enough to begin with rank {rank} ({basis})",
            "let the held-out loss decide: try half and twice the rank; no count replaces that",
            [],
        )
