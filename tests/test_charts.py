from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from interpret import charts

SVG = "{http://www.w3.org/2000/svg}"


def elements(chart: charts.Chart, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(chart.__html__()).findall(f"{SVG}{tag}")


def path(chart: charts.Chart, kind: str) -> str:
    return next(element.get("d") or "" for element in elements(chart, "path") if element.get("class") == kind)


def test_a_linear_curve_is_where_it_was_computed_by_hand():
    chart = charts.curves([[0.0, 1.0, 0.5]], "three values", runs=[0], width=154, height=128)
    # left 46, right 8, top 8, bottom 20: 100 wide, 100 high; 0 lies at y = 108, 1 at y = 8
    assert path(chart, "run-line-0") == "M46 108L96 8L146 58"


def test_a_logarithmic_curve_puts_decades_at_equal_distances_and_zero_on_the_base():
    chart = charts.curves([[1.0, 0.1, 0.01]], "decades", runs=[1], logarithmic=True, width=154, height=128)
    assert path(chart, "run-line-1") == "M46 8L96 58L146 108"
    with_zero = charts.curves([[1.0, 0.1, 0.0]], "decades", runs=[1], logarithmic=True, width=154, height=128)
    assert path(with_zero, "run-line-1").endswith("L146 108")


def test_a_missing_value_breaks_the_line():
    chart = charts.curves([[0.0, 1.0, None, 1.0, float("nan"), 0.0]], "gaps", runs=[0])
    assert path(chart, "run-line-0").count("M") == 3


def test_stems_skip_zeros():
    chart = charts.curves([[0.0, 1.0, None, 0.5]], "stems", runs=[0], joined=False)
    assert path(chart, "run-line-0").count("M") == 2


def test_every_run_has_its_own_marker_and_colour():
    markers = [charts.run_marker(run).__html__() for run in range(8)]
    assert len(set(markers)) == 8
    assert len({re.search('d="([^"]*)"', marker).group(1) for marker in markers}) == 8  # type: ignore[union-attr]
    assert len({charts.run_marker(run).__html__() for run in range(64)}) == 64


def test_markers_of_a_run_are_one_path():
    chart = charts.curves([[float(value) for value in range(300)]], "long", runs=[0])
    assert len(elements(chart, "path")) < 12
    assert not elements(chart, "circle")


def test_zero_filters_are_marked_below_the_line():
    chart = charts.filter_norms([1.0, 0.0, 2.0, 0.0], 2.0, "norms", run=0, width=94, height=46)
    # base line at 36, top at 6: 1.0 of 2.0 reaches 21; filters are 10 apart, from 46 on
    assert path(chart, "run-line-0") == "M51 36V21M71 36V6"
    assert path(chart, "alarm-line") == "M61 38v5M81 38v5"


def test_bars_are_clipped_to_their_box():
    assert 'd="M0 3H64V7H0Z"' in charts.share_bar(7.0).body
    assert 'd="M0 3H32V7H0Z"' in charts.share_bar(0.5).body


def test_a_state_grid_has_one_path_per_state_and_no_cell_where_there_is_no_map():
    chart = charts.state_grid([[0, 0, 1, 0], [None, 0, None, None]], "states", width=100, row=4)
    # columns of 25; lines at 0 and 4, 3.5 high; neighbours alike are one bar
    assert path(chart, "state-0") == "M0 0H50v3.5H0ZM75 0H100v3.5H75ZM25 4H50v3.5H25Z"
    assert path(chart, "state-1") == "M50 0H75v3.5H50Z"
    assert len(elements(chart, "path")) == 2
    assert (chart.width, chart.height) == (100, 8)
    assert charts.state_grid([], "none").height > 0


def test_a_panel_is_where_it_was_computed_by_hand():
    # left 20, right 4, top 5, bottom 14: 100 wide, 100 high
    lines = [([0.0, 0.5, 1.0], 0, ""), ([1.0, float("nan"), 2.0], 1, "5 2")]
    chart = charts.panel(lines, "panel", width=124, height=119)
    assert path(chart, "run-line-0") == "M20 105L70 55L120 5"
    assert path(chart, "run-line-1") == "M20 5M120 5"
    dashes = [element.get("stroke-dasharray") for element in elements(chart, "path")]
    assert dashes == [None, None, "5 2"]


def test_text_is_escaped_and_every_chart_says_what_it_shows():
    chart = charts.curves([[1.0]], '<script>"&', runs=[0])
    root = ElementTree.fromstring(chart.__html__())
    assert root.get("aria-label") == '<script>"&'
    assert "<script>" not in chart.__html__()
    assert ElementTree.fromstring(charts.run_marker(0).__html__()).get("aria-hidden") == "true"


@pytest.mark.parametrize("logarithmic", [True, False])
@pytest.mark.parametrize("values", [[], [None], [0.0], [0.0, 0.0], [5.0], [-1.0, 1.0], [1e-30, 1e30], [float("inf")]])
def test_odd_values_still_make_a_chart(values, logarithmic):
    chart = charts.curves([values], "odd", runs=[0], logarithmic=logarithmic)
    assert "nan" not in chart.body
    assert "inf" not in chart.body
    ElementTree.fromstring(chart.__html__())


def test_ticks_read_as_people_write_them():
    labels = [
        element.text for element in elements(charts.curves([[1e-6, 1.0]], "t", runs=[0], logarithmic=True), "text")
    ]
    assert {"1", "10⁻⁶"} <= set(labels)
    assert [element.text for element in elements(charts.curves([[0.0, 0.8]], "t", runs=[0]), "text")][:5] == [
        "0",
        "0.2",
        "0.4",
        "0.6",
        "0.8",
    ]
