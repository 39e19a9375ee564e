from __future__ import annotations

import pytest
from models import build
from torch import nn

from rango.data.samples import Origin, Sample
from rango.errors import DataError
from rango.evaluation.evaluate import evaluate
from rango.evaluation.fit import check_fit


def _sample(length: int, token: int = 5) -> Sample:
    every = (False, *[True] * (length - 1))
    return Sample((token,) * length, every, every, Origin("data.jsonl", 7))


def test_what_the_model_has_no_room_for_is_named() -> None:
    model = build("gpt2", n_positions=8)
    check_fit([_sample(8)], model)
    with pytest.raises(DataError, match=r"data\.jsonl:7: 9 tokens, .* positions for 8"):
        evaluate(model, [_sample(9)])
    with pytest.raises(DataError, match=r"data\.jsonl:7: token id 128, .* for 0 to 127"):
        evaluate(model, [_sample(4, token=128)])
    check_fit([_sample(99)], nn.Linear(1, 1))
