"""Empty and repetitive samples, and what only looks like them."""

from __future__ import annotations

import pytest

from rango.data.audit.degenerate import Degenerate, repeated_character, repeats_words
from rango.data.audit.drops import Drops
from rango.data.audit.view import view_of


def checks(example):
    degenerate, drops = Degenerate(), Drops()
    degenerate.add(view_of(0, example), drops)
    return [finding.check for finding in degenerate.findings(1)], bool(drops._reasons)


@pytest.mark.parametrize("content", ["", " ", "\n\t\r\n", "\u200b\ufeff", "\u00a0\u2003", "\u00ad"])
def test_nothing_to_see_is_empty(content, ask, text, label):
    assert checks(ask("Well?", content)) == (["empty samples"], True)
    assert checks(text(content)) == (["empty samples"], True)
    assert checks(label(content, "a")) == (["empty samples"], True)


def test_an_empty_prompt_is_a_note(ask):
    assert checks(ask(" ", "An answer.")) == (["empty prompts"], False)
    assert checks(ask("", "An answer.", system="Talk.")) == (["empty prompts"], False)


@pytest.mark.parametrize(
    "content", ["a" * 20, "!" * 300, "é" * 40, "ha" + "a" * 60, "x " * 40, "0" * 90, "-\n" * 30]
)
def test_one_character_over_and_over(content, ask):
    assert repeated_character(content)
    assert checks(ask("Well?", content)) == (["repeated characters"], True)
    assert checks(ask(content, "I don't follow.")) == (["repeated characters"], True)


@pytest.mark.parametrize(
    "content",
    [
        "aaaa",
        "0" * 64,
        "1" * 32,
        "hahahahahahahahahahahaha",
        "ab" * 20,
        "# Title\n" + "-" * 12,
        "Aaaaaaaaah, that was a good night's sleep, thank you",
    ],
)
def test_what_is_no_repeated_character(content):
    assert repeated_character(content) == ""


@pytest.mark.parametrize(
    "content",
    [
        "yes " * 15,
        "I think so. " * 8,
        "the same line of text\n" * 9,
        "It began well.\n" + "and then it got stuck here\n" * 12,
        "uno dos tres cuatro cinco seis siete ocho " * 6,
    ],
)
def test_words_over_and_over(content, ask):
    assert repeats_words(content)
    assert checks(ask("Well?", content)) == (["repeated words"], False)


@pytest.mark.parametrize(
    "content",
    [
        "0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 1",
        "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 3,
        "To be, or not to be, that is the question",
        "row row row your boat, gently down the stream, merrily merrily merrily merrily",
        "if x:\n    pass\nelse:\n    pass\nfor y in z:\n    pass\n",
        "}\n" * 10,
    ],
)
def test_what_is_no_repetition(content):
    assert not repeats_words(content)


def test_clean_fixtures(english, spanish):
    for example in [*english, *spanish]:
        assert checks(example) == ([], False)
