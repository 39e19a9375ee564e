"""Hold out a share of the examples, chosen by a hash of the prompt, or of the group.

The choice of an example depends on its own prompt and on nothing else, so it stays when data is
added, and copies of a prompt never stand on both sides. Where examples have a group (a customer, a
document), the group is hashed instead, so that no group stands on both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from rango.data.samples import Example
from rango.errors import ConfigError


class HeldOut:
    """Which of some examples are held out: about `share` of the prompts, or of the groups.

    With two distinct ones or more and a share above 0, neither side is empty (with few of them
    the nearest one crosses over); a single one is learnt. Eight bytes an example are kept, until
    all were seen.
    Raises ConfigError unless 0 ≤ share < 1.
    """

    def __init__(self, examples: Iterable[Example], share: float) -> None:
        if not 0 <= share < 1:
            raise ConfigError(f"valid_share should be at least 0 and below 1, not {share}")
        places = np.fromiter((_place(example) for example in examples), np.float64)
        distinct = np.unique(places)
        held = min(int(np.searchsorted(distinct, share)), max(len(distinct) - 1, 0))
        if share > 0 and len(distinct) > 1:
            held = max(held, 1)
        self._below = float(distinct[held]) if held < len(distinct) else 1.0
        self.count = int(np.count_nonzero(places < self._below))
        """How many of the examples are held out."""
        self.rest = len(places) - self.count
        """How many are not."""

    def __contains__(self, example: Example) -> bool:
        return _place(example) < self._below


def _place(example: Example) -> float:
    """A number in [0, 1) from sha256 of the group, or of the messages before the first answer (of
    a text: all)."""
    if example.group is not None:
        return _hashed({"group": example.group})
    prompt = []
    for message in example.messages:
        if message.role == "assistant" and example.kind != "text":
            break
        prompt.append((message.role, " ".join(message.content.split())))
    return _hashed(prompt)


def _hashed(value: object) -> float:
    hashed = hashlib.sha256(json.dumps(value).encode()).digest()
    return int.from_bytes(hashed[:6]) / 2**48
