"""Reports of many runs, of two architectures, and of runs that hardly differ: what they leave out and what fits."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest

from bundles import bundle, network, scaled, shifted
from interpret import charts
from interpret.comparison import compare
from interpret.reporting import ReportOptions, _subject, build_report, render_html, render_pdf
from interpret.sections import alignment, appendix, explanations, identity, method, overview
from interpret.sections.subject import Subject
from test_reporting import Page

WEIGHTS = network(widths=(8, 12, 16))
MANY = 12
MM = 72 / 25.4  # points
PAPER = ("identity", "overview", "explanations", "method", "appendix")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A reference and eleven runs, of which the last two equal it."""
    changed = [scaled(WEIGHTS, "layer2.conv.weight", 1 + 0.05 * number) for number in range(1, MANY - 2)]
    folders = [tmp_path_factory.mktemp("run") for _ in range(MANY)]
    found = [bundle(one, folder) for one, folder in zip([WEIGHTS, *changed, WEIGHTS, WEIGHTS], folders, strict=True)]
    return compare(*found, labels=[f"checkpoint-{number:08}" for number in range(MANY)])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A network of two blocks and one of three: the third is in the second alone."""
    deeper = bundle(network(seed=1, widths=(8, 12, 16, 16)), tmp_path_factory.mktemp("deeper"))
    return compare(bundle(WEIGHTS, tmp_path_factory.mktemp("shallow")), deeper, labels=["shallow", "deeper"])


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Two networks whose names have nothing in common: their calls are paired by similarity."""
    deeper = network(seed=1, widths=(8, 12, 16, 16))
    renamed = bundle(deeper, tmp_path_factory.mktemp("renamed"), rename=lambda key: "stage" + key[::-1])
    return compare(bundle(WEIGHTS, tmp_path_factory.mktemp("plain")), renamed, labels=["shallow", "deeper"])


@pytest.fixture(scope="module")
def printed(many, tmp_path_factory):
    return printed_text(many, tmp_path_factory.mktemp("printed") / "report.pdf")


def printed_text(source, path, *chosen):
    """A report's PDF, of all sections or of some, and its text with what stands on a line on one line."""
    options = ReportOptions(sections=chosen or PAPER)
    path.write_bytes(render_pdf(build_report(_subject(source, options), options), options))
    return path, run("pdftotext", "-layout", path, "-")


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def page(source) -> Page:
    return Page(render_html(build_report(_subject(source, ReportOptions()), ReportOptions())))


def subject(source) -> Subject:
    return Subject.of(source)


# Many runs ------------------------------------------------------------------------------------------------------------


def test_no_word_of_twelve_runs_lies_beyond_the_margins(printed):
    path, _ = printed
    words = re.findall(r'<word xMin="([\d.]+)" yMin="[\d.]+" xMax="([\d.]+)"', run("pdftotext", "-bbox", path, "-"))
    assert len(words) > 1000
    assert min(float(left) for left, _ in words) >= 16 * MM - 1
    assert max(float(right) for _, right in words) <= (210 - 16) * MM + 1


def test_no_word_runs_into_the_next(printed):
    """Words of one line whose boxes lie on each other by more than a point: a cell that is too narrow."""
    path, _ = printed
    pattern = r'<word xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">(.*)</word>'
    for sheet in run("pdftotext", "-bbox", path, "-").split("<page ")[1:]:
        boxes = sorted((tuple(map(float, box[:4])), box[4]) for box in re.findall(pattern, sheet))
        for number, ((_, top, right, _), word) in enumerate(boxes):
            for (other, upper, _, _), next_word in boxes[number + 1 :]:
                if abs(upper - top) < 1 and boxes[number][0][0] < other < right - 1.5:
                    raise AssertionError(f"{word!r} lies on {next_word!r}")


def test_the_matrix_has_every_pair_once_in_tables_of_at_most_twelve_columns(many):
    wide = overview.build(subject(many))["matrix"]
    assert [len(part["runs"]) for part in wide] == [MANY]
    assert not wide[0]["named"]
    means = many.to_dict()["mean_cka"]
    text, _ = wide[0]["rows"][0][1][1]
    mantissa, _, power = text.partition("·10")
    superscripts = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    assert float(mantissa) * 10 ** int(power.translate(superscripts) or 0) == pytest.approx(1 - means[0][1], rel=5e-3)
    thirteen = compare(*many.evidence.values(), many.evidence["checkpoint-00000000"])
    parts = overview.build(subject(thirteen))["matrix"]
    assert [len(part["runs"]) for part in parts] == [7, 6]
    assert [run.label for part in parts for run in part["runs"]] == list(thirteen.labels)
    assert all(len(part["rows"]) == 13 for part in parts)


def test_equal_values_stand_once_with_their_runs(many):
    row = next(row for row in identity.build(subject(many))["differing"] if row["name"] == "Weights (state_sha256)")
    assert sorted(len(group["runs"]) for group in row["groups"]) == [1] * (MANY - 3) + [3]
    (three,) = (group for group in row["groups"] if len(group["runs"]) == 3)
    assert [run.number for run in three["runs"]] == [0, MANY - 2, MANY - 1]
    whole = many.evidence["checkpoint-00000000"].manifest.checkpoint["state_sha256"]
    assert (three["text"], three["title"]) == (whole[:16], whole)


