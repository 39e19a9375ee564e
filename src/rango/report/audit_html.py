"""The HTML report of an audit: one file, without scripts or network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rango import __version__
from rango.data.audit.result import Audit, Finding, Share
from rango.data.preview import Preview
from rango.files.atomic import write_text
from rango.report.audit import (
    clip,
    diversity_line,
    length_bars,
    length_line,
    length_title,
    one_line,
    place,
    preview_title,
    verdict,
    visible,
)
from rango.report.format import integer, percent
from rango.report.page import page, plots, section, table, text, tiles
from rango.report.svg import bar_chart

_STYLE = """<style>
.finding{background:var(--card);border:1px solid var(--rule);border-left:4px solid var(--soft);
border-radius:8px;padding:.7rem .9rem;margin:.75rem 0}
.finding h3{margin:0 0 .3rem;font-size:1rem}
.finding table{margin-top:.5rem;table-layout:fixed}.finding thead th:first-child{width:38%}
.finding tbody th{white-space:normal;overflow-wrap:anywhere}
.finding td,.sample pre{unicode-bidi:plaintext}
.tiles{grid-template-columns:repeat(auto-fit,minmax(min(9rem,100%),1fr))}
.badge{border-radius:4px;padding:.05rem .4rem;font-size:.8rem;font-weight:600;color:#fff;
background:#5b6673}
.error{border-left-color:#b3261e}.error .badge{background:#b3261e}
.warning{border-left-color:#946200}.warning .badge{background:#946200}
.note{border-left-color:#0b62b0}.note .badge{background:#0b62b0}
.sample{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.7rem .9rem;
margin:.75rem 0}.sample h3{margin:0 0 .5rem;font-size:.95rem}
mark{color:inherit;border-radius:3px;background:rgba(10,160,110,.24)}
mark.marker{background:rgba(190,80,190,.32)}
</style>"""


def write_audit_report(path: str | Path, audit: Audit, previews: Sequence[Preview] = ()) -> Path:
    """Write the page to `path` and return it. Raises OutputExistsError where it is there already,
    StorageError where the disk refuses."""
    path = Path(path)
    write_text(path, audit_page(audit, previews))
    return path


def audit_page(audit: Audit, previews: Sequence[Preview] = ()) -> str:
    """The page's HTML; everything that comes from the data is escaped."""
    kind = "bad" if audit.errors else "soft" if audit.warnings else "good"
    body = [
        _STYLE,
        f"<h1>{_safe(audit.source)}</h1>",
        f'<p class="{kind}">{_safe(verdict(audit))}</p>',
        tiles(_headline(audit)),
        section("Findings", *(_finding(finding) for finding in audit.findings)),
        section("Lengths", _lengths(audit)),
        section("Formats", _shares(audit.formats)),
        section("Labels", _shares(audit.labels)),
        section("Languages", _shares(audit.languages)),
        section("Diversity", f"<p>{_safe(diversity_line(audit))}</p>" if audit.samples else ""),
        section("Supervision", _previews(previews)),
        f'<p class="soft">Written by Rango {text(__version__)}.</p>',
    ]
    return page(visible(f"Rango check: {audit.source}"), body)


def _safe(value: str) -> str:
    """Text from outside as HTML."""
    return text(visible(value))


def _headline(audit: Audit) -> list[tuple[str, str]]:
    lengths = audit.lengths
    return [
        ("samples", integer(audit.samples)),
        ("errors", integer(audit.errors)),
        ("warnings", integer(audit.warnings)),
        (f"{lengths.unit} in all", integer(lengths.total)),
        (f"longest, in {lengths.unit}", integer(lengths.longest)),
        ("left out by --fix", integer(len(audit.dropped))),
    ]


def _finding(finding: Finding) -> str:
    rows = [[place(instance), visible(instance.excerpt)] for instance in finding.instances]
    more = finding.count - len(finding.instances)
    return (
        f'<div class="finding {text(finding.severity)}">'
        f'<h3><span class="badge">{text(finding.severity)}</span> {_safe(finding.check)}'
        f" · {finding.count:,}</h3>"
        f"<p>{_safe(one_line(finding.message))}</p>"
        f'<p class="soft">What to do: {_safe(one_line(finding.advice))}</p>'
        + table(["where", "what stands there"], rows, numbers=())
        + (f'<p class="soft">… and {more:,} more</p>' if rows and more > 0 else "")
        + "</div>"
    )


def _lengths(audit: Audit) -> str:
    bars = length_bars(audit.lengths)
    if not bars:
        return ""
    drawing = bar_chart(length_title(audit.lengths), bars, width=720)
    return plots([drawing]) + f"<p>{_safe(length_line(audit.lengths))}</p>"


def _shares(shares: Sequence[Share]) -> str:
    rows = [[one_line(share.name), integer(share.count), percent(share.share)] for share in shares]
    return table(["", "samples", "share"], rows)


def _previews(previews: Sequence[Preview]) -> str:
    if not previews:
        return ""
    legend = (
        "<p>Coloured is what the loss counts: <mark>the answer</mark> and "
        '<mark class="marker">what the template writes around it</mark>, such as its end of turn. '
        "The rest is context.</p>"
    )
    return legend + "".join(_preview(shown) for shown in previews)


def _preview(shown: Preview) -> str:
    marked = {
        "context": "{}",
        "answer": "<mark>{}</mark>",
        "marker": '<mark class="marker">{}</mark>',
    }
    pieces = "".join(marked[span.kind].format(_safe(clip(span.text))) for span in shown.spans)
    return f'<div class="sample"><h3>{_safe(preview_title(shown))}</h3><pre>{pieces}</pre></div>'
