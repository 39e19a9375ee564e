"""Clean data in two languages, and builders of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from rango.data.audit.audit import audit
from rango.data.audit.minhash import MinHasher
from rango.data.audit.result import Audit, Finding
from rango.data.audit.view import View, view_of
from rango.data.samples import Example, Message, Origin

HERE = Path(__file__).parent


def _ask(
    question: str, answer: str, line: int = 1, *, file: str = "data.jsonl", system: str = ""
) -> Example:
    messages = (Message("user", question), Message("assistant", answer))
    before = (Message("system", system),) if system else ()
    return Example("chat", (*before, *messages), Origin(file, line), format="chat")


def _label(text: str, label: str, line: int = 1) -> Example:
    origin = Origin("data.jsonl", line)
    return Example("labelled", (Message("user", text),), origin, label=label, format="labelled")


def _read(name: str) -> list[Example]:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [_ask(*line.split("\t"), number) for number, line in enumerate(lines, 1)]


@pytest.fixture(scope="session")
def english() -> list[Example]:
    return _read("english.tsv")


@pytest.fixture(scope="session")
def spanish() -> list[Example]:
    return _read("spanish.tsv")


@pytest.fixture(scope="session")
def ask() -> Callable[..., Example]:
    """ask(question, answer, line=1, file="data.jsonl", system="")"""
    return _ask


@pytest.fixture(scope="session")
def label() -> Callable[..., Example]:
    """label(text, label, line=1)"""
    return _label


@pytest.fixture(scope="session")
def text() -> Callable[..., Example]:
    """text(content, line=1)"""

    def make(content: str, line: int = 1) -> Example:
        origin = Origin("data.txt", line)
        return Example("text", (Message("assistant", content),), origin, format="text")

    return make


@pytest.fixture(scope="session")
def view() -> Callable[..., View]:
    """view(content, index=0): of a plain text."""

    def make(content: str, index: int = 0) -> View:
        origin = Origin("data.txt", index + 1)
        return view_of(index, Example("text", (Message("assistant", content),), origin))

    return make


@pytest.fixture(scope="session")
def hasher() -> MinHasher:
    return MinHasher()


@pytest.fixture(scope="session")
def run() -> Callable[..., Audit]:
    def make(examples: Iterable[Example], **options: Any) -> Audit:
        return audit(examples, source="data.jsonl", **options)

    return make


@pytest.fixture(scope="session")
def faults() -> Callable[[Audit], dict[str, Finding]]:
    """Errors and warnings by their check."""

    def make(result: Audit) -> dict[str, Finding]:
        return {one.check: one for one in result.findings if one.severity != "note"}

    return make
