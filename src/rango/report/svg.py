"""Plots as self-contained SVG text: lines, points and bars, legible on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from rango.report.format import printable
from rango.report.ticks import Place, Scale, linear_scale, log_scale

# Colours keep their order on both backgrounds (after Okabe and Ito, legible to the colour-blind).
STYLE = """
.plot{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color-scheme:light dark;
--ink:#1d2733;--soft:#5b6673;--grid:#e3e7ec;
--c0:#0b62b0;--c1:#c8501a;--c2:#0a8566;--c3:#a4478a;--c4:#946200;--c5:#4a5a6a}
@media (prefers-color-scheme:dark){.plot{--ink:#e4e9ef;--soft:#9aa6b3;--grid:#2c353f;
--c0:#5aaaf0;--c1:#f28a52;--c2:#35c49a;--c3:#df8cc6;--c4:#e0b040;--c5:#a9b8c8}}
.plot text{fill:var(--ink)}.plot .soft{fill:var(--soft)}.plot .title{font-weight:600;font-size:13px}
.plot .grid{stroke:var(--grid)}.plot .axis{stroke:var(--soft)}
.plot .line{fill:none;stroke-width:1.8;stroke-linejoin:round}.plot .faint{stroke-width:1;opacity:.3}
.plot .error{stroke:var(--ink);stroke-width:1.2}
"""
COLOURS = 6
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 4", "1 2")
_MOST_POINTS = 400
_MARKED = 60


@dataclass(frozen=True)
class Series:
    """One line: points in order of x; a point that is not finite interrupts it.

    faint: drawn thin and pale, without an entry in the legend (raw values under their mean).
    """

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Points:
    """Points of one kind, (x, y); the hollow ones are drawn as circles."""

    name: str
    full: Sequence[tuple[float, float]] = ()
    hollow: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: its label, its length, the text at its end, and half the width of its
    error bar (a standard deviation over seeds), in the unit of `value`. colour: which of the
    palette, so that one method keeps its own in every chart; by default that of its place."""

    label: str
    value: float
    text: str
    spread: float = 0.0
    colour: int | None = None


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    y_label: str = "",
    log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    width: int = 460,
    height: int = 260,
) -> str:
    """Lines over one horizontal axis; `log` for a logarithmic vertical one, `marks` for labelled
    vertical rules. Returns ``""`` where no series has a finite point."""
    kept = [(one, _thin([p for p in one.points if not log or not p[1] <= 0])) for one in series]
    finite = [p for _, points in kept for p in points if math.isfinite(p[0] + p[1])]
    if not finite:
        return ""
    xs = linear_scale([p[0] for p in finite], 5, tight=True)
    ys = (log_scale if log else linear_scale)([p[1] for p in finite], 5)
    named = [one for one, points in kept if not one.faint and _any_finite(points)]
    left = 16 + 7 * max(len(label) for _, label in ys.ticks)
    right, top, bottom = width - 12, (62 if len(named) > 1 else 46), height - 40
    to_x, to_y = xs.onto(left, right), ys.onto(bottom, top)
    out = [_open(title, width, height), _text(8, 16, title, "title")]
    if y_label:
        out.append(_text(8, 32, y_label, "soft"))
    out += _axes(xs, ys, left, right, top, bottom)
    if x_label:
        out.append(_text((left + right) / 2, height - 6, x_label, "soft", "middle"))
    for position, label in marks:
        if xs.low <= position <= xs.high:
            x = to_x(position)
            out.append(
                f'<line class="axis" stroke-dasharray="3 3" x1="{x:.1f}" y1="{top}" '
                f'x2="{x:.1f}" y2="{bottom}"><title>{_escape(label)}</title></line>'
            )
    legend: list[tuple[str, int]] = []
    for index, (one, points) in enumerate(kept):
        colour = (index if one.colour is None else one.colour) % COLOURS
        if one in named:
            legend.append((one.name, colour))
        out += _line(one, points, colour, to_x, to_y)
    if len(legend) > 1:
        out += _legend(legend)
    return "".join(out) + "</svg>"


def point_plot(
    title: str,
    groups: Sequence[Points],
    *,
    x_label: str,
    y_label: str = "",
    log: bool = False,
    most: float = math.inf,
    width: int = 460,
    height: int = 260,
) -> str:
    """Points over one horizontal axis, logarithmic with `log`; what is above `most`, or not
    finite, lies on the upper edge, its value in its title. Returns ``""`` without finite points."""
    every = [point for group in groups for point in (*group.full, *group.hollow)]
    finite = [p for p in every if math.isfinite(p[0] + p[1])]
    if not finite:
        return ""
    low = min(y for _, y in finite)
    high = max((y for _, y in finite if y <= max(most, low)), default=low)
    xs = (log_scale if log else linear_scale)([x for x, _ in every], 5)
    ys = linear_scale([low, high], 5)
    left = 16 + 7 * max(len(label) for _, label in ys.ticks)
    right, top, bottom = width - 12, (62 if len(groups) > 1 else 46), height - 40
    to_x, to_y = xs.onto(left, right), ys.onto(bottom, top)
    out = [_open(title, width, height), _text(8, 16, title, "title")]
    if y_label:
        out.append(_text(8, 32, y_label, "soft"))
    out += _axes(xs, ys, left, right, top, bottom)
    out.append(_text((left + right) / 2, height - 6, x_label, "soft", "middle"))
    for index, group in enumerate(groups):
        colour = f"var(--c{index % COLOURS})"
        for points, fill in ((group.full, colour), (group.hollow, "none")):
            for x, y in points:
                place = to_y(min(y, ys.high)) if math.isfinite(y) else top
                out.append(
                    f'<circle cx="{to_x(x):.1f}" cy="{place:.1f}" r="3.6" '
                    f'style="fill:{fill};stroke:{colour};stroke-width:1.4"><title>'
                    f"{_escape(f'{group.name}: {y:.5g} at {x:g}')}</title></circle>"
                )
    if len(groups) > 1:
        out += _legend([(group.name, index % COLOURS) for index, group in enumerate(groups)])
    return "".join(out) + "</svg>"


def bar_chart(title: str, bars: Sequence[Bar], *, note: str = "", width: int = 460) -> str:
    """Horizontal bars from zero, longest value to the right; ``""`` without bars."""
    bars = [bar for bar in bars if math.isfinite(bar.value)]
    if not bars:
        return ""
    top, step = (44 if note else 30), 26
    height = top + step * len(bars) + 8
    left = 16 + min(150, 7 * max(len(bar.label) for bar in bars))
    right = width - 14 - 7 * max(len(bar.text) for bar in bars)
    high = max(bar.value + bar.spread for bar in bars)
    unit = (right - left) / high if high > 0 else 0.0
    out = [_open(title, width, height), _text(8, 16, title, "title")]
    if note:
        out.append(_text(8, 32, note, "soft"))
    out.append(
        f'<line class="axis" x1="{left}" y1="{top}" x2="{left}" y2="{top + step * len(bars)}"/>'
    )
    for index, bar in enumerate(bars):
        y = top + step * index
        length = max(0.0, bar.value * unit)
        out.append(_text(left - 8, y + 17, bar.label, "", "end"))
        out.append(
            f'<rect x="{left}" y="{y + 5}" width="{length:.1f}" height="16" rx="2" '
            f'style="fill:var(--c{(index if bar.colour is None else bar.colour) % COLOURS})"/>'
        )
        if bar.spread > 0:
            out.append(_error_bar(left + length, bar.spread * unit, y + 13))
        out.append(_text(left + length + bar.spread * unit + 6, y + 17, bar.text, ""))
    return "".join(out) + "</svg>"


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """The mean of each point with up to `window`-1 before it; values not finite are passed over."""
    out: list[tuple[float, float]] = []
    recent: list[float] = []
    for x, y in points:
        if math.isfinite(y):
            recent = [*recent[-window + 1 :], y] if window > 1 else [y]
            out.append((x, sum(recent) / len(recent)))
    return out


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about 400 points: of each stretch its lowest and highest, so that spikes stay."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    out: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [p for p in stretch if math.isfinite(p[1])]
        broken = [p for p in stretch if not math.isfinite(p[1])]
        ends = {min(finite, key=_second), max(finite, key=_second)} if finite else set()
        out += sorted({*ends, *broken[:1]})
    return out


def _any_finite(points: Sequence[tuple[float, float]]) -> bool:
    return any(math.isfinite(y) for _, y in points)


def _second(point: tuple[float, float]) -> float:
    return point[1]


def _line(
    one: Series, points: Sequence[tuple[float, float]], colour: int, to_x: Place, to_y: Place
) -> Iterable[str]:
    steps, pen_up = [], True
    for x, y in points:
        if not math.isfinite(x + y):
            pen_up = True
            continue
        steps.append(f"{'M' if pen_up else 'L'}{to_x(x):.1f} {to_y(y):.1f}")
        pen_up = False
    kind = "line faint" if one.faint else "line"
    dash = f' stroke-dasharray="{_DASHES[colour]}"' if _DASHES[colour] and not one.faint else ""
    yield (f'<path class="{kind}" style="stroke:var(--c{colour})"{dash} d="{"".join(steps)}"/>')
    if one.faint or len(points) > _MARKED:
        return
    for x, y in points:
        if math.isfinite(x + y):
            yield (
                f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.6" '
                f'style="fill:var(--c{colour})"><title>{_escape(f"{one.name}: {y:.5g} at {x:g}")}'
                "</title></circle>"
            )


def _axes(
    xs: Scale, ys: Scale, left: float, right: float, top: float, bottom: float
) -> Iterable[str]:
    to_x, to_y = xs.onto(left, right), ys.onto(bottom, top)
    for value, label in ys.ticks:
        y = to_y(value)
        yield f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield _text(left - 6, y + 4, label, "soft", "end")
    for value, label in xs.ticks:
        yield _text(to_x(value), bottom + 16, label, "soft", "middle")
    yield f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'


def _legend(entries: Sequence[tuple[str, int]]) -> Iterable[str]:
    x = 8.0
    for name, colour in entries:
        dash = f' stroke-dasharray="{_DASHES[colour]}"' if _DASHES[colour] else ""
        yield (
            f'<line class="line" x1="{x:.1f}" y1="46" x2="{x + 18:.1f}" y2="46" '
            f'style="stroke:var(--c{colour})"{dash}/>'
        )
        yield _text(x + 23, 50, name, "")
        x += 34 + 6.6 * len(name)


def _error_bar(x: float, half: float, y: float) -> str:
    ends = f"M{x - half:.1f} {y - 4}v8M{x + half:.1f} {y - 4}v8M{x - half:.1f} {y}h{2 * half:.1f}"
    return f'<path class="error" d="{ends}"/>'


def _open(title: str, width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{_escape(title)}">'
        f"<style>{STYLE}</style>"
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "") -> str:
    classes = f' class="{kind}"' if kind else ""
    place = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{classes}{place}>{_escape(text)}</text>'


def _escape(text: str) -> str:
    return escape(printable(text), quote=True)
