"""Personal data is found by form and checksum, and never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rango.data.audit.personal import Personal, masked

LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
HEX = "0a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T"

# (check, before, the secret, after); the keys are put together, so that no scanner finds them
SECRETS = [
    ("e-mail addresses", "Write to ", "maria.lopez@correo.es", " today."),
    ("e-mail addresses", "Escribe a <", "iñaki+altas@empresa.com.mx", ">"),
    ("phone numbers", "Ring ", "+34 612 345 678", " at nine."),
    ("phone numbers", "Ring ", "+1 (415) 555-2671", "."),
    ("phone numbers", "Llámame al ", "612345678", ", porfa"),
    ("phone numbers", "Teléfono:", "912 345 678", ""),
    ("phone numbers", "My office is ", "(415) 555-2671", ", second floor"),
    ("phone numbers", "El de Ana: ", "612 34 56 78", "."),
    ("payment cards", "Pay with ", "4111 1111 1111 1111", " now"),
    ("payment cards", "Pay with ", "5555-5555-5555-4444", " now"),
    ("payment cards", "Pay with ", "378282246310005", " now"),
    ("payment cards", "amex ", "3782 822463 10005", ""),
    ("bank accounts", "A ", "ES91 2100 0418 4502 0005 1332", " VALE"),
    ("bank accounts", "IBAN: ", "DE89370400440532013000", "."),
    ("bank accounts", "to ", "GB29 NWBK 6016 1331 9268 19", ", please"),
    ("identity numbers", "DNI ", "12345678Z", ""),
    ("identity numbers", "con documento ", "12.345.678-Z", ","),
    ("identity numbers", "su dni es ", "12345678 z", "."),
    ("identity numbers", "NIE ", "X2482300W", "."),
    ("identity numbers", "SSN ", "536-90-4399", "."),
    ("identity numbers", "codice ", "RCCMNL83S18D969H", "."),
    ("identity numbers", "n° ", "2 95 10 99 126 111 93", "."),
    ("identity numbers", "CPF ", "390.533.447-05", "."),
    ("identity numbers", "NIF ", "501964843", "."),
    ("API keys", "key=", "AKIA" + "IOSFODNN7EXAMPLE", ""),
    ("API keys", "token ", "ghp_" + HEX[:36], "."),
    ("API keys", "use ", "sk-" + "proj-" + HEX, " for it"),
    ("API keys", "'", "AIza" + HEX[:35], "'"),
    ("API keys", "bot: ", "xoxb-" + "123456789012-" + HEX[:24], ""),
    ("API keys", "Bearer ", "eyJ" + HEX[:20] + ".eyJ" + HEX + "." + HEX[:30], ""),
    (
        "API keys",
        "it is ",
        "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIEow" + HEX + "\n" + HEX + "\n-----END RSA PRIVATE"
        " KEY-----",
        " there",
    ),
]

HARMLESS = [
    "Call 10.0.0.1:8080 on 2024-11-21 16:43:07, or 21-11-2024, or 12/05/1999.",
    "1234 5678 9012 3456 and 4111 1111 1111 1112 are no cards.",
    "The id is 123e4567-e89b-12d3-a456-426614174000, the digest 9f86d081884c7d659a2feaa0c55ad015.",
    "git clone git@github.com:someone/something.git; npm i lodash@4.17.21; @property; @user",
    "12345678A, 87654321, 20240512T103000 and X1234567A are no documents.",
    "A population of 612 345 678 people, 912.345.678 grains, and $612345678.",
    "pi = 3.14159265358979323846, e = 2.718281828459045, 2**64 = 18446744073709551616",
    "ISBN 978-3-16-148410-0, EAN 4006381333931, order 100-23-4567890",
    "a risk-averse, task-oriented sk-learn-like-thing-with-many-parts; Task-123456789",
    "1 2 3 4 5 6 7 8 9 10 11 12; 600000000 + 700000000 = 1300000000",
    "x@y, a@b.c, 50@ 3€, foo@bar",
    "ES00 2100 0418 4502 0005 1332 has a wrong checksum, as 390.533.447-06 has.",
    "000-12-3456, 666-12-3456 and 123-00-4567 were never given out.",
]


@pytest.fixture(scope="module")
def personal():
    return Personal()


@pytest.mark.parametrize(("check", "before", "secret", "after"), SECRETS)
def test_what_is_found_and_never_shown(personal, view, check, before, secret, after):
    content = before + secret + after
    assert personal.find(content) == [(check, len(before), len(before) + len(secret))]
    one = Personal()
    seen = view(content)
    one.add(seen)
    (finding,) = one.findings(1)
    assert finding.check == check
    excerpt = finding.instances[0].excerpt
    assert "***" in excerpt
    for shown in (excerpt, seen.shown, seen.summary(), seen.excerpt()):
        assert secret not in shown
        for begin in range(len(secret) - 6):
            piece = secret[begin : begin + 7]
            assert piece not in shown or piece in before + after


@pytest.mark.parametrize("content", HARMLESS)
def test_what_is_harmless(personal, content):
    assert personal.find(content) == []


def test_clean_fixtures(personal, english, spanish):
    for example in [*english, *spanish]:
        assert personal.find(example.messages[0].content + example.messages[1].content) == []


@given(st.integers(0, 99_999_999), st.integers(0, 7), st.integers(1, 9))
def test_dni_with_one_digit_off_is_none(personal, number, place, off):
    letter = LETTERS[number % 23]
    right = f"{number:08d}{letter}"
    assert ("identity numbers", 3, 12) in personal.find(f"el {right} es")
    digits = list(right)
    digits[place] = str((int(digits[place]) + off) % 10)
    wrong = "".join(digits)
    assert "identity numbers" not in [span[0] for span in personal.find(f"el {wrong} es")]


@given(st.integers(0, 9_999_999), st.sampled_from("XYZ"), st.integers(1, 22))
def test_nie_with_another_letter_is_none(personal, number, first, off):
    full = int("XYZ".index(first)) * 10_000_000 + number
    right, wrong = LETTERS[full % 23], LETTERS[(full + off) % 23]
    kinds = [
        [span[0] for span in personal.find(f"es {first}{number:07d}{letter}, sí")]
        for letter in (right, wrong)
    ]
    assert kinds == [["identity numbers"], []]


@given(st.integers(10**14, 10**15 - 1), st.integers(1, 15), st.integers(1, 9))
def test_cards_with_one_digit_off_are_none(personal, body, place, off):
    digits = [4, *map(int, str(body)[1:])]
    doubled = [d * 2 - 9 * (d > 4) if i % 2 == 0 else d for i, d in enumerate(digits)]
    number = [*digits, -sum(doubled) % 10]
    right = "".join(map(str, number))
    assert personal.find(f"card {right} it is") == [("payment cards", 5, 21)]
    number[place] = (number[place] + off) % 10
    wrong = "".join(map(str, number))
    assert "payment cards" not in [span[0] for span in personal.find(f"card {wrong} it is")]


def test_several_in_one_text(personal):
    content = "Soy ana@correo.es, DNI 12345678Z, tel. 612 345 678 y 4111111111111111."
    spans = personal.find(content)
    assert [span[0] for span in spans] == [
        "e-mail addresses",
        "identity numbers",
        "phone numbers",
        "payment cards",
    ]
    shown = masked(content, spans)
    assert len(shown) == len(content)
    assert shown.startswith("Soy an*@*********, DNI 12*******, tel. 612********")


def test_other_findings_mask_too(english, ask, run):
    data = [
        *english,
        *[ask("Who is it?", "Ask maria.lopez@correo.es, she is in.", n) for n in (51, 52)],
    ]
    result = run(data)
    excerpts = [i.excerpt for finding in result.findings for i in finding.instances]
    assert len(excerpts) >= 3
    assert not any("lopez" in excerpt for excerpt in excerpts)


@pytest.mark.parametrize("char", ["a", "1", "@", "-", "(", " ", "A1", "1 ", "a.", "eyJ"])
def test_long_texts_take_linear_time(personal, char):
    import time

    begin = time.perf_counter()
    personal.find(char * (200_000 // len(char)))
    assert time.perf_counter() - begin < 3