def test_digests_within_a_text_are_shortened_too():
    runs = Subject.of(bundle(WEIGHTS)).runs
    row = identity.row_by_run(runs, "Targets", [f"those of audit {'0a' * 32}"])
    assert row["groups"][0]["text"] == "those of audit 0a0a0a0a0a0a0a0a"
    assert row["groups"][0]["title"] == f"those of audit {'0a' * 32}"
    assert identity.row_by_run(runs, "Device", ["cpu"])["groups"][0]["title"] == ""


def test_what_each_audit_recorded_is_one_line_where_all_say_the_same(many, printed):
    rows = method.build(subject(many))["collectors"]
    assert all(len(row["groups"]) == 1 for row in rows)
    assert re.search(r"kernels +all runs +ok\n", printed[1])


def test_what_one_run_lacks_is_told_of_it_alone():
    def forget(content):
        content["manifest"]["collectors"]["kernels"] = {"status": "failed", "message": "out of memory"}

    lacking = bundle(WEIGHTS, edit=forget)
    source = compare(*(bundle(WEIGHTS) for _ in range(3)), lacking, labels="abcd")
    (row,) = (row for row in method.build(subject(source))["collectors"] if row["name"] == "kernels")
    assert [("".join(run.label for run in group["runs"]), group["text"]) for group in row["groups"]] == [
        ("abc", "ok"), ("d", "failed: out of memory"),
    ]  # fmt: skip


def test_on_paper_the_files_are_named_by_the_digests_of_their_manifests(many, printed):
    digests = [one.digest for one in many.evidence.values()]
    assert all(digest in printed[1] for digest in digests)
    assert "activations.npz" not in printed[1]
    assert page(many).text.count("activations.npz") == 1


# What hardly differs --------------------------------------------------------------------------------------------------


def test_on_paper_only_the_tensors_that_differ_are_listed(many):
    tensors = appendix.build(subject(many))["tensors"]
    assert [row["name"] for row in tensors["paper"]] == ["layer2.conv.weight"]
    assert tensors["rows"][0]["name"] == "layer2.conv.weight"
    assert sorted(row["name"] for row in tensors["rows"]) == sorted(WEIGHTS)
    (sentence,) = tensors["sentences"]
    assert sentence.startswith(f"{len(WEIGHTS) - 1} of {len(WEIGHTS)} tensors have the same values")


def test_where_all_tensors_differ_the_most_changed_are_listed():
    other = {
        name: array + np.asarray(0.001 * (place + 1), array.dtype) * (np.abs(array) + 1)
        for place, (name, array) in enumerate(WEIGHTS.items())
    }
    other = {name: (array + 1 if array.dtype.kind == "i" else array) for name, array in other.items()}
    source = compare(bundle(WEIGHTS), bundle(other), labels="ab")
    tensors = appendix.build(subject(source))["tensors"]
    changes = {
        name: np.linalg.norm(np.float64(other[name]) - WEIGHTS[name]) / np.linalg.norm(WEIGHTS[name])
        for name in WEIGHTS
        if np.linalg.norm(WEIGHTS[name]) > 0
    }
    listed = [row["name"] for row in tensors["paper"]]
    assert 0 < len(listed) <= appendix.MOST_OF_ALL
    assert tensors["sentences"][0] == "Every tensor has other values in b."
    assert max(changes, key=changes.__getitem__) in listed[:3]  # changes are estimates, by a sketch


def test_a_run_whose_weights_all_differ_hides_nothing_of_the_others():
    elsewhere = {name: array + 1 for name, array in network(seed=3, widths=(8, 12, 16)).items()}
    near = shifted(WEIGHTS, "fc.bias", 0.5)
    tensors = appendix.build(subject(compare(bundle(WEIGHTS), bundle(elsewhere), bundle(near), labels="abc")))[
        "tensors"
    ]
    assert [row["name"] for row in tensors["paper"]] == ["fc.bias"]
    assert tensors["sentences"] == [
        "Every tensor has other values in b.",
        f"{len(WEIGHTS) - 1} of {len(WEIGHTS)} tensors have the same values in a and c.",
    ]


