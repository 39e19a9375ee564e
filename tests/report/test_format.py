"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from rango.report.format import decimal, duration, integer, percent, printable, sentence, size


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (integer(18_874_368), "18,874,368"),
        (integer(None), "–"),
        (decimal(1.23456), "1.2346"),
        (decimal(0.0), "0.0000"),
        (decimal(3.2e-7), "3.2e-07"),
        (decimal(1234567.0), "1.23e+06"),
        (decimal(math.nan), "NaN"),
        (decimal(-math.inf), "-∞"),
        (percent(0.0123), "1.2%"),
        (percent(0.0), "0.0%"),
        (percent(0.000_012), "0.001%"),
        (size(37_748_736), "37.7 MB"),
        (size(1_510_000_000), "1.51 GB"),
        (size(12), "12 B"),
        (duration(8.42), "8.4 s"),
        (duration(59.96), "1m 00s"),
        (duration(201.4), "3m 21s"),
        (duration(3599.7), "1h 00m"),
        (duration(7500), "2h 05m"),
        (duration(math.inf), "–"),
        (sentence(True), "yes"),
        (sentence([]), "none"),
        (sentence({"a": [1, 2.5]}), "a: 1, 2.5"),
    ],
)
def test_writing(written: str, expected: str) -> None:
    assert written == expected


def test_text_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u202ec\td\r\ne") == "a\ufffd[2Jb\ufffdc\td\ne"
