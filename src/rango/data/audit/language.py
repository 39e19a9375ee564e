"""Which languages the samples are in, judged on a uniform sample of them.

A wrong judgement is worse than none: short texts, code and tables are "unknown", and a rare
language is reported only where both halves of a longer text are judged the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from rango.data.audit.checks import INSTANCES, finding
from rango.data.audit.reservoir import Drawn
from rango.data.audit.result import Finding, Instance, Share
from rango.data.extras import extra

UNKNOWN = "unknown"
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]*>|\S*(?:://|www\.|@)\S*", re.DOTALL)
_LEAST = 40
"""Letters of a text from which its language is judged."""
_LONG = 120
"""Characters from which a rare language is believed, if both halves are judged the same."""
_ENOUGH = 600
"""Characters of a text that are judged."""
_SURE = 0.95
_COMMON = 0.05
"""Share of the judged samples from which a language is part of a mix rather than an accident."""
_MAIN = 0.9
"""Where one language has this share, rare ones may be accidents."""
_RELATED = (
    {"es", "gl", "an", "ca", "oc", "pt", "it"},
    {"no", "nb", "nn", "da", "sv"},
    {"hr", "bs", "sr", "sl"},
    {"id", "ms", "jv"},
    {"nl", "af"},
    {"cs", "sk"},
    {"ru", "uk", "be", "bg", "mk"},
    {"hi", "mr", "ne"},
)
"""Languages taken for one another: where one of them is the main one, others are no accident."""


@dataclass(frozen=True)
class Languages:
    """What was judged."""

    shares: tuple[Share, ...]
    judged: int
    accidents: tuple[tuple[str, Instance], ...]
    """(language, sample) of the rare ones."""

    def findings(self, complete: bool) -> Iterator[Finding]:
        """A mix of languages, and rare ones; `complete`: every sample was judged."""
        among = "the samples" if complete else f"a uniform sample of {self.judged:,}"
        known = [share for share in self.shares if share.name != UNKNOWN]
        total = max(sum(share.count for share in known), 1)
        common = [share for share in known if share.count >= _COMMON * total]
        if len(common) > 1:
            mix = ", ".join(f"{share.name} {100 * share.count / total:.0f}%" for share in common)
            yield finding(
                "language mix",
                sum(share.count for share in common[1:]),
                f"several languages among {among} whose language can be told: {mix}",
                "good where it is meant; evaluate each language by itself",
                [],
            )
        if self.accidents:
            count = len(self.accidents)
            rare = Counter(language for language, _ in self.accidents)
            names = ", ".join(f"{name} ({n:,})" for name, n in rare.most_common(INSTANCES))
            plural = "sample is" if count == 1 else "samples are"
            yield finding(
                "minority language",
                count,
                f"among {among}, {count:,} {plural} in another language than the main one "
                f"({known[0].name}): {names}",
                "look whether they are there by accident: a model answers now and then in a "
                "language of which it saw a few samples",
                [instance for _, instance in self.accidents[:INSTANCES]],
            )


def languages(drawn: list[Drawn], samples: int) -> Languages:
    """Judge a uniform sample of `samples` samples; the shares' counts are scaled up to them.

    Raises ConfigError where py3langid is not installed.
    """
    judge = _Judge()
    judged = [judge(one.learnt) or judge(one.text) for one in drawn]
    known = [found for found in judged if found]
    counts = Counter(language for language, _ in known)
    main = counts.most_common(1)[0][0] if counts else ""
    common = {name for name, count in counts.items() if count >= _COMMON * len(known)}
    alone = bool(counts) and counts[main] >= _MAIN * len(known)
    final: Counter[str] = Counter()
    accidents: list[tuple[str, Instance]] = []
    for one, found in zip(drawn, judged, strict=True):
        language, prose = found or (UNKNOWN, "")
        if language != UNKNOWN and language not in common:
            if _related(language, main) or not judge.sure(language, prose):
                language = UNKNOWN
            elif alone:
                accidents.append((language, one.instance))
        final[language] += 1
    scale = samples / max(len(drawn), 1)
    shares = tuple(
        Share(name, round(count * scale), count / len(drawn))
        for name, count in sorted(final.items(), key=lambda entry: (-entry[1], entry[0]))
    )
    ordered = sorted(shares, key=lambda share: share.name == UNKNOWN)
    return Languages(tuple(ordered), len(drawn), tuple(accidents))


def _related(language: str, main: str) -> bool:
    return any(language in family and main in family for family in _RELATED)


@cache
def _identifier() -> Any:
    module = extra("py3langid.langid", "the audit")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


class _Judge:
    """Tells the language of a text."""

    def __init__(self) -> None:
        self._identifier = _identifier()

    def __call__(self, text: str) -> tuple[str, str] | None:
        """(Code of the language, the prose it was judged by), None where it can't be told."""
        prose = _NOT_PROSE.sub(" ", text)[:_ENOUGH]
        visible = "".join(prose.split())
        letters = sum(map(str.isalpha, visible))
        if letters < _LEAST or letters * 10 < len(visible) * 8 or _poor(prose, visible):
            return None
        language, probability = self._identifier.classify(prose)
        return (str(language), prose) if probability >= _SURE else None

    def sure(self, language: str, prose: str) -> bool:
        """Whether the text is long enough, and both its halves are judged the same."""
        if len(prose) < _LONG:
            return False
        half = prose.find(" ", len(prose) // 2)
        halves = (prose[:half], prose[half:]) if half > 0 else (prose, prose)
        return all(self._identifier.classify(part)[0] == language for part in halves)


def _poor(prose: str, visible: str) -> bool:
    """Whether a text says one thing over and over, which any language might."""
    words = prose.lower().split()
    return len(set(visible)) < 10 or (len(words) >= 16 and len(set(words)) * 2 < len(words))
