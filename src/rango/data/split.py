"""Hold out a share of the examples, chosen by a hash of the prompt, or of the group.

The choice of an example depends on its own prompt and on nothing else, so it stays when data is
added, and copies of a prompt never stand on both sides. Where examples have a group (a customer, a
document), the group is hashed instead, so that no group stands on both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from rango.data.samples import Example
from rango.errors import ConfigError


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """(training, held out), each in the order given; about `share` of the prompts, or of the
    groups, are held out.

    With two distinct ones or more and a share above 0, neither side is empty (with few of them
    the nearest one crosses over). Raises ConfigError unless 0 ≤ share < 1.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"valid_share should be at least 0 and below 1, not {share}")
    places = [_place(example) for example in examples]
    distinct = set(places)
    held = {place for place in distinct if place < share}
    if share > 0 and len(distinct) > 1:
        held = held or {min(distinct)}
        if held == distinct:
            held.remove(max(distinct))
    train = [example for example, place in zip(examples, places, strict=True) if place not in held]
    valid = [example for example, place in zip(examples, places, strict=True) if place in held]
    return train, valid


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
