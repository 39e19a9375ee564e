"""The report of a run."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rango.errors import DataError
from rango.report.html import write_report

HOSTILE = "</td><script>alert(1)</script><img src=http://x>"


class Page(HTMLParser):
    """Tags and text of a page."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    events: list[dict[str, Any]] = [{"event": "start", "step": 0}]
    for step in range(1, 101):
        events.append({"event": "step", "step": step, "loss": 3 / step, "grad_norm": 1.0 + step})
        if step % 20 == 0:
            events.append(
                {"event": "evaluation", "step": step, "loss": 2.0, "content_loss": 2.1, "kl": 0.1}
            )
    result = {
        "steps": 100,
        "stopped": "All 100 steps were done.",
        "base": {"source": HOSTILE, "quantize": "nf4", "fingerprint": "blake3:ab"},
        "evaluation": {"base": {"loss": 4.0}, "adapted": {"loss": 2.0, "content_accuracy": 0.5}},
        "forgetting": {"kl": 0.0312, "loss": 2.9, "base_loss": 2.8, "on": HOSTILE},
        "proof": {"passed": True, "checks": {"read back": {"passed": True, "value": 0.0}}},
        "samples": [{"prompt": HOSTILE, "base": "a", "adapted": "b\x1b[2J"}],
        "data": {"digest": "sha256:cd"},
    }
    (tmp_path / "config.yaml").write_text("training: {method: lora, epochs: 3.0}\n")
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (tmp_path / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_report_is_whole_and_loads_nothing(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(page.tags)
    assert page.links == []
    assert page.tags.count("svg") == 3
    for words in ("4.000 → 2.000", "0.0312", "50.0%", "blake3:ab", "sha256:cd", "QLoRA", HOSTILE):
        assert words in page.text
    assert "\x1b" not in page.text


def test_it_is_written_again(run: Path) -> None:
    first = write_report(run).read_text()
    assert write_report(run).read_text() == first


def test_an_unfinished_run_has_a_report(run: Path) -> None:
    (run / "result.json").unlink()
    assert "Unfinished" in write_report(run).read_text()


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    assert Page(write_report(tmp_path).read_text()).open == []


def test_a_malformed_file_is_named(run: Path) -> None:
    (run / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result\.json"):
        write_report(run)
    (run / "result.json").write_text("[]")
    with pytest.raises(DataError, match="mapping"):
        write_report(run)
