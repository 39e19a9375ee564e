"""Listed words: whole ones, whatever their case and accents."""

from __future__ import annotations

import unicodedata

import pytest

from rango.data.audit.words import Words
from rango.errors import ConfigError


def hits(listed, view, *texts):
    words = Words(listed)
    for index, content in enumerate(texts):
        words.add(view(content, index))
    found = list(words.findings(len(texts)))
    return found[0].count if found else 0


@pytest.mark.parametrize(
    "content", ["an idiota here", "IDIOTA!", "«Idiota»", "Ídiotá", "x\nidiota"]
)
def test_found(view, content):
    for form in ("NFC", "NFD"):
        assert hits(["idiota"], view, unicodedata.normalize(form, content)) == 1


@pytest.mark.parametrize("content", ["idiotas", "preidiota", "idiot a", "idiota_", ""])
def test_only_whole_words(view, content):
    assert hits(["idiota"], view, content) == 0


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_tilde_of_an_enye_is_no_accent(view, form):
    year = unicodedata.normalize(form, "hace un año")
    assert hits(["ano"], view, year) == 0
    assert hits(["año"], view, year) == 1
    assert hits(["AÑO"], view, year, "un ano") == 1


def test_phrases_and_counts(view):
    words = Words(["go to hell", "damn", "Camión"])
    for index, content in enumerate(["Go to  HELL", "go to", "damn, damn it", "camion y damn"]):
        words.add(view(content, index))
    (finding,) = words.findings(4)
    assert finding.count == 3
    assert "damn (2), camion (1), go to hell (1)" in finding.message
    assert [instance.origin.line for instance in finding.instances] == [1, 3, 4]


def test_nothing_listed_and_nothing_in_an_entry(view):
    assert hits([], view, "damn") == 0
    with pytest.raises(ConfigError, match=r"'\?!'"):
        Words(["fine", "?!"])
