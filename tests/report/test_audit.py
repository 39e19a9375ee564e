"""An audit in the terminal and as a page: what it says, and that data can't steer either."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from rango.data.audit.result import Audit, Diversity, Dropped, Finding, Instance, Lengths, Share
from rango.data.preview import Preview, Span
from rango.data.samples import Origin
from rango.errors import OutputExistsError
from rango.report.audit import audit_view, clip, length_bars, length_line, preview_text, verdict
from rango.report.audit_html import audit_page, write_audit_report

HOSTILE = "</td><script>alert(1)</script><img src=http://x>\x1b[2J\x07\u202e\ud800"
ORIGIN = Origin(f"{HOSTILE}.jsonl", 4)

LENGTHS = Lengths(
    unit="tokens",
    count=4,
    total=1000,
    longest=700,
    mean=250.0,
    percentiles={1: 10, 5: 10, 25: 20, 50: 140, 75: 300, 95: 700, 99: 700},
    histogram=((10, 19, 1), (20, 39, 0), (100, 199, 2), (600, 700, 1)),
    limit=512,
    over_limit=1,
    cut=188,
)
CLEAN = Audit(
    source="data.jsonl",
    samples=4,
    formats=(Share("chat", 4, 1.0),),
    lengths=LENGTHS,
    languages=(Share("es", 3, 0.75), Share("en", 1, 0.25)),
    labels=(),
    diversity=Diversity(0.8, 0.95, 0, 0),
    findings=(),
)


def finding(check: str, severity: str, text: str = "fine", count: int = 7) -> Finding:
    instances = tuple(Instance(Origin(ORIGIN.file, line), text) for line in range(1, 6))
    paired = replace(instances[1], other=Origin("first.jsonl", 9))
    instances = (instances[0], paired, *instances[2:])
    return Finding(check, severity, count, f"found {text}", f"repair {text}", instances)


DIRTY = replace(
    CLEAN,
    source=HOSTILE,
    formats=(Share(HOSTILE, 4, 1.0),),
    languages=(Share(HOSTILE, 4, 1.0),),
    labels=(Share(HOSTILE, 4, 1.0),),
    findings=(
        finding("broken", "error", HOSTILE),
        finding("odd", "warning", HOSTILE),
        finding("said", "note", HOSTILE),
    ),
    dropped=(Dropped(ORIGIN, "broken", HOSTILE),),
)
SHOWN = Preview(
    ORIGIN,
    12,
    5,
    (
        Span("context", f"question {HOSTILE}"),
        Span("answer", f"answer {HOSTILE}"),
        Span("marker", "<|im_end|>"),
        Span("context", "more"),
        Span("answer", "last"),
    ),
)


def printed(audit: Audit, previews: tuple[Preview, ...] = (), *, colour: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=140, force_terminal=colour, color_system="truecolor" if colour else None
    )
    console.print(audit_view(audit, previews))
    text = file.getvalue()
    text.encode()  # no halves of characters
    return text


class Page(HTMLParser):
    """Tags, links and text of a page whose tags must match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.marked: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] == "mark":
            self.marked.append(data)


def test_verdict_counts_kinds_of_findings() -> None:
    assert verdict(CLEAN) == "data.jsonl: clean; nothing was found in 4 samples"
    dirty = replace(DIRTY, source="data.jsonl", samples=1)
    assert verdict(dirty) == "data.jsonl: 1 error, 1 warning, 1 note in 1 sample"
    twice = replace(dirty, findings=(dirty.findings[0],) * 2, samples=1234)
    assert verdict(twice) == "data.jsonl: 2 errors in 1,234 samples"


def test_terminal_says_it_in_order() -> None:
    plain = replace(
        DIRTY,
        source="data.jsonl",
        findings=tuple(
            replace(
                one,
                message="what it is",
                advice="what to do",
                instances=tuple(
                    replace(i, origin=Origin("data.jsonl", i.origin.line), excerpt="here")
                    for i in one.instances
                ),
            )
            for one in DIRTY.findings
        ),
    )
    lines = [line.rstrip() for line in printed(plain).splitlines()]
    assert lines[0] == "data.jsonl: 1 error, 1 warning, 1 note in 4 samples"
    rows = [line.split()[:3] for line in lines if line.strip().startswith(("error", "warning"))]
    assert rows == [["error", "broken", "7"], ["warning", "odd", "7"]]
    begin = lines.index("broken")
    assert lines[begin + 1 : begin + 6] == [
        "  data.jsonl:1  here",
        "  data.jsonl:2 (as first.jsonl:9)  here",
        "  data.jsonl:3  here",
        "  … and 4 more",
        "  → what to do",
    ]
    assert any("es 75.0% (3), en 25.0% (1)" in line for line in printed(CLEAN).splitlines())


