"""One example as the checks see it: its text once, and what they share computed once."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from hashlib import blake2b

from rango.data.samples import Example

_BEFORE = 30
"""Characters that an excerpt shows before the place in question."""
_SYSTEM = ("system", "developer")
_MANY_STARS = "*" * 13
_STARS = re.compile(r"\*{13,}")


@dataclass(slots=True)
class View:
    """An example prepared. "Normalised" means NFC with white space collapsed."""

    index: int
    example: Example
    text: str
    """All messages as they are, joined by line ends."""
    shown: str
    """`text` with the personal data masked; as long, so that positions hold in both."""
    cut: int
    """Where in `text` the first answer begins; its length where there is none."""
    asked: str
    """The prompt (all before the first answer; of a text, everything) without system messages,
    normalised, in lower case."""
    body: str
    """The same of all messages."""
    answer: str
    """The first answer, normalised, or the label; empty for a text."""
    whole: bytes
    """128-bit digest of roles, normalised contents and label."""
    prompt: bytes
    """128-bit digest of the prompt's roles and normalised contents, system messages too."""

    def excerpt(self, at: int = 0, width: int = 120) -> str:
        """At most `width` printable characters around a place of `text`, masked."""
        begin = max(0, at - _BEFORE)
        piece = printable(self.shown[begin : begin + 2 * width])
        return shorten(f"…{piece}" if begin else piece, width)

    def summary(self) -> str:
        """Prompt and answer, or the text, in at most 120 printable characters, masked."""
        asked = printable(self.shown[: min(self.cut, 240)])
        label = self.example.label
        answer = printable(self.shown[self.cut : self.cut + 120] if label is None else label)
        if not answer:
            return shorten(asked, 120)
        return f"{shorten(asked, 60)} → {shorten(answer, 57)}"


def view_of(index: int, example: Example) -> View:
    """Prepare an example."""
    contents = [message.content for message in example.messages]
    normal = [normalised(content) for content in contents]
    roles = [message.role for message in example.messages]
    first = first_answer(example)
    text = "\n".join(contents)
    said = [role not in _SYSTEM for role in roles]
    body = " ".join([n for n, mine in zip(normal, said, strict=True) if mine])
    asked = body
    answer = example.label or ""
    cut = len(text)
    if first < len(contents):
        asked = " ".join([normal[i] for i in range(first) if said[i]])
        answer = answer or normal[first]
        cut = sum(len(content) + 1 for content in contents[:first])
    parts = [part for pair in zip(roles, normal, strict=True) for part in pair]
    prompt = digest(parts[: 2 * first])
    labelled = [] if example.label is None else ["", example.label]
    whole = digest(parts + labelled) if labelled or first < len(contents) else prompt
    return View(index, example, text, text, cut, asked.lower(), body.lower(), answer, whole, prompt)


def first_answer(example: Example) -> int:
    """Index of the first message that is learnt from a prompt; their number where none is."""
    if example.kind in ("chat", "completion"):
        for place, message in enumerate(example.messages):
            if message.role == "assistant":
                return place
    return len(example.messages)


def normalised(content: str) -> str:
    """NFC, and every run of white space a single space."""
    if not content.isascii():
        content = unicodedata.normalize("NFC", content)
    return " ".join(content.split())


def digest(parts: list[str]) -> bytes:
    """128 bits of a list of normalised strings. (Normalised text holds no U+001F.)"""
    joined = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return blake2b(joined, digest_size=16).digest()


def printable(text: str) -> str:
    """One line that any terminal can show: white space collapsed, the unprintable escaped."""
    line = " ".join(text.split())
    if _MANY_STARS in line:
        line = _STARS.sub("*" * 12, line)
    if line.isprintable():
        return line
    return "".join(
        char if char.isprintable() else char.encode("unicode-escape").decode("ascii")
        for char in line
    )


def shorten(text: str, width: int) -> str:
    """At most `width` characters, the last one an ellipsis where some were left out."""
    return text if len(text) <= width else text[: width - 1] + "…"
