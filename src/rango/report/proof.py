"""A proof in words: `rango.evaluation.proof.Proof.as_dict()` as rows of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rango.report.format import MISSING, decimal, integer

_SIGNS = {True: "✓", False: "✗", None: "·"}


def proof_rows(proof: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(sign, name, found, limit, detail) of each check; · marks one that was not run."""
    return [
        (
            _SIGNS[check.get("passed")],
            name,
            _number(check.get("value")),
            _number(check.get("limit")),
            str(check.get("detail") or ""),
        )
        for name, check in (proof.get("checks") or {}).items()
    ]


def proof_verdict(proof: Mapping[str, Any]) -> str:
    """One line: whether what is on disk computes what was trained."""
    if proof.get("passed"):
        return "✓ What is on disk computes what was trained."
    return "✗ A check failed."


def _number(value: float | None) -> str:
    if value is None:
        return MISSING
    return integer(value) if float(value).is_integer() else decimal(value)
