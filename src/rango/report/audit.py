"""An audit of data for the terminal: a verdict, what was found and where, lengths, samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rango.data.audit.result import Audit, Finding, Instance, Lengths, Share
from rango.data.preview import Preview
from rango.report.bars import bar_plot
from rango.report.format import integer, percent, printable
from rango.report.svg import Bar

_STYLES = {"error": "bold red", "warning": "yellow", "note": "blue"}
_SPANS = {"context": "dim", "answer": "green", "marker": "bold magenta"}
_MOST_BARS = 16
_MOST_SHARES = 8
_LONGEST_SPAN = 1500
"""Characters of a stretch of a sample that are shown; of a longer one, its ends."""


def audit_view(audit: Audit, previews: Sequence[Preview] = (), *, most: int = 3) -> RenderableType:
    """All of it, the verdict first; `most` instances of each finding."""
    parts: list[RenderableType] = [Text(verdict(audit), style=_verdict_style(audit))]
    if audit.findings:
        parts.append(_findings_table(audit.findings))
        for finding in audit.findings:
            parts += [_details(finding, most), Text()]
    bars = length_bars(audit.lengths)
    if bars:
        parts += [bar_plot(length_title(audit.lengths), bars), Text(length_line(audit.lengths))]
    for title, shares in (
        ("formats", audit.formats),
        ("languages", audit.languages),
        ("labels", audit.labels),
    ):
        if shares:
            parts.append(Text(f"{title}: {shares_line(shares)}"))
    if audit.samples:
        parts.append(Text(diversity_line(audit)))
    if previews:
        parts += [Text(), _legend()]
    for shown in previews:
        parts += [Text(preview_title(shown), style="bold"), preview_text(shown), Text()]
    return Group(*parts)


def verdict(audit: Audit) -> str:
    """``chats.jsonl: 2 errors, 1 warning in 1,234 samples``, or ``…: clean``."""
    notes = len(audit.findings) - audit.errors - audit.warnings
    counted = (("error", audit.errors), ("warning", audit.warnings), ("note", notes))
    found = [plural(count, word) for word, count in counted if count]
    samples = plural(audit.samples, "sample")
    if not found:
        return visible(f"{audit.source}: clean; nothing was found in {samples}")
    return visible(f"{audit.source}: {', '.join(found)} in {samples}")


def plural(count: int, word: str) -> str:
    """``1 sample``, ``1,234 samples``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def visible(text: str) -> str:
    """Text from outside as it may be printed: no control characters, no halves of characters."""
    return printable(text.encode("utf-8", "replace").decode("utf-8"))


def one_line(text: str) -> str:
    """The same on one line."""
    return visible(" ".join(text.split()))


def clip(text: str, most: int = _LONGEST_SPAN) -> str:
    """A long text by its beginning and its end."""
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]} … {len(text) - head - tail:,} characters … {text[len(text) - tail :]}"


def place(instance: Instance) -> str:
    """``data.jsonl:4``, for pairs with the first one: ``data.jsonl:4 (as data.jsonl:1)``."""
    other = f" (as {instance.other})" if instance.other else ""
    return one_line(f"{instance.origin}{other}")


def length_bars(lengths: Lengths) -> list[Bar]:
    """The histogram in at most 16 bars; those over the limit in another colour."""
    bins = lengths.histogram
    width = max(1, math.ceil(len(bins) / _MOST_BARS))
    bars = []
    for begin in range(0, len(bins), width):
        group = bins[begin : begin + width]
        low, high = group[0][0], group[-1][1] - 1
        count = sum(samples for _, _, samples in group)
        over = lengths.limit is not None and low > lengths.limit
        label = f"{low:,}–{high:,}" if low < high else f"{low:,}"
        bars.append(Bar(label, count, f"{count:,}", colour=1 if over else 0))
    return bars


def length_title(lengths: Lengths) -> str:
    """What the histogram shows."""
    return f"Samples by length in {lengths.unit}"


