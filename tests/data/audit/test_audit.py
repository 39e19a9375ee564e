"""The audit as a whole: what was planted is found, and nothing else."""

from __future__ import annotations

import importlib
import random
import unicodedata
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from rango.data.audit import audit as module
from rango.data.audit.audit import CHECKS, audit
from rango.data.audit.reservoir import Reservoir
from rango.data.samples import Example, Message, Origin
from rango.errors import ConfigError

LONG = "The harbour was quiet, and the last ferry had left for the islands an hour before. "

PLANTED = {
    "lone surrogates": ("Can you smile?", "Half of a smile \ud83d stands here; the rest is lost."),
    "NUL characters": ("What came over the wire?", "Some words, and \0 then a few more of them."),
    "control characters": ("Print it in red.", "Here it is: \x1b[31mred as a rose\x1b[0m at noon."),
    "replacement characters": ("Who wrote it?", "It was Garc\ufffda M\ufffdrquez, in Mexico City."),
    "mojibake": ("¿Qué tal el niño?", "El niÃ±o estÃ¡ muy bien, y maÃ±ana volverÃ¡ al colegio."),
    "empty samples": ("What do you say?", " \n\u200b\t "),
    "repeated characters": ("Scream as loud as you can, please.", "a" * 80),
    "repeated words": ("Tell me about parrots.", "parrots say parrots say " * 12),
    "e-mail addresses": ("Whom do I write to?", "Write to maria.lopez@correo.es before Monday."),
    "phone numbers": ("How do I reach the desk?", "Ring +34 612 345 678 between nine and five."),
    "payment cards": ("Which card was it?", "The one that ends so: 4111 1111 1111 1111, I think."),
    "bank accounts": ("Where do I send it?", "To ES91 2100 0418 4502 0005 1332, by Friday noon."),
    "identity numbers": ("¿Qué DNI pongo?", "En la casilla tercera escribe 12345678Z, sin guion."),
    "API keys": ("Which key is it?", "Set the variable to AKIA" + "IOSFODNN7ABCDEFG" + " first."),
    "giant samples": ("Tell me a long story.", LONG),
    "minority language": (
        "Wie koche ich Kartoffeln?",
        "Die Kartoffeln waschen, mit der Schale in kaltem Salzwasser aufsetzen und je nach Größe "
        "zwanzig bis dreißig Minuten kochen, dann abgießen und kurz ausdampfen lassen.",
    ),
}


def _story() -> str:
    words = random.Random(3)
    return " ".join(
        f"{words.choice(['She', 'He', 'Nobody', 'Somebody', 'The captain'])} "
        f"{words.choice(['saw', 'heard', 'forgot', 'painted', 'sold'])} the "
        f"{words.choice(['boat', 'lamp', 'garden', 'letter', 'clock'])} number {step}."
        for step in range(800)
    )


@pytest.mark.parametrize("check", PLANTED)
def test_a_planted_fault_is_found_and_no_other(check, english, ask, run, faults):
    question, answer = PLANTED[check]
    if check == "giant samples":
        answer = _story()
    found = faults(run([*english[:30], ask(question, answer, 31), *english[30:]]))
    expected = {check, "minority language"} if "ñ" in answer or "¿" in question else {check}
    assert check in found
    assert set(found) <= expected
    assert found[check].count == 1
    assert found[check].severity == CHECKS[check]
    (instance,) = found[check].instances
    assert instance.origin == Origin("data.jsonl", 31)
    assert 0 < len(instance.excerpt) <= 120
    assert instance.excerpt.isprintable()


def test_copies_contradictions_and_words(english, ask, run, faults):
    planted = [
        ask(*[message.content for message in english[4].messages], 51),
        ask(english[9].messages[0].content + "  ", "Pig-headed.", 52),
        ask("What do you think of him?", "A complete NITWIT, if you ask me, and worse.", 53),
    ]
    result = run([*english, *planted], words=["nitwit", "blockhead"])
    found = faults(result)
    assert set(found) == {"exact duplicates", "contradictions", "listed words"}
    assert found["exact duplicates"].instances[0].other == english[4].origin
    assert found["contradictions"].count == 2
    assert found["contradictions"].instances[0].other == english[9].origin
    assert "nitwit" in found["listed words"].message
    assert [(drop.origin.line, drop.check) for drop in result.dropped] == [(51, "exact duplicates")]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("language", ["english", "spanish"])
