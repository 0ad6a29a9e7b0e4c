"""The figures: well-formed SVG whose marks lie where the numbers are, told in words, too."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from tandem_api.pages.plots import Bar, LossPoint, ScoreMark, loss_plot, scores_plot, timeline_plot

HOSTILE = "<b onclick='x'>&\"</b>"
MARKS = (
    ScoreMark("0 baseline: vanilla + base", 0.0, 0.0, 0.1, optimized=False, adapter=False, best=False),
    ScoreMark(HOSTILE, 1.0, 0.8, 1.0, optimized=True, adapter=True, best=True),
)


def points(*losses: float) -> list[LossPoint]:
    return [LossPoint(step, loss) for step, loss in enumerate(losses, start=1)]


def texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter("text")]


@pytest.mark.parametrize(
    "markup",
    [
        scores_plot(MARKS, 0.5),
        scores_plot((), None),
        loss_plot("2", points(2.0, 1.0, 0.5), points(1.5, 0.9)),
        loss_plot("2", points(0.0), []),
        loss_plot("2", [], points(3e-5, 3e-5)),
        loss_plot("2", points(*[math.exp(-n / 300) for n in range(1000)]), []),
        loss_plot("2", points(math.inf, 1e9, math.nan), points(-2.0)),
        timeline_plot([Bar(HOSTILE, 0, 3, 0), Bar("1 p: optimize", 30, 86_400 * 9, 20)]),
        timeline_plot([Bar("0 baseline: check", 0, 0, 0)]),
        timeline_plot([]),
    ],
)
def test_figures_are_well_formed_named_and_without_odd_numbers(markup: str) -> None:
    svg = ElementTree.fromstring(str(markup))
    title, description = svg.find("title"), svg.find("desc")
    assert svg.get("role") == "img" and title is not None and title.text and description is not None
    assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert svg.get("width") == "100%" and float(svg.get("height", "0")) > 0
    for element in svg.iter():
        for name, value in element.attrib.items():
            assert "nan" not in value and "inf" not in value, (element.tag, name)
            if name in ("x", "x1", "x2", "cx"):
                assert value.endswith("%") and 0 <= float(value.removesuffix("%")) <= 100, (element.tag, value)


def test_scores_lie_on_their_scale_and_the_best_is_told_by_word_and_ring() -> None:
    svg = ElementTree.fromstring(str(scores_plot(MARKS, 0.5)))
    assert [mark.get("x") for mark in svg.findall("svg")] == ["2.000%", "98.000%"]
    assert [line.get("x1") for line in svg.findall("line[@class='baseline']")] == ["50.000%"]
    assert HOSTILE in texts(svg) and "★ best 100.0%" in texts(svg) and "baseline 50.0%" in texts(svg)
    hollow, best = svg.findall("svg")
    assert hollow.find("circle[@class='mark hollow']") is not None and hollow.find("circle[@class='ring']") is None
    assert best.find("path[@class='mark filled']") is not None and best.find("circle[@class='ring']") is not None
    description = svg.find("desc")
    assert description is not None and f"{HOSTILE}: 100.0% (80.0% to 100.0%), the best" in str(description.text)


def test_no_losses_no_figure() -> None:
    assert loss_plot("2", [], []) == "" and loss_plot("2", points(math.nan), []) == ""


def test_loss_axis_covers_the_curves_with_round_ticks() -> None:
    svg = ElementTree.fromstring(str(loss_plot("2", points(2.14, 1.0, 0.21), [])))
    assert texts(svg)[:6] == ["0", "0.5", "1", "1.5", "2", "2.5"]
    (curve,) = svg.iter("polyline")
    ys = [float(point.split(",")[1]) for point in str(curve.get("points")).split()]
    assert ys == pytest.approx([1000 * (2.5 - loss) / 2.5 for loss in (2.14, 1.0, 0.21)], abs=0.1)


def test_a_loss_that_hardly_moves_is_not_squeezed_against_zero() -> None:
    ticks = texts(ElementTree.fromstring(str(loss_plot("2", points(1.05, 1.02, 1.0), []))))
    assert ticks[0] == "1" and "1.05" in ticks


def test_the_timeline_shows_waiting_before_the_stage_and_no_bar_too_narrow_to_see() -> None:
    svg = ElementTree.fromstring(str(timeline_plot([Bar("a", 20, 0.001, 10), Bar("b", 20, 80, 0)])))
    loading, narrow, wide = svg.findall("rect")
    assert (loading.get("class"), loading.get("x"), loading.get("width")) == ("loading", "10.000%", "10.000%")
    assert narrow.get("width") == "0.400%" and (wide.get("x"), wide.get("width")) == ("20.000%", "80.000%")
    assert texts(svg)[:4] == ["0 s", "30 s", "1 min", "1 min 30 s"] and "0 s (+ 10 s loading)" in texts(svg)