def test_a_clean_audit_is_short() -> None:
    lines = printed(CLEAN).splitlines()
    assert lines[0] == "data.jsonl: clean; nothing was found in 4 samples"
    assert len(lines) < 12


def test_an_audit_of_nothing_prints() -> None:
    nothing = replace(
        CLEAN,
        samples=0,
        formats=(),
        languages=(),
        lengths=Lengths("characters", 0, 0, 0, 0.0, {}, ()),
    )
    assert "in 0 samples" in printed(nothing)
    assert Page(audit_page(nothing)).open == []


def test_data_does_not_steer_the_terminal() -> None:
    text = printed(DIRTY, (SHOWN,))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    coloured = printed(DIRTY, (SHOWN,), colour=True)
    assert re.findall(r"\x1b(?!\[[0-9;]*m)", coloured) == []
    assert "[2J" in coloured
    assert "\x1b[2J" not in coloured


def test_markup_in_data_is_text() -> None:
    marked = replace(CLEAN, findings=(finding("odd", "warning", "[bold red]x[/] [link=http://x]"),))
    assert "[bold red]x[/] [link=http://x]" in printed(marked)


def test_page_is_whole_and_loads_nothing() -> None:
    page = Page(audit_page(DIRTY, (SHOWN,)))
    assert page.open == []
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(page.tags)
    assert page.links == []
    text = " ".join(page.words)
    for control in ("\x1b", "\x07", "\u202e", "\ud800"):
        assert control not in text
    assert "</td><script>alert(1)</script>" in text
    for words in ("broken · 7", "… and 2 more", "first.jsonl:9", "What to do: repair"):
        assert words in text


def test_page_marks_what_is_learnt() -> None:
    page = Page(audit_page(CLEAN, (SHOWN,)))
    learnt = [text for text in page.marked if "answer <" in text or text in ("<|im_end|>", "last")]
    assert [text.split()[0] for text in learnt] == ["answer", "<|im_end|>", "last"]
    assert not any("question" in text for text in page.marked)


def test_report_is_written_once(tmp_path: Path) -> None:
    path = write_audit_report(tmp_path / "check.html", DIRTY, (SHOWN,))
    assert Page(path.read_text(encoding="utf-8")).open == []
    with pytest.raises(OutputExistsError):
        write_audit_report(path, CLEAN)


def test_learnt_text_is_bracketed_where_there_are_no_colours() -> None:
    shown = replace(
        SHOWN, spans=(Span("context", "Q "), Span("answer", "A"), Span("marker", "<e>"))
    )
    text = preview_text(shown)
    assert text.plain == "Q ⟦A<e>⟧"
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles == {"Q ": "dim", "⟦": "bold", "A": "green", "<e>": "bold magenta", "⟧": "bold"}
    shown = replace(shown, spans=(Span("answer", "A"), Span("context", " Q "), Span("answer", "B")))
    assert preview_text(shown).plain == "⟦A⟧ Q ⟦B⟧"


def test_long_stretches_keep_their_ends() -> None:
    text = "a" * 500 + "b" * 10_000 + "c" * 500
    short = clip(text, 700)
    assert short.startswith("a" * 466 + " … ")
    assert short.endswith(" … " + "c" * 233)
    assert "10,301 characters" in short
    assert clip("short") == "short"


def test_bars_add_up_to_the_samples() -> None:
    bins = tuple((10 * i + 1, 10 * i + 11, i) for i in range(40))
    lengths = replace(LENGTHS, histogram=bins, limit=200)
    bars = length_bars(lengths)
    assert len(bars) <= 16
    assert sum(bar.value for bar in bars) == sum(range(40))
    assert [bar.colour for bar in bars] == sorted(bar.colour or 0 for bar in bars)
    assert {bar.colour for bar in bars} == {0, 1}
    assert length_bars(replace(LENGTHS, histogram=())) == []


def test_lengths_in_a_line() -> None:
    assert length_line(LENGTHS) == (
        "1,000 tokens in all, mean 250, median 140, 95% have at most 700, longest 700; 1 (25.0%) "
        "over the limit of 512, where truncation would cut 188 tokens"
    )
    fits = replace(LENGTHS, limit=700, over_limit=0, cut=0)
    assert length_line(fits).endswith("longest 700; none over the limit of 700")
    assert length_line(replace(LENGTHS, limit=None)).endswith("longest 700")
