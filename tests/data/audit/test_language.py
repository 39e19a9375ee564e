"""Languages: shares, accidents, and no judgement where there can be none."""

from __future__ import annotations

import pytest

FRENCH = (
    "Faites revenir les oignons dans le beurre, ajoutez les pommes de terre coupées en dés, "
    "couvrez d'eau salée et laissez cuire pendant une demi-heure avant de mixer le tout."
)


@pytest.mark.parametrize("language", ["english", "spanish"])
def test_an_accident_is_found(language, request, ask, run, faults):
    clean = request.getfixturevalue(language)
    result = run([*clean, ask("Comment faire une soupe aux pommes de terre ?", FRENCH, 51)])
    found = faults(result)
    assert set(found) == {"minority language"}
    assert "fr (1)" in found["minority language"].message
    assert found["minority language"].instances[0].origin.line == 51
    assert {share.name: share.count for share in result.languages}["fr"] == 1


def test_a_mix_is_a_note(english, spanish, run, faults):
    result = run([*english, *spanish])
    assert faults(result) == {}
    assert [finding.check for finding in result.findings] == ["language mix"]
    names = [share.name for share in result.languages]
    assert set(names[:2]) == {"en", "es"}
    assert sum(share.count for share in result.languages) == 100


@pytest.mark.parametrize(
    "content",
    [
        "Yes.",
        "42",
        "x = [f(y) for y in range(10) if y % 2]; print(x[0] + x[1] * 2 - 3)",
        "```python\nimport os\nfor name in os.listdir('.'):\n    print(name.upper())\n```",
        "a" * 300,
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16",
        "https://example.org/" * 9,
    ],
)
def test_what_cannot_be_judged_is_unknown(content, text, run):
    result = run([text(content)])
    assert [share.name for share in result.languages] == ["unknown"]


def test_shares_are_scaled_up_from_the_sample(english, monkeypatch, run):
    from rango.data.audit import audit as module
    from rango.data.audit.reservoir import Reservoir

    monkeypatch.setattr(module, "Reservoir", lambda: Reservoir(10))
    shares = run(english * 2).languages
    assert sum(share.count for share in shares) == 100
    assert sum(share.share for share in shares) == pytest.approx(1)
