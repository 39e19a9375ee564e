"""Plots are well-formed, safe and where the numbers say."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from rango.report.svg import Bar, Series, bar_chart, line_plot, running_mean

SVG = "{http://www.w3.org/2000/svg}"


def paths(svg: str) -> list[str]:
    return [path.attrib["d"] for path in ElementTree.fromstring(svg).iter(f"{SVG}path")]


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_a_line_rises_with_its_values_and_spans_the_axis() -> None:
    (path,) = paths(line_plot("t", [Series("a", [(0, 0.0), (5, 1.0), (10, 2.0)])]))
    found = coordinates(path)
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert found[0][1] > found[1][1] > found[2][1]
    assert found[1][0] == pytest.approx((found[0][0] + found[2][0]) / 2, abs=0.1)


def test_a_value_that_is_not_finite_interrupts_the_line() -> None:
    (path,) = paths(line_plot("t", [Series("a", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0)])]))
    assert path.count("M") == 2
    assert "nan" not in path


def test_nothing_to_draw_is_nothing() -> None:
    assert line_plot("t", [Series("a", [])]) == ""
    assert line_plot("t", [Series("a", [(0, math.nan)])]) == ""
    assert bar_chart("t", []) == ""


def test_many_points_are_thinned_but_a_spike_stays() -> None:
    points = [(float(step), 1.0) for step in range(10_000)]
    points[7_777] = (7_777.0, 9.0)
    (path,) = paths(line_plot("t", [Series("a", points)]))
    found = coordinates(path)
    assert len(found) < 500
    assert min(y for _, y in found) < max(y for _, y in found) - 100


def test_text_is_escaped() -> None:
    name = '<script>"&\x00'
    svg = line_plot(name, [Series(name, [(0, 1.0)]), Series("b", [(0, 2.0)])], y_label=name)
    ElementTree.fromstring(svg)
    assert "<script" not in svg
    assert "<script" not in bar_chart(name, [Bar(name, 1.0, name)], note=name)


def test_bars_are_proportional() -> None:
    svg = bar_chart("t", [Bar("a", 1.0, "1"), Bar("b", 4.0, "4"), Bar("c", 0.0, "0")])
    widths = [float(r.attrib["width"]) for r in ElementTree.fromstring(svg).iter(f"{SVG}rect")]
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.01)
    assert widths[2] == 0.0


def test_legend_only_where_there_are_several_lines() -> None:
    one = line_plot("t", [Series("alone", [(0, 1.0), (1, 1.0)])])
    two = line_plot("t", [Series("alone", [(0, 1.0)]), Series("other", [(0, 1.0)])])
    assert ">alone<" not in one
    assert ">alone<" in two
    assert ">other<" in two


def test_running_mean() -> None:
    points = [(0.0, 1.0), (1.0, 3.0), (2.0, math.nan), (3.0, 5.0)]
    assert running_mean(points, 2) == [(0.0, 1.0), (1.0, 2.0), (3.0, 4.0)]
