"""A self-contained HTML page: no script, no network, everything that comes from data escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rango.report.format import printable, sentence

# The policy forbids the page to load or run anything, whatever slips into it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark;--ink:#1d2733;--soft:#5b6673;--page:#fbfcfd;--card:#fff;
--rule:#e1e6eb;--good:#0a7a55;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--ink:#e4e9ef;--soft:#9aa6b3;--page:#12171c;--card:#1a2027;
--rule:#2c353f;--good:#4cc79b;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:2rem 1.25rem 4rem;background:var(--page);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.2rem 0 .7rem}
p{margin:.4rem 0;max-width:46rem}.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem;
margin:1.2rem 0}
.tile,.plots>figure,table{background:var(--card);border:1px solid var(--rule);border-radius:8px}
.tile{padding:.7rem .9rem}.tile b{display:block;font-size:1.15rem;font-weight:600;
font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:.85rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:.75rem}
.plots>figure{margin:0;padding:.6rem}.plots svg{width:100%;height:auto;display:block}
.scroll{overflow-x:auto}
table{border-collapse:separate;border-spacing:0;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .7rem;text-align:left;vertical-align:top;border-top:1px solid var(--rule)}
td{overflow-wrap:anywhere}tbody th{white-space:nowrap}
tr:first-child>*{border-top:0}thead th{color:var(--soft);font-weight:500;font-size:.85rem}
thead+tbody tr:first-child>*{border-top:1px solid var(--rule)}
tbody th{font-weight:500}.number{text-align:right;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;
font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; `body` holds pieces of HTML, `title` is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(piece for piece in body if piece)
        + "\n</body></html>\n"
    )


def text(value: object) -> str:
    """Text as HTML."""
    return escape(printable(str(value)), quote=True)


def section(title: str, *pieces: str) -> str:
    """A titled section; nothing where all its pieces are empty."""
    content = "\n".join(piece for piece in pieces if piece)
    return f"<section><h2>{text(title)}</h2>\n{content}\n</section>" if content else ""


def tiles(entries: Iterable[tuple[str, str]]) -> str:
    """The main numbers as (label, value)."""
    cells = "".join(
        f'<div class="tile"><b>{text(value)}</b><span>{text(label)}</span></div>'
        for label, value in entries
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def plots(drawings: Iterable[str]) -> str:
    """SVG drawings side by side."""
    cells = "".join(f"<figure>{drawing}</figure>" for drawing in drawings if drawing)
    return f'<div class="plots">{cells}</div>' if cells else ""


def facts(values: Mapping[str, Any]) -> str:
    """A table of names and values; a value that is itself a mapping becomes rows of its own."""
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>'
        for name, value in flat(values)
    )
    return f"<table><tbody>{rows}</tbody></table>" if rows else ""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted name, text) of every value in nested mappings."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, sentence(value)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] | None = None
) -> str:
    """A table of text; `numbers` are the columns aligned as such, by default all but the first."""
    aligned = set(range(1, len(columns)) if numbers is None else numbers)
    kinds = [' class="number"' if index in aligned else "" for index in range(len(columns))]
    head = "".join(
        f'<th scope="col"{kind}>{text(column)}</th>'
        for kind, column in zip(kinds, columns, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(
            f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return _framed(head, body)


def samples_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are texts of several lines (prompts, answers)."""
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td><pre>{text(cell)}</pre></td>" for cell in row) + "</tr>"
        for row in rows
    )
    return _framed(head, body)


def _framed(head: str, body: str) -> str:
    if not body:
        return ""
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inner}</table></div>'
