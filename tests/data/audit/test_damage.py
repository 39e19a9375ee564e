"""Wrong encodings are found, and right ones left in peace."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rango.data.audit.damage import Damage
from rango.data.audit.drops import Drops

SENTENCES = [
    "El niño pequeño comió piñas en Logroño; ¿qué hora es? ¡Son las tres y media, señor!",
    "«Mañana volverá la cigüeña», dijo Íñigo — y añadió: “¡qué ilusión!”",
    "Cuesta 50 € (1.ª clase, 2.º piso) y hace −3 °C; 5 × 3 = 15, ½ kg, 27 m².",
    "L’été à la plage, où l’on mange des crêpes : « ça va très bien », Œdipe.",
    "Füße, Öl, Übermut und Straße; Ærø, Århus, żółć, Dvořák, çığ.",
    "Ελληνικά, русский язык, العربية, עברית, 日本語, 한국어, ไทย, हिन्दी 😀 👩‍👧 ✓ →",
    "naïve café, déjà vu, São Paulo, coração, ação, A\u00a0Coruña, 100\u00a0%",
]


def checks(view, content):
    damage, drops = Damage(), Drops()
    seen = view(content)
    damage.add(seen, drops)
    damage.add(view("¿Está bien así?", 1), drops)
    return {finding.check: finding for finding in damage.findings(2)}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_right_text_is_clean(view, sentence, form):
    found = checks(view, unicodedata.normalize(form, sentence))
    assert set(found) <= {"mixed normalisation"}
    accented = unicodedata.normalize("NFC", sentence) != unicodedata.normalize("NFD", sentence)
    if form == "NFD":
        assert accented == ("mixed normalisation" in found)


def test_clean_fixtures_one_by_one(view, english, spanish):
    damage, drops = Damage(), Drops()
    for index, example in enumerate([*english, *spanish]):
        damage.add(view(example.messages[1].content, index), drops)
    assert list(damage.findings(100)) == []


@settings(max_examples=60)
@given(
    st.sampled_from([SENTENCES[i] for i in (0, 3, 4, 6)]),
    st.sampled_from(["latin-1", "cp1252"]),
    st.integers(0, 40),
)
def test_utf8_read_as_something_else_is_mojibake(view, sentence, encoding, begin):
    part = sentence[begin:]
    broken = part.encode().decode(encoding, "replace")
    if sum(ord(char) > 127 for char in part) < 2 or "\ufffd" in broken:
        return
    assert "mojibake" in checks(view, broken)


def test_where_mojibake_stands(view):
    found = checks(
        view, "A long and perfectly good beginning of some text. El niÃ±o estÃ¡ aquÃ\xad."
    )
    assert "niÃ±o" in found["mojibake"].instances[0].excerpt
    assert "control characters" not in found


@pytest.mark.parametrize(
    ("content", "check", "dropped"),
    [
        ("half \ud83d here", "lone surrogates", True),
        ("\udc80 starts with half, añade", "lone surrogates", True),
        ("a \0 in ASCII", "NUL characters", True),
        ("un \0 en español", "NUL characters", True),
        ("bell \a rings", "control characters", False),
        ("año \x1b[1m", "control characters", False),
        ("lost \ufffd here", "replacement characters", False),
    ],
)
def test_strange_characters(view, content, check, dropped):
    damage, drops = Damage(), Drops()
    damage.add(view(content), drops)
    (finding,) = [one for one in damage.findings(1) if one.severity != "note"]
    assert finding.check == check
    assert finding.instances[0].excerpt.isprintable()
    assert bool(drops._reasons) == dropped


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"])))
def test_plain_ascii_is_never_damaged(view, content):
    assert checks(view, content + "\t\r\n\f") == {}