def length_line(lengths: Lengths) -> str:
    """Mean, percentiles, longest; what is over the limit and would be cut."""
    points = lengths.percentiles
    parts = [f"{integer(lengths.total)} {lengths.unit} in all", f"mean {integer(lengths.mean)}"]
    if 50 in points:
        parts.append(f"median {integer(points[50])}")
    if 95 in points:
        parts.append(f"95% have at most {integer(points[95])}")
    parts.append(f"longest {integer(lengths.longest)}")
    line = ", ".join(parts)
    if lengths.limit is None:
        return line
    if not lengths.over_limit:
        return f"{line}; none over the limit of {integer(lengths.limit)}"
    share = percent(lengths.over_limit / max(1, lengths.count))
    return (
        f"{line}; {integer(lengths.over_limit)} ({share}) over the limit of "
        f"{integer(lengths.limit)}, where truncation would cut {integer(lengths.cut)} "
        f"{lengths.unit}"
    )


def shares_line(shares: Sequence[Share]) -> str:
    """``chat 90.0% (900), alpaca 10.0% (100)``; those after the eighth counted."""
    shown = [
        f"{one_line(share.name)} {percent(share.share)} ({share.count:,})"
        for share in shares[:_MOST_SHARES]
    ]
    if len(shares) > _MOST_SHARES:
        shown.append(f"and {len(shares) - _MOST_SHARES} more")
    return ", ".join(shown)


def diversity_line(audit: Audit) -> str:
    """Distinct n-grams and groups of near duplicates in one sentence."""
    found = audit.diversity
    line = (
        f"diversity: {percent(found.distinct_bigrams)} of word pairs and "
        f"{percent(found.distinct_fourgrams)} of runs of four words are distinct"
    )
    if not found.clusters:
        return line
    groups = plural(found.clusters, "group")
    return f"{line}; {groups} of near duplicates, the largest of {found.largest_cluster:,}"


def preview_title(shown: Preview) -> str:
    """Where a sample stands, and how much of it is learnt."""
    learnt = percent(shown.supervised / max(1, shown.tokens))
    return one_line(
        f"{shown.origin}: {plural(shown.tokens, 'token')}, {shown.supervised:,} learnt ({learnt})"
    )


def preview_text(shown: Preview) -> Text:
    """The sample with what is learnt coloured, and in ⟦ ⟧ for where there are no colours."""
    text = Text()
    learning = False
    for span in shown.spans:
        learnt = span.kind != "context"
        if learnt != learning:
            text.append("⟦" if learnt else "⟧", style="bold")
            learning = learnt
        text.append(visible(clip(span.text)), style=_SPANS[span.kind])
    if learning:
        text.append("⟧", style="bold")
    return text


def _verdict_style(audit: Audit) -> str:
    if audit.errors:
        return _STYLES["error"]
    return _STYLES["warning"] if audit.warnings else "bold green"


def _findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for column in ("", "check"):
        table.add_column(column, no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        style = _STYLES[finding.severity]
        table.add_row(
            Text(finding.severity, style=style),
            Text(one_line(finding.check)),
            Text(integer(finding.count)),
            Text(one_line(finding.message)),
        )
    return table


def _details(finding: Finding, most: int) -> Text:
    """The first instances, and what to do."""
    text = Text()
    text.append(one_line(finding.check), style=_STYLES[finding.severity])
    for instance in finding.instances[:most]:
        text.append(f"\n  {place(instance)}")
        text.append(f"  {one_line(instance.excerpt)}", style="dim")
    more = finding.count - min(most, len(finding.instances))
    if finding.instances and more > 0:
        text.append(f"\n  … and {more:,} more", style="dim")
    text.append(f"\n  → {one_line(finding.advice)}")
    return text


def _legend() -> Text:
    text = Text("What is learnt, ")
    text.append("⟦", style="bold")
    text.append("the answer", style=_SPANS["answer"])
    text.append(" and its end", style=_SPANS["marker"])
    text.append("⟧", style="bold")
    text.append("; the rest is context")
    return text
