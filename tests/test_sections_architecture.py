"""The architecture section: boxes and lines of the graph, calls side by side."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bundles import bundle, changed_call, network, scaled
from interpret import charts
from interpret.comparison import compare
from interpret.evidence import Call
from interpret.reporting import ReportOptions, build_report, render_html, render_pdf
from interpret.sections import architecture, module_graph, side_by_side
from interpret.sections.subject import Subject
from test_reporting import Page

SVG = "{http://www.w3.org/2000/svg}"
WEIGHTS = network(widths=(8, 12, 16))
SHORT = ReportOptions(sections=["architecture", "overview"])


def with_flow(content):
    """Each call uses the one before it, and the last container the stem too."""
    calls = content["manifest"]["calls"]
    used = [(position - 1,) for position in range(len(calls) - 1)] + [(0, len(calls) - 2)]
    content["manifest"]["calls"] = tuple(
        changed_call(call, sources=sources) for call, sources in zip(calls, used, strict=True)
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return bundle(WEIGHTS, tmp_path_factory.mktemp("reference"), edit=with_flow)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    changed = scaled(WEIGHTS, "layer1.conv.weight", 1.5)
    return bundle(changed, tmp_path_factory.mktemp("other"), edit=with_flow)


def subject_of(*evidence) -> Subject:
    return Subject.of(compare(*evidence, labels="abcdefg"[: len(evidence)]) if len(evidence) > 1 else evidence[0])


def paths(chart: charts.Chart, kind: str) -> str:
    found = ElementTree.fromstring(chart.__html__()).iter(f"{SVG}path")
    return "".join(element.get("d") or "" for element in found if element.get("class") == kind)


def call(position: int, name: str, *sources: int) -> Call:
    """A call of which only its place in the graph counts."""
    return Call(
        name, name, 0, position, "Conv2d", "convolution", (1, 3, 8, 8), (1, 3, 8, 8), "NCHW", 0, 0, (), name,
        False, False, None, None, None, True, False, sources,
    )  # fmt: skip


# Drawing --------------------------------------------------------------------------------------------------------------


def test_boxes_and_lines_lie_where_they_were_computed_by_hand():
    nodes = [charts.Node("input"), *(charts.Node(n, link=n, sources=s) for n, s in (("a", (0,)), ("b", (1,))))]
    nodes.append(charts.Node("c", link="c", sources=(1, 2)))
    chart = charts.flow_chart(nodes, "four boxes")
    # one column; one lane 6 wide: the chain lies at 14 + 6 = 20, the lane 14 to its left at 6;
    # rows are 16 high from 8 on, so boxes of 8 are centred at 16, 32, 48, 64
    assert paths(chart, "flow-empty") == "M16 12h8v8h-8Z"
    assert paths(chart, "bar") == "M16 28h8v8h-8ZM16 44h8v8h-8ZM16 60h8v8h-8Z"
    assert paths(chart, "flow-line") == "M20 20V28M20 36V44M20 52V60"
    # out below a (36), down the lane, in above c (60), each corner two pixels round
    assert paths(chart, "skip-line") == "M20 36q0 2 -2 2H8q-2 0 -2 2V56M6 56q0 2 2 2H18q2 0 2 2"


def test_every_use_of_an_output_is_one_line():
    sources = [(), (0,), (0, 1), (1,), (0, 2, 3), (2,), (5, 0)]
    nodes = [charts.Node(str(number), link="x", sources=used) for number, used in enumerate(sources)]
    chart = charts.flow_chart(nodes, "edges")
    following = sum(number - 1 in used for number, used in enumerate(sources))
    beyond = sum(source < number - 1 for number, used in enumerate(sources) for source in used)
    assert paths(chart, "flow-line").count("M") == following == 4
    skips = paths(chart, "skip-line")
    assert skips.count("q2 0 2 2") == beyond == 6  # each use turns in
    assert skips.count("q0 2 -2 2") == len({s for n, used in enumerate(sources) for s in used if s < n - 1}) == 3


def test_lines_go_on_in_the_next_column():
    nodes = [charts.Node("0"), *(charts.Node(str(n), link="x", sources=(n - 1,)) for n in range(1, 18))]
    nodes[17] = replace(nodes[17], sources=(2, 16))
    chart = charts.flow_chart(nodes, "two columns")
    assert chart.height == 8 + 9 * 16 + 8
    # the second column begins (680 + 20) / 2 = 350 further right, with box 9
    assert "M20 148V152M370 8V12" in paths(chart, "flow-line")
    assert "V152M356 8V136" in paths(chart, "skip-line")


def test_lanes_never_overlap():
    spans = [(first, first + length) for first in range(0, 40, 3) for length in [2 + first * 7 % 11]]
    lanes = charts._lanes(spans)
    for first, last in spans:
        for start, end in spans:
            if first < start < last:
                assert lanes[first] != lanes[start], (first, last, start, end)


def test_shades_marks_and_arcs():
    node = charts.Node("x", link="x", branched=True, levels=(0, None, 9), marked=(True, False, False))
    chart = charts.flow_chart([node], "cells")
    assert paths(chart, "level-fill-0") == "M10 12h8v8h-8Z"
    assert paths(chart, "level-fill-9") == "M28 12h8v8h-8Z"
    assert paths(chart, "flow-empty") == "M19 12h8v8h-8Z"
    assert paths(chart, "mark-line") == "M10 21h8"
    assert paths(chart, "flow-line") == "M14 10h-5q-4 0 -4 4v4q0 4 4 4h5"


def test_names_are_text_and_links_are_for_screens():
    node = charts.Node("<b>&", note="<i>", title="<u>&\n'\"", link='layer-0"><x', levels=(3,), marked=(False,))
    for linked in (False, True):
        chart = charts.flow_chart([node], 'alt "<s>"', linked=linked)
        root = ElementTree.fromstring(chart.__html__())  # escaped, so it is still XML
        assert [text.text for text in root.iter(f"{SVG}text")] == ["<b>&", "<i>"]
        links = list(root.iter(f"{SVG}a"))
        assert [link.get("href") for link in links] == (['#layer-0"><x'] if linked else [])
        assert [title.text for title in root.iter(f"{SVG}title")] == (["<u>&\n'\""] if linked else [])


# Boxes ----------------------------------------------------------------------------------------------------------------


def residual(blocks: int) -> list[Call]:
    """stem, then blocks of a, b and their sum."""
    steps = [call(0, "stem", -1)]
    for block in range(blocks):
        before, first = steps[-1].position, len(steps)
        steps += [
            call(first, f"layers.{block}.a", before),
            call(first + 1, f"layers.{block}.b", first),
            call(first + 2, f"layers.{block}", before, first + 1),
        ]
    return steps


def test_where_there_is_room_each_call_is_a_box():
    boxes = module_graph.boxes_of(residual(2))
    names = ["stem", "layers.0.a", "layers.0.b", "layers.0", "layers.1.a", "layers.1.b", "layers.1"]
    assert [box.name for box in boxes] == names
    assert [box.sources for box in boxes] == [(0,), (1,), (2,), (1, 3), (4,), (5,), (4, 6)]
    assert not any(box.branched for box in boxes)


def test_where_there_is_none_a_block_is_a_box_with_an_arc():
    boxes = module_graph.boxes_of(residual(3), most=4)
    assert [(box.name, len(box.calls)) for box in boxes] == [("stem", 1), *((f"layers.{n}", 3) for n in range(3))]
    assert [box.sources for box in boxes] == [(0,), (1,), (2,), (3,)]
    assert [box.branched for box in boxes] == [False, True, True, True]


def test_a_flat_network_is_cut_into_equal_parts():
    boxes = module_graph.boxes_of([call(n, str(n), n - 1) for n in range(500)], most=80)
    assert len(boxes) == 72
    assert {len(box.calls) for box in boxes} == {7, 3}
    assert boxes[0].name == "0 … 6"
    assert [box.sources for box in boxes] == [(n,) for n in range(72)]


def test_the_drawing_in_words():
    steps = residual(3)
    assert str(module_graph._words(steps, module_graph.boxes_of(steps, 4))) == (
        "Flow between 10 calls, drawn as 4 boxes. Calls that join several outputs: 3. "
        "The longest skip leads from stem to layers.0; it passes 2 others."
    )
    chain = [call(n, str(n), n - 1) for n in range(3)]
    assert str(module_graph._words(chain, module_graph.boxes_of(chain))).endswith("used by the next call alone.")


# Section --------------------------------------------------------------------------------------------------------------


def test_old_bundles_have_no_drawing_and_one_sentence(tmp_path):
    old = bundle(WEIGHTS, tmp_path)
    data = architecture.build(subject_of(old))
    assert data["graph"] is None
    assert data["tables"] == []
    page = render_html(build_report(subject_of(old), SHORT), SHORT)
    assert "Flow between the calls" not in page


def test_the_graph_shows_where_the_runs_part(reference, other):
    subject = subject_of(reference, other)
    nodes: list[charts.Node] = []
    original = charts.flow_chart
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            charts, "flow_chart", lambda given, *rest, **named: nodes.extend(given) or original(given, *rest, **named)
        )
        data = module_graph.graph(subject)
    assert data is not None
    nodes = nodes[: len(nodes) // 2]
    by_name = {node.label: node for node in nodes}
    assert [name for name, node in by_name.items() if any(node.marked)] == ["layer1.conv"]
    first = next(number for number, node in enumerate(nodes) if node.levels and node.levels[0])
    assert nodes[first].label == "layer1.conv"
    assert all(node.levels == (0,) for node in nodes[1:first])
    assert "b: weight change 0.5" in by_name["layer1.conv"].title
    assert nodes[-1].sources == (1, len(nodes) - 2)


def test_screen_links_lead_to_layers_and_paper_has_none(reference, other):
    subject = subject_of(reference, other)
    report = build_report(subject, SHORT)
    page = Page(render_html(report, SHORT))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [
        attributes["href"] for tag, attributes in page.elements if tag == "a" and attributes.get("tabindex") == "-1"
    ]
    assert len(links) >= len(reference.calls)
    assert {link.removeprefix("#") for link in links} <= ids
    data = architecture.build(subject)
    assert "<a " not in data["graph"]["paper"].__html__()
    assert data["graph"]["screen"].__html__().count("<a ") == len(reference.calls)
    assert f"All {len(reference.calls)} calls agree" in page.text
    assert render_pdf(report, SHORT).startswith(b"%PDF")


def test_many_runs_share_one_cell(reference, other):
    data = module_graph.graph(subject_of(reference, *[other] * 5))
    assert data is not None
    assert data["several"]
    assert data["runs"] == ()


# Side by side ---------------------------------------------------------------------------------------------------------


def test_what_became_of_a_call():
    conv = call(0, "a", -1)
    assert side_by_side.state_of(conv, conv) == "equal"
    assert side_by_side.state_of(None, conv) == "added"
    assert side_by_side.state_of(conv, None) == "removed"
    assert side_by_side.state_of(None, None) == "equal"
    assert side_by_side.state_of(conv, changed_call(conv, key="b", name="b")) == "renamed"
    for changes in (
        {"type": "Conv3d"},
        {"output_shape": (1, 4, 8, 8)},
        {"weight_shape": (3, 3, 1, 1)},
        {"parameters": 9},
    ):
        assert side_by_side.state_of(conv, changed_call(conv, **changes)) == "reshaped"


def test_equal_stretches_are_one_row_and_others_one_each(reference, tmp_path):
    wider = bundle(network(widths=(8, 12, 20)), tmp_path / "wider", edit=with_flow)
    data = architecture.build(subject_of(reference, wider))
    (table,) = data["tables"]
    keys = [call.key for call in reference.calls]
    reshaped = [key for key in keys if key.startswith("layer2") or key == "fc"]
    states = [row["state"] for row in table["rows"]]
    assert states[0] == "equal"
    equal = table["rows"][0]
    first = keys.index("layer2.conv")
    assert str(equal["sides"][0]["key"]) == f"{first} equal calls: {keys[0]} to {keys[first - 1]}"
    assert table["counts"]["reshaped"] >= len(reshaped)
    assert sum(table["counts"].values()) == len(keys)
    single = next(row for row in table["rows"] if row["sides"][0]["key"] == "layer2.conv")
    assert single["sign"] == "~"
    assert [side["shape"].split("×")[0] for side in single["sides"]] == ["16", "20"]


def test_other_names_are_one_row(reference, tmp_path):
    renamed = bundle(WEIGHTS, tmp_path / "renamed", rename=lambda key: f"net.{key}")
    (table,) = architecture.build(subject_of(reference, renamed))["tables"]
    (row,) = table["rows"]
    count = len(reference.calls)
    assert row["state"] == "renamed"
    assert re.match(rf"{count} calls: (.+) to (.+)", row["sides"][0]["key"])
    assert str(row["sides"][1]["key"]).startswith(f"{count} calls: net.")


def test_added_and_removed_calls_stand_on_their_side(reference, tmp_path):
    deeper = bundle(network(widths=(8, 12, 16, 24)), tmp_path / "deeper", edit=with_flow)
    for runs, state, sign, empty in (((reference, deeper), "added", "+", 0), ((deeper, reference), "removed", "−", 1)):
        (table,) = architecture.build(subject_of(*runs))["tables"]
        rows = [row for row in table["rows"] if row["state"] == state]
        assert rows
        assert all(row["sign"] == sign and row["sides"][empty] is None for row in rows)
        page = Page(render_html(build_report(subject_of(*runs), SHORT), SHORT))
        assert sum(attributes.get("class") == state for attributes in page.all("tr")) == len(rows)


def test_crowded_tables_fold_what_differs_too(reference, tmp_path, monkeypatch):
    deeper = bundle(network(widths=(8, 12, 16, 24, 32)), tmp_path / "deeper", edit=with_flow)
    subject = subject_of(reference, deeper)
    (long,) = side_by_side.tables(subject)
    monkeypatch.setattr(side_by_side, "MOST_ROWS", 2)
    (short,) = side_by_side.tables(subject)
    assert len(short["rows"]) < len(long["rows"])
    assert short["counts"] == long["counts"]