def test_calls_without_any_change_are_one_line_on_paper_and_keep_their_anchors(many, tmp_path):
    one = compare(
        many.evidence["checkpoint-00000000"], many.evidence["checkpoint-00000001"], labels=["before", "after"]
    )
    (table,) = overview.build(subject(one))["tables"]
    summed = [line for line in table["lines"] if line["row"] is None]
    assert summed
    numbers = {layer["key"]: layer["runs"]["after"] for layer in one.to_dict()["layers"]}
    for line in summed:
        for layer in line["layers"]:
            entry = numbers[layer.key]
            assert entry["divergence"] == 0
            assert entry["weight_change"] in (None, 0)
    shown = [
        layer for line in table["lines"] for layer in (line["layers"] if not line["row"] else [line["row"]["layer"]])
    ]
    assert [layer.key for layer in shown] == [layer.key for layer in subject(one).layers]
    pikepdf = pytest.importorskip("pikepdf")
    path, text = printed_text(one, tmp_path / "report.pdf", *PAPER)
    assert summed[0]["text"].partition(":")[0] in text
    with pikepdf.open(path) as document:
        names = document.Root.Names.Dests.Names
        assert {layer.id for layer in subject(one).layers} <= {str(names[i]) for i in range(0, len(names), 2)}
        with document.open_outline() as outline:
            titles = [item.title for section in outline.root for item in section.children]
    assert f"{summed[0]['layers'][0].position} {summed[0]['layers'][0].key}" in titles


# Two architectures ----------------------------------------------------------------------------------------------------


def test_networks_that_share_no_names_have_no_weight_change(apart):
    data = overview.build(subject(apart))
    assert "Weight change" not in [title for title, _, _ in data["curves"]]
    (table,) = data["tables"]
    assert [weighed for _, weighed in table["runs"]] == [False]
    assert {len(row["cells"]) for row in table["rows"]} == {3}
    assert appendix._changes(subject(apart), subject(apart).others) == {}  # nothing to rank tensors by


def test_a_network_with_another_block_keeps_the_change_of_the_weights_that_both_have(two):
    (table,) = overview.build(subject(two))["tables"]
    assert [weighed for _, weighed in table["runs"]] == [True]
    assert appendix._changes(subject(two), subject(two).others)["conv1.weight"] > 0


def test_calls_of_one_network_alone_are_one_line_on_paper(two):
    (table,) = overview.build(subject(two))["tables"]
    (line,) = (line for line in table["lines"] if line["row"] is None)
    alone = [layer.key for layer in subject(two).layers if list(layer.calls) == ["deeper"]]
    told = [layer.key for layer in line["layers"]]
    assert [key for key in alone if key in told] == told
    assert line["text"] == f"{len(told)} calls only in deeper: {told[0]} … {told[-1]}"


def test_the_alignment_has_axes_as_long_as_its_picture(apart):
    (drawn,) = alignment.build(subject(apart))["alignments"]
    rows, columns = (len(one.calls) for one in apart.evidence.values())
    assert drawn["left"].height / drawn["below"].width == pytest.approx(rows / columns, abs=2e-3)
    assert drawn["left"].label == "Calls of shallow"


@pytest.mark.parametrize("vertical", [False, True])
def test_an_axis_of_calls_has_its_ticks_in_the_middle_of_the_calls(vertical):
    axis = charts.call_axis(10, [(0, 4, "8×8"), (5, 9, "4×4")], "Calls", 400, vertical=vertical)
    pattern = r"M70 ([\d.]+)H74" if vertical else r"M([\d.]+) 0V4"
    assert [float(place) for place in re.findall(pattern, axis.body)] == [40 * (call + 0.5) for call in range(10)]
    assert "8×8" in axis.body
    assert "4×4" in axis.body
    assert (axis.height if vertical else axis.width) == 400


def test_stages_without_room_go_without_a_name():
    axis = charts.call_axis(100, [(0, 0, "112×112"), (1, 99, "56×56")], "Calls", 400)
    assert "112×112" not in axis.body
    assert "56×56" in axis.body


# Maps and tables of text ----------------------------------------------------------------------------------------------


def test_maps_that_the_predictions_draw_are_not_drawn_again_on_paper(tmp_path):
    evidence = bundle(WEIGHTS)
    sheet = explanations.build(Subject.of(evidence))["sheet"]
    assert [block["repeated"] for block in sheet["blocks"]] == [True]
    _, alone = printed_text(evidence, tmp_path / "alone.pdf", "explanations")
    assert "Every displayed image by every method" in alone
    _, both = printed_text(evidence, tmp_path / "both.pdf", "predictions", "explanations")
    assert "Every displayed image by every method" not in both
    assert f"The maps of {sheet['repeated']} are drawn for the same images" in " ".join(both.split())


def test_equal_summaries_stand_once_and_long_ones_end_on_paper_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(appendix, "SUMMARY_LINES", 4)
    text = "\n".join(f"line {number}" for number in range(10))

    class Summarised:
        def __init__(self, evidence, summary):
            self.evidence, self.summary = evidence, summary

        def __getattr__(self, name):
            return getattr(self.evidence, name)

    evidence = bundle(WEIGHTS)
    told = [Summarised(evidence, summary) for summary in (text, "short", text)]
    seen = Subject(labels=("a", "b", "c"), evidence=dict(zip("abc", told, strict=True)), comparison=None)
    long, short = appendix._summaries(seen)
    assert [run.label for run in long["runs"]] == ["a", "c"]
    assert (long["head"], long["text"]) == ("line 0\nline 1", text)
    assert long["more"].startswith("8 more lines; ")
    assert (short["head"], short["more"]) == ("short", "")
