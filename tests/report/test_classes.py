"""A classifier's figures in tables, the card and the page."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from rango.report.card import model_card
from rango.report.classes import confusion_rows, is_classification, label_rows
from rango.report.html import report_page
from rango.report.tables import classified_table, evaluation_table, labels_view

SCORES: dict[str, Any] = {
    "loss": 0.5,
    "accuracy": 0.75,
    "macro_f1": 0.7333,
    "labels": [
        {"label": "a|b", "precision": 0.5, "recall": 1.0, "f1": 0.6667, "samples": 1},
        {"label": "c", "precision": None, "recall": 0.0, "f1": 0.0, "samples": 1003},
    ],
    "confusion": [[1, 0], [1, 1002]],
    "samples": 1004,
}


def shown(part: Any) -> str:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


def test_rows() -> None:
    assert is_classification(SCORES)
    assert not is_classification({"loss": 1.0})
    assert not is_classification(None)
    assert label_rows(SCORES) == [
        ["c", "1,003", "–", "0.0%", "0.0%"],
        ["a|b", "1", "50.0%", "100.0%", "66.7%"],
    ]
    columns, rows = confusion_rows(SCORES)
    assert columns[1:] == ["a|b", "c"]
    assert rows == [["a|b", "1", "0"], ["c", "1", "1,002"]]


def test_many_labels_are_too_many_for_a_page() -> None:
    one = SCORES["labels"][0]
    many = {"labels": [one | {"samples": n} for n in range(30)], "confusion": [[0] * 30] * 30}
    assert [row[1] for row in label_rows(many)][:2] == ["29", "28"]
    assert len(label_rows(many)) == 21
    assert label_rows(many)[-1] == ["… 10 more labels", "45", "–", "–", "–"]
    assert confusion_rows(many) == ([], [])
    assert "10 more labels" in shown(labels_view(many))
    few = {"labels": many["labels"][:20], "confusion": [[0] * 20] * 20}
    assert len(label_rows(few)) == 20


def test_the_terminal_shows_no_tokens() -> None:
    table = shown(evaluation_table({"base": SCORES | {"loss": 0.6931}, "adapted": SCORES}))
    assert "0.6931" in table
    assert "macro F1" in table
    assert "token" not in table
    assert "perplexity" not in table
    assert "1,002" in shown(labels_view(SCORES))
    entry = {"text": "x\x1b[31m " * 40, "label": "c", "probability": 0.987}
    found = shown(classified_table([entry]))
    assert "98.7%" in found
    assert "\x1b[31m" not in found


def test_card_and_page() -> None:
    facts = {
        "base": {"source": "org/encoder"},
        "data": {"labels": ["a|b", "c"]},
        "evaluation": {"base": SCORES, "adapted": SCORES},
    }
    card = model_card(facts)
    for words in (
        "| macro F1 | 73.3% | 73.3% |",
        "| a\\|b | 1 | 50.0% | 100.0% | 66.7% |",
        "| c | 1 | 1,002 |",
        'AutoModelForSequenceClassification.from_pretrained("org/encoder", num_labels=2)',
        "rango classify --base org/encoder",
        "0 a\\|b, 1 c",
    ):
        assert words in card
    page = report_page("run", {}, [], facts)
    for words in ("held-out accuracy", "75.0%", "1,002", "macro F1"):
        assert words in page
    assert "perplexity" not in page
