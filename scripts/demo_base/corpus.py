"""The text behind the demo base model, and how it is split.

Source: the standard library of the Python 3.11 that runs this script and, if
given, the reStructuredText sources of its documentation. Every file falls into
one bucket by a hash of its relative path, so the split depends on nothing else:

    general   never trained on; measures what the base knows (and forgets)
    pairs     never trained on; its functions become the task pairs
    pretrain  the rest
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

END, PAD = "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = [END, PAD, SYSTEM, USER, ASSISTANT]

SKIPPED_DIRS = {"site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings"}
SKIPPED_PREFIXES = ("lib2to3/tests/data/", "test/encoded_modules/", "test/support/socket")
MAX_CHARS = 240_000

GENERAL_PERCENT = 3  # of the files
PAIRS_PERCENT = 42  # of the source files and of the tests
TEST_PERCENT_KEPT = 35  # of Lib/test, which would otherwise outweigh the library itself
CHAT_SHARE = 0.05

# Some files are not the PSF's own text: they carry the notice of another author.
# They may be trained on, but none of them is shipped as data.
FOREIGN_NOTICE = re.compile(
    r"permission (?:to use|is hereby|is granted)|redistribution and use|all rights reserved|"
    r"hereby granted|mit license|apache license",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Document:
    path: str
    text: str
    kind: str  # "source", "test" or "docs"
    bucket: str  # "general", "pairs" or "pretrain"


def percent(path: str, salt: str = "") -> int:
    """A stable number in 0..99 for a path."""
    return int(hashlib.sha256((salt + path).encode()).hexdigest()[:8], 16) % 100


def is_test(path: str) -> bool:
    return any(part in {"test", "tests", "idle_test"} for part in path.split("/")[:-1])


def looks_like_data(text: str) -> bool:
    """Tables of numbers and escapes teach a small model nothing."""
    prose = sum(c.isalpha() or c.isspace() or c == "_" for c in text)
    foreign = sum(ord(c) > 127 for c in text)
    return prose < 0.65 * len(text) or foreign > 0.02 * len(text)


def read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    if not 200 <= len(text) <= MAX_CHARS or looks_like_data(text):
        return None
    return text.replace("\r\n", "\n").strip() + "\n"


def bucket_of(path: str, kind: str, text: str) -> str:
    n = percent(path)
    if FOREIGN_NOTICE.search(text):
        return "pretrain"
    if n < GENERAL_PERCENT:
        return "general"
    if kind != "docs" and n < GENERAL_PERCENT + PAIRS_PERCENT:
        return "pairs"
    return "pretrain"


def documents(docs: Path | None = None) -> Iterator[Document]:
    """Every document in path order. `docs` holds *.rst or *.rst.txt files."""
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("the demo base is defined on Python 3.11's standard library")
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if SKIPPED_DIRS & set(path.split("/")) or path.startswith(SKIPPED_PREFIXES):
            continue
        if path.startswith("config-") or "_sysconfigdata" in path:  # of this one machine
            continue
        text = read(file)
        if text is None:
            continue
        kind = "test" if is_test(path) else "source"
        bucket = bucket_of(path, kind, text)
        if kind == "test" and bucket == "pretrain" and percent(path, "keep") >= TEST_PERCENT_KEPT:
            continue
        yield Document(path, text, kind, bucket)
    if docs is not None:
        for file in sorted(p for p in docs.rglob("*") if p.name.endswith((".rst", ".rst.txt"))):
            path = "Doc/" + file.relative_to(docs).as_posix().removesuffix(".txt")
            text = read(file)
            if text is not None:
                yield Document(path, text, "docs", bucket_of(path, "docs", text))


def chat_text(messages: list[tuple[str, str]]) -> str:
    """The same text that the tokenizer's chat template gives."""
    return "".join(f"<|{role}|>\n{content}{END}\n" for role, content in messages)


def chat_documents(docs: list[Document], rng: random.Random) -> Iterator[str]:
    """Generic dialogues (a passage, its continuation), so that the chat markers
    and the end of a turn are known to the base. No task is taught here."""
    budget = CHAT_SHARE * sum(len(d.text) for d in docs)
    while budget > 0:
        lines = rng.choice(docs).text.split("\n")
        start = rng.randrange(len(lines))
        passage = [line for line in lines[start : start + rng.randint(2, 24)] if line.strip()]
        if len(passage) < 2:
            continue
        cut = (len(passage) + 1) // 2
        messages = [
            ("user", "\n".join(passage[:cut])),
            ("assistant", "\n".join(passage[cut:]).strip()),
        ]
        if rng.random() < 0.2:
            messages.insert(0, ("system", "Continue the text."))
        text = chat_text(messages)
        budget -= len(text)
        yield text


def pretraining_texts(docs_dir: Path | None) -> list[str]:
    """The pretraining documents in a fixed shuffled order, each closed by END."""
    docs = [d for d in documents(docs_dir) if d.bucket == "pretrain"]
    rng = random.Random(0)
    texts = [d.text + END for d in docs] + list(chat_documents(docs, rng))
    rng.shuffle(texts)
    return texts


def general_texts(
    docs_dir: Path | None, max_chars: int = 60_000, excerpt: int = 2_200
) -> list[str]:
    """Held-out prose and code: an excerpt of each general file, so that no one
    file dominates, cut at a line's end."""
    kept = [d for d in documents(docs_dir) if d.bucket == "general" and d.kind != "test"]
    random.Random(0).shuffle(kept)
    texts: list[str] = []
    for doc in kept:
        start = doc.text.find("\n", len(doc.text) // 3) + 1 if len(doc.text) > 3 * excerpt else 0
        text = doc.text[start : start + excerpt]
        text = text[: text.rfind("\n") + 1]
        if sum(map(len, texts)) + len(text) <= max_chars and len(text) > 200:
            texts.append(text)
    return texts