def test_clean_data_has_no_fault(form, language, request, run):
    clean = [
        replace(
            example,
            messages=tuple(
                Message(m.role, unicodedata.normalize(form, m.content)) for m in example.messages
            ),
        )
        for example in request.getfixturevalue(language)
    ]
    result = run(clean)
    assert result.findings == ()
    assert result.dropped == ()
    assert result.samples == 50
    assert result.errors == result.warnings == 0
    assert [share.name for share in result.formats] == ["chat"]
    assert result.languages[0].name == language[:2].replace("sp", "es")
    assert result.languages[0].share >= 0.7
    assert result.diversity.clusters == 0
    assert result.diversity.distinct_fourgrams > 0.98


def test_both_unicode_forms_and_languages_are_notes(spanish, english, run, faults):
    decomposed = [
        Example(
            one.kind,
            tuple(Message(m.role, unicodedata.normalize("NFD", m.content)) for m in one.messages),
            one.origin,
        )
        for one in spanish[25:]
    ]
    result = run([*spanish[:25], *decomposed, *english])
    assert faults(result) == {}
    assert {one.check for one in result.findings} == {"mixed normalisation", "language mix"}


def test_the_result_does_not_depend_on_the_chunks(english, spanish, run, monkeypatch):
    data = [*english, *spanish[:20], *english[:7], *spanish[10:30]]
    data += [Example(one.kind, one.messages, Origin("b", n)) for n, one in enumerate(english)]
    options = {"held_out": spanish[25:40], "rank": 4, "max_length": 200, "words": ["agua", "star"]}
    results = []
    for size in (512, 1, 7, 64):
        monkeypatch.setattr(module, "_AT_ONCE", size)
        results.append(run(iter(data), **options))
    assert results[0].errors
    assert results[0].warnings
    assert all(result == results[0] for result in results[1:])


def test_the_result_is_the_same_again(english, run):
    assert run(english, rank=8) == run(english, rank=8)


def test_findings_come_by_severity_in_the_order_of_the_list(english, ask, run):
    data = [*english, ask("a question", "\ud800 half"), *english[:3], ask("", "An answer alone.")]
    findings = run(data, rank=8).findings
    names = list(CHECKS)
    ranks = [
        (("error", "warning", "note").index(f.severity), names.index(f.check)) for f in findings
    ]
    assert len(ranks) >= 4
    assert ranks == sorted(ranks)


def test_lengths_are_measured_by_the_caller(english, run):
    seen: list[int] = []

    def measure(examples):
        seen.append(len(examples))
        return [7] * len(examples)

    result = run(english, measure=measure, unit="tokens", max_length=5)
    assert sum(seen) == 50
    assert result.lengths.unit == "tokens"
    assert (result.lengths.total, result.lengths.over_limit, result.lengths.cut) == (350, 50, 100)


def test_no_samples_is_an_error(run):
    result = run([])
    assert result.samples == 0
    assert [finding.check for finding in result.findings] == ["no samples"]
    assert result.errors == 1


def test_progress_is_told(english, run):
    told = []
    run(english, progress=lambda *entry: told.append(entry), total=50)
    assert ("audit", 50, 50, "samples") in told
    assert any(entry[0] == "near duplicates" for entry in told)


def test_a_missing_library_is_named(english, monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name.startswith("datasketch"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ConfigError, match=r"datasketch.*rango\[data\]"):
        audit(english, source="data.jsonl")


def test_importing_the_audit_imports_none_of_its_libraries(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, rango.data.audit.audit as a; "
        "print([n for n in ('datasketch', 'ftfy', 'stdnum', 'phonenumbers', 'py3langid') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_faults_are_found_wherever_they_stand(english, ask, run, faults):
    bad = [
        ask("First, what is it?", "x" * 60, 100),
        ask("Second, who is it?", "Ask ana@correo.es, she knows.", 101),
        ask("Third, where is it?", "Behind \0 the door of the kitchen.", 102),
    ]
    for order in permutations(bad):
        found = faults(run([*order[:1], *english[:20], *order[1:]]))
        assert set(found) == {"repeated characters", "e-mail addresses", "NUL characters"}


def test_many_samples_stay_in_bounded_memory(monkeypatch):
    """What is kept of a sample is a fraction of its text."""
    import tracemalloc

    monkeypatch.setattr(module, "Reservoir", lambda: Reservoir(20))
    filler = "".join(chr(0x61 + i % 26) for i in range(4000))
    generator = np.random.default_rng(0)

    def samples(count):
        for number in range(count):
            words = generator.integers(0, 1 << 40, 8)
            content = " ".join(map(hex, words.tolist())) + " " + filler
            messages = (Message("user", f"item {number}"), Message("assistant", content))
            yield Example("chat", messages, Origin("big.jsonl", number + 1))

    audit(samples(10), source="warm up")
    peaks = []
    for count in (500, 1500):
        tracemalloc.start()
        audit(samples(count), source="big.jsonl")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 1000 < 700
