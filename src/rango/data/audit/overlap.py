"""Samples of the training data that also stand in the held-out set.

The held-out set is read first and kept as an index (about 1 kB a sample); the training samples are
then looked up as they pass. Each is counted once: as an exact overlap where the prompt or the
whole sample is the same, else as a near one where either is nearly the same. System messages
count in the exact comparison only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from rango.data.audit.checks import Tally, of_all
from rango.data.audit.drops import Drops
from rango.data.audit.groups import Index
from rango.data.audit.minhash import ALIKE, MinHasher, Signatures
from rango.data.audit.result import Finding
from rango.data.audit.view import View, view_of
from rango.data.samples import Example, Origin
from rango.progress import Progress, silent

_AT_ONCE = 512


class HeldOut:
    """The held-out samples, and what of the training data overlaps with them."""

    def __init__(
        self, examples: Iterable[Example], hasher: MinHasher, progress: Progress = silent
    ) -> None:
        self._hasher = hasher
        self._exact = Tally("held-out overlap")
        self._near = Tally("near held-out overlap")
        self._prompts = 0
        self._origins: list[Origin] = []
        self._by_whole: dict[bytes, int] = {}
        self._by_prompt: dict[bytes, int] = {}
        self._asked_of: list[int] = []
        bodies, asked = [hasher.signatures([])], [hasher.signatures([])]
        self._body_of: list[int] = []
        chunk: list[View] = []
        for index, example in enumerate(examples):
            chunk.append(view_of(index, example))
            if len(chunk) == _AT_ONCE:
                self._take(chunk, bodies, asked)
                chunk = []
                progress("reading the held-out set", index + 1, index + 1, "samples")
        self._take(chunk, bodies, asked)
        self._bodies = Index(np.concatenate(bodies))
        self._asked = Index(np.concatenate(asked))

    def add(self, views: Sequence[View], bodies: Signatures, drops: Drops) -> None:
        """Look the next training samples up; `bodies` are their bodies' signatures."""
        asked = self._signatures_of_prompts(views, bodies)
        like_body = self._bodies.find(bodies).tolist()
        like_asked = self._asked.find(asked).tolist()
        for view, body, prompt in zip(views, like_body, like_asked, strict=True):
            found = self._by_prompt.get(view.prompt) if view.asked else None
            self._prompts += found is not None
            if found is None:
                found = self._by_whole.get(view.whole)
            if found is not None:
                self._exact.hit(view, other=self._origins[found])
                reason = f"also in the held-out set: {self._origins[found]}"
                drops.add(view.index, "held-out overlap", reason)
            elif view.body and body >= 0:
                self._near.hit(view, other=self._origins[self._body_of[body]])
            elif view.asked and prompt >= 0:
                self._near.hit(view, other=self._origins[self._asked_of[prompt]])

    def findings(self, total: int) -> Iterator[Finding]:
        """What was found in `total` training samples."""
        exact, near = self._exact, self._near
        held = f"the held-out set ({len(self._origins):,})"
        yield from exact.finding(
            f"{of_all(exact.count, total)} also stand in {held}: {self._prompts:,} by their "
            f"prompt, {exact.count - self._prompts:,} by the whole text",
            "take them out of one of the two sets (--fix leaves them out of the training data), "
            "or let Rango hold out by a hash of the prompt: a model is not measured by what it has "
            "been shown",
        )
        yield from near.finding(
            f"{of_all(near.count, total)} are nearly the same as one of {held}, by the prompt or "
            f"the whole (estimated similarity of {ALIKE} or more)",
            "read the pairs, and take those out of one of the two sets that would give the answer "
            "away; --fix leaves them as they are",
        )

    def _take(
        self, views: Sequence[View], bodies: list[Signatures], asked: list[Signatures]
    ) -> None:
        signatures = self._hasher.signatures([view.body for view in views])
        prompts = self._signatures_of_prompts(views, signatures)
        for view in views:
            self._origins.append(view.example.origin)
            self._by_whole.setdefault(view.whole, view.index)
            self._by_prompt.setdefault(view.prompt, view.index)
        with_body = [place for place, view in enumerate(views) if view.body]
        with_prompt = [place for place, view in enumerate(views) if view.asked]
        self._body_of += [views[place].index for place in with_body]
        self._asked_of += [views[place].index for place in with_prompt]
        bodies.append(signatures[with_body])
        asked.append(prompts[with_prompt])

    def _signatures_of_prompts(self, views: Sequence[View], bodies: Signatures) -> Signatures:
        """The prompts' signatures; of a text, which is all prompt, those that are known."""
        asked = bodies.copy()
        places = [place for place, view in enumerate(views) if view.asked != view.body]
        asked[places] = self._hasher.signatures([views[place].asked for place in places])
        return asked
