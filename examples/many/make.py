"""Make train/ and heldout/: for each of 100 languages, English phrases and their translations.

    pip download --no-deps Django==5.2.19 && unzip -q django-5.2.19-*.whl -d unpacked
    pip install Babel==2.18.0
    python examples/many/make.py unpacked/django

Most languages are those that Django's messages are translated into; the others, of which Django has
few messages or none, have the names of languages, countries and currencies in Unicode's CLDR, as
Babel carries it. Phrases are short and without placeholders. A hash of the English phrase decides
where it goes, whatever the language, so that what is held out is in no language's training data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = 0.2
"""Phrases whose place is below this are held out."""
TRAIN, TEST = 120, 30
"""Most phrases a language has to learn from, and to be judged by."""
ENGLISH, TRANSLATED = (3, 40), 96
"""Characters of a phrase, and the most bytes of its translation."""
LIKE_OTHERS = ("en", "en_AU", "en_GB", "ar_DZ", "es_AR", "es_CO", "es_MX", "es_VE")
"""Variants that hardly differ from another language here."""
FROM_CLDR = ["am", "as", "fo", "fy", "gu", "lb", "lo", "mt", "my", "or", "ps", "si", "so"]
"""Of which Django has too few messages."""


def main() -> None:
    """Read, choose, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("django", type=Path, help="the unpacked package's folder")
    source: Path = parser.parse_args().django
    chosen = {name: phrases(django(source, name)) for name in languages(source)}
    chosen |= {name: phrases(cldr(name)) for name in FROM_CLDR}
    here = Path(__file__).parent
    for stale in here.glob("*/*.jsonl"):
        stale.unlink()
    for name, pairs in sorted(chosen.items()):
        for folder, part in zip(("train", "heldout"), split(pairs), strict=True):
            (here / folder).mkdir(exist_ok=True)
            write(here / folder / f"{name}.jsonl", part)
    sizes = [path.stat().st_size for path in here.glob("*/*.jsonl")]
    print(f"{len(chosen)} languages, {sum(sizes):,} bytes")


def languages(django: Path) -> list[str]:
    """The folders of Django's own translations."""
    folders = sorted(path.parents[1].name for path in django.glob("conf/locale/*/*/django.po"))
    if not folders:
        raise SystemExit(f"{django}: no conf/locale/*/*/django.po; is it Django's folder?")
    return [name for name in folders if name not in (*LIKE_OTHERS, *FROM_CLDR)]


def django(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """The messages of Django and its applications in a language."""
    from babel.messages.pofile import read_po

    for path in sorted(folder.rglob(f"locale/{name}/LC_MESSAGES/django.po")):
        with path.open("rb") as file:
            for message in read_po(file):
                if isinstance(message.id, str) and message.string and not message.fuzzy:
                    yield message.id, str(message.string)


def cldr(name: str) -> Iterator[tuple[str, str]]:
    """The names of languages, countries and currencies in a language."""
    from babel import Locale

    english, own = Locale("en"), Locale.parse(name)
    for kind in ("languages", "territories", "currencies"):
        names = getattr(own, kind)
        for key, word in getattr(english, kind).items():
            if key in names:
                yield word, names[key]


def phrases(pairs: Iterator[tuple[str, str]]) -> dict[str, str]:
    """Translation by phrase: the first of each phrase, of those that are short and plain."""
    kept: dict[str, str] = {}
    for english, other in pairs:
        plain = not any(mark in english + other for mark in "%{<\n")
        short = ENGLISH[0] <= len(english) <= ENGLISH[1] and len(other.encode()) <= TRANSLATED
        if other and other != english and plain and short:
            kept.setdefault(english, other)
    return kept


def place(english: str) -> float:
    """A number in [0, 1) from the phrase, whatever its case."""
    return int.from_bytes(hashlib.sha256(english.casefold().encode()).digest()[:6]) / 2**48


def split(pairs: dict[str, str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What is learnt from and what is held out, in the order of the phrases' places."""
    ordered = sorted(pairs.items(), key=lambda pair: (place(pair[0]), pair[0]))
    held_out = [pair for pair in ordered if place(pair[0]) < HELD_OUT]
    return ordered[len(held_out) :][:TRAIN], held_out[:TEST]


def write(path: Path, pairs: list[tuple[str, str]]) -> None:
    """A file of chats: the phrase is the question, its translation the answer."""
    lines = ({"instruction": english, "output": other} for english, other in pairs)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
