"""Every check of the audit by name, with its severity, and what counts its hits."""

from __future__ import annotations

from collections.abc import Iterator

from rango.data.audit.result import Finding, Instance, Severity
from rango.data.audit.view import View
from rango.data.samples import Origin

CHECKS: dict[str, Severity] = {
    "no samples": "error",
    "empty samples": "error",
    "lone surrogates": "error",
    "NUL characters": "error",
    "held-out overlap": "error",
    "single label": "error",
    "exact duplicates": "warning",
    "near duplicates": "warning",
    "near held-out overlap": "warning",
    "contradictions": "warning",
    "label balance": "warning",
    "repeated characters": "warning",
    "repeated words": "warning",
    "mojibake": "warning",
    "replacement characters": "warning",
    "control characters": "warning",
    "minority language": "warning",
    "over max_length": "warning",
    "giant samples": "warning",
    "e-mail addresses": "warning",
    "phone numbers": "warning",
    "payment cards": "warning",
    "bank accounts": "warning",
    "identity numbers": "warning",
    "API keys": "warning",
    "listed words": "warning",
    "empty prompts": "note",
    "mixed normalisation": "note",
    "language mix": "note",
    "sample count": "note",
}
"""Name -> severity, in the order in which a report lists them."""

INSTANCES = 5
"""Instances that a finding shows."""


class Tally:
    """The samples that one check concerns: how many, and the first few of them."""

    def __init__(self, check: str) -> None:
        self.check = check
        self.count = 0
        self.instances: list[Instance] = []

    def hit(self, view: View, at: int = 0, other: Origin | None = None, say: str = "") -> None:
        """Count a sample; its excerpt shows the text around the character `at`, after `say`."""
        self.count += 1
        if len(self.instances) < INSTANCES:
            self.instances.append(
                Instance(view.example.origin, say + view.excerpt(at, 120 - len(say)), other)
            )

    def finding(self, message: str, advice: str) -> Iterator[Finding]:
        """The finding, if there was any hit."""
        if self.count:
            yield finding(self.check, self.count, message, advice, self.instances)


def finding(
    check: str, count: int, message: str, advice: str, instances: list[Instance]
) -> Finding:
    """A finding of a named check, with its severity."""
    return Finding(check, CHECKS[check], count, message, advice, tuple(instances))


def amount(count: int, noun: str = "sample") -> str:
    """``1 sample``, ``1,234 samples``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def of_all(count: int, total: int) -> str:
    """``3 of 1,200 samples (0.25%)``."""
    return f"{count:,} of {amount(total)} ({100 * count / max(total, 1):.2g}%)"
