"""Layer chapters, probe pages and flipped predictions: what they show, against values computed apart."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from bundles import bundle, int8, network, probe, zeroed_filters
from interpret import charts, drawing
from interpret.comparison import compare
from interpret.functional import agreement
from interpret.functional.statistics import histogram
from interpret.reporting import ReportOptions, _subject, build_report, render_html, render_pdf
from interpret.sections import chapters, flips, maps, predictions, verdict
from interpret.sections.subject import Subject
from test_reporting import HOSTILE, Page, figures

WEIGHTS = network(widths=(8, 12, 16))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return bundle(WEIGHTS, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    return bundle(int8(WEIGHTS), tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return bundle(zeroed_filters(int8(WEIGHTS), "layer1.conv.weight"), tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="module")
def subject(reference, rounded, damaged):
    return Subject.of(compare(reference, rounded, damaged, labels=("published", "int8", HOSTILE)))


def page(source) -> Page:
    options = ReportOptions()
    return Page(render_html(build_report(_subject(source, options), options)))


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def lines(chart: charts.Chart, run: int) -> str:
    (path,) = re.findall(rf'<path class="run-line-{run}"[^>]* d="([^"]*)"', chart.body)
    return path


# Charts ---------------------------------------------------------------------------------------------------------------


def test_a_histogram_line_is_where_it_was_computed_by_hand():
    chart = charts.histogram_lines([[0.1, 1.0], [0.0, 0.01]], (-1, 1), "two runs", runs=[0, 2], width=154, height=128)
    # the axis: 46 to 146; decades 0, -1, -2 and below them the zeros, at 2.6 decades: 100 px high, from 8 down to 108
    assert lines(chart, 0) == f"M46 108V{8 + 100 / 2.6:.1f}H96V8H146V108"
    assert lines(chart, 2) == f"M46 108V108H96V{8 + 200 / 2.6:.1f}H146V108"
    assert chart.body.count('<path class="run-line') == 2
    assert 'stroke-dasharray="2 2"' in chart.body


def test_a_ranked_curve_falls_from_the_largest_to_the_smallest():
    chart = charts.ranked_curves([[0.1, 10.0, 1.0]], "shifts", runs=[1], width=154, height=128)
    assert points(lines(chart, 1)) == [(46, 8), (96, 58), (146, 108)]


def test_a_long_ranked_curve_keeps_its_ends_and_few_points():
    values = np.geomspace(1e-3, 1, 5000)
    drawn = points(lines(charts.ranked_curves([values.tolist()], "", runs=[0], width=154, height=128), 0))
    assert len(drawn) <= charts.MOST_POINTS + 1
    assert (drawn[0], drawn[-1]) == ((46, 8), (146, 108))
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)


def test_a_marked_position_is_a_line_from_top_to_bottom():
    chart = charts.curves([[0.0, 1.0, 2.0]], "", runs=[0], mark=1, width=154, height=128)
    assert 'class="mark-line"' in chart.body
    assert 'd="M96 8V108"' in chart.body


def test_strokes_differ_from_run_to_run():
    drawn = {str(charts.run_stroke(run).body) for run in range(8)}
    assert len(drawn) == 8
    assert len(set(charts.DASHES)) == len(charts.RUN_COLOURS)


# Histograms -----------------------------------------------------------------------------------------------------------


def test_shares_agree_with_the_values_where_the_bins_are_finer_than_the_intervals(reference):
    tensor = next(tensor for tensor in reference.tensors if tensor.name == "layer2.conv.weight")
    low, high = float(tensor.minimum), float(tensor.maximum)
    shares = chapters.histogram_shares(reference, tensor, low, high)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    values = WEIGHTS["layer2.conv.weight"].astype(np.float32).ravel()
    below = [(values < edge).mean() for edge in np.linspace(low, high, chapters.INTERVALS + 1)]
    # a bin is a quarter octave wide: within it the values are taken as evenly spread
    assert np.abs(np.cumsum(shares) - below[1:]).max() < 0.02


def test_a_value_on_its_own_is_a_spike(reference):
    counts = reference.array("weights", "histogram")[[0]]
    counts[:] = histogram(np.array([0.5] * 3 + [-1.0], np.float32))
    tensor = replace(reference.tensors[0], minimum=-1.0, maximum=0.5, index=0)

    class Stored:
        def array(self, kind, key):
            return counts

    shares = chapters.histogram_shares(Stored(), tensor, -1.0, 0.5)
    assert shares[0] > 0.2
    assert shares[40:].sum() == pytest.approx(0.75)
    assert not chapters.histogram_shares(Stored(), tensor, 2.0, 3.0).any()


def test_one_line_per_run_on_the_axis_of_all(subject):
    layer = subject.layer["layer1.conv"]
    found = chapters._histogram(subject, layer)
    assert [run.number for run, _ in found["key"]] == [0, 1, 2]
    tensors = [chapters._kernel_tensor(subject, label, layer) for label in subject.labels]
    low = chapters.number(min(tensor.minimum for tensor in tensors))
    assert f"from {low} to" in found["caption"]
    assert found["chart"].body.count('<path class="run-line') == 3


# Channels -------------------------------------------------------------------------------------------------------------


def test_channel_shifts_are_in_deviations_of_the_reference(subject, reference, rounded):
    layer = subject.layer["layer2.bn"]
    shifts = chapters.channel_shifts(subject, subject.runs[1], layer)
    mean, other = (evidence.channel("channel_mean", "layer2.bn") for evidence in (reference, rounded))
    deviation = np.sqrt(reference.channel("channel_variance", "layer2.bn"))
    expected = [abs(float(b) - float(a)) / float(d) for a, b, d in zip(mean, other, deviation, strict=True)]
    assert shifts == pytest.approx(expected, rel=1e-5)
    found = chapters._moved(subject, layer)
    most = int(np.argmax(expected))
    assert found["runs"][0][2].startswith(f"most: channel {most} (")


def test_the_same_run_moves_no_channel(reference, tmp_path):
    twin = Subject.of(compare(reference, bundle(WEIGHTS, tmp_path / "twin"), labels=("a", "b")))
    assert chapters._moved(twin, twin.layer["conv1"]) is None
    assert chapters._place(twin, twin.layer["conv1"]) is None
    assert flips.build(twin)["sentence"].startswith("No prediction flipped")
    assert flips.build(twin)["images"] == []


def test_channels_follow_the_filters_they_match(subject):
    layer = subject.layer["layer2.bn"]
    plain = chapters.channel_shifts(subject, subject.runs[1], layer)
    order = list(reversed(range(len(plain))))
    numbers = {**layer.numbers, "int8": {**layer.numbers["int8"], "kernels": {"order": order}}}
    moved = chapters.channel_shifts(subject, subject.runs[1], replace(layer, numbers=numbers))
    mean, other = (subject.evidence[label].channel("channel_mean", "layer2.bn") for label in ("published", "int8"))
    assert moved[0] == pytest.approx(
        abs(float(other[-1]) - float(mean[0]))
        / math.sqrt(float(subject.evidence["published"].channel("channel_variance", "layer2.bn")[0]))
    )


# Twins ----------------------------------------------------------------------------------------------------------------


def test_each_channel_has_its_own_top_which_the_runs_share():
    first = np.array([[[0.0, 1.0]], [[0.0, -8.0]], [[0.0, 0.0]]])
    second = np.array([[[2.0, np.nan]], [[4.0, np.inf]]])
    assert drawing.channel_tops([first, second], percentile=100).tolist() == [2.0, 8.0, 1.0]
    assert drawing.channel_tops([first], percentile=100).tolist() == [1.0, 8.0, 1.0]
    sparse = np.zeros((1, 1, 1000))
    sparse[0, 0, 0] = 3.0
    assert drawing.channel_tops([sparse]).tolist() == [3.0]  # the percentile is 0, the largest counts


def test_the_twin_shows_what_the_shared_scale_hides(subject, monkeypatch):
    layer = subject.layer["layer1.conv"]
    drawn = []
    picture = drawing.activation_picture

    def record(values, low, high, width):
        drawn.append((values, low, high))
        return picture(values, low, high, width)

    monkeypatch.setattr(drawing, "activation_picture", record)
    found = chapters._activations(subject, layer)
    assert len(found["twins"]) == len(found["figures"]) == 3
    shared, own = drawn[0], drawn[1]
    tops = drawing.channel_tops([values for values, *_ in drawn[::2]])
    assert own[1:] == (-1.0, 1.0)
    assert own[0] == pytest.approx(shared[0] / tops[:, None, None])
    assert found["twin_scale"].high == "channel's top"


# Places ---------------------------------------------------------------------------------------------------------------


def test_a_calls_rank_counts_the_calls_that_diverge_more(subject):
    values = {
        layer.key: layer.numbers["int8"]["divergence"]
        for layer in subject.layers
        if layer.numbers["int8"]["divergence"] is not None
    }
    for layer in subject.layers:
        larger = sum(value > values[layer.key] for value in values.values())
        assert chapters._rank(subject, "int8", layer) == f"{larger + 1} of {len(values)}"
    assert chapters._rank(subject, "published", subject.layers[0]) == chapters.MISSING


# Agreement and its nulls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grad-cam", "layer-cam"])
def test_agreement_and_nulls_per_image_average_to_those_of_the_comparison(reference, rounded, method):
    def same_targets(content):
        content["maps"]["targets"] = reference.array("maps", "targets")

    other = bundle(int8(WEIGHTS), edit=same_targets)
    one = Subject.of(compare(reference, other, labels=("a", "b")))
    layer = maps.last_mapped(one, one.runs)
    found = maps.image_agreement(one, layer, method)
    measured = layer.numbers["b"]["maps"][method]
    assert found.runs["b"].mean() == pytest.approx(measured["pearson"], abs=1e-9)
    assert found.other_image.mean() == pytest.approx(measured["null_other_image"], abs=1e-9)
    assert found.gaussian.mean() == pytest.approx(measured["null_gaussian"], abs=1e-9)
    stored = reference.array("maps", f"{method}/{layer.key}")[:, 0].astype(np.float64)
    others = [np.corrcoef(stored[1].ravel(), stored[place].ravel())[0, 1] for place in (0, 2, 3)]
    assert found.other_image[1] == pytest.approx(np.mean(others), abs=1e-9)
    gaussian = agreement.centred_gaussian(*stored.shape[1:])
    assert found.gaussian[1] == pytest.approx(np.corrcoef(stored[1].ravel(), gaussian.ravel())[0, 1], abs=1e-9)
    assert found.null(1) == max(found.other_image[1], found.gaussian[1])


def test_maps_of_different_classes_are_not_compared(reference):
    def other_target(content):
        targets = reference.array("maps", "targets").copy()
        targets[2] += 1
        content["maps"]["targets"] = targets

    one = Subject.of(compare(reference, bundle(int8(WEIGHTS), edit=other_target), labels=("a", "b")))
    found = maps.image_agreement(one, maps.last_mapped(one, one.runs), "grad-cam")
    assert np.isnan(found.runs["b"]).tolist() == [False, False, True, False]
    probes = {probe["index"]: probe for probe in predictions.build(one)["probes"]}
    cells = probes[2]["maps"]["rows"][1]["cells"]
    assert [(cell["text"], cell["weak"]) for cell in cells] == [(predictions.number(math.nan), False)] * 2
    assert len(probes[2]["maps"]["classes"]) == 2


def test_what_does_not_beat_its_null_is_flagged(reference):
    def shuffle(content):
        content["maps"]["targets"] = reference.array("maps", "targets")
        for name in list(content["maps"]):
            if name.startswith("grad-cam/"):  # each image has the map of another one
                content["maps"][name] = np.roll(reference.array("maps", name), 1, axis=0)

    one = Subject.of(compare(reference, bundle(int8(WEIGHTS), edit=shuffle), labels=("a", "b")))
    layer = maps.last_mapped(one, one.runs)
    found = maps.image_agreement(one, layer, "grad-cam")
    data = predictions.build(one)
    weak = 0
    for shown in data["probes"]:
        place = one.displayed.index(shown["index"])
        column = shown["maps"]["methods"].index("grad-cam")
        cell = shown["maps"]["rows"][1]["cells"][column]
        assert cell["weak"] == (found.runs["b"][place] <= max(found.other_image[place], found.gaussian[place]))
        weak += sum(cell["weak"] for row in shown["maps"]["rows"] for cell in row["cells"])
    assert any(shown["maps"]["rows"][1]["cells"][column]["weak"] for shown in data["probes"])
    assert data["weak"] == str(weak)
    assert page(compare(reference, bundle(int8(WEIGHTS), edit=shuffle))).text.count("≤ null") == weak + 1


# Flipped predictions --------------------------------------------------------------------------------------------------


def flipped(reference, *images, displayed=4):
    """The reference with the two most likely classes of some images exchanged."""

    def exchange(content):
        logits = content["predictions"]["logits"]
        for image in images:
            first, second = np.argsort(-logits[image])[:2]
            logits[image, [first, second]] = logits[image, [second, first]]
        content["maps"]["targets"] = reference.array("maps", "targets")

    return bundle(int8(WEIGHTS), edit=exchange, displayed=displayed)


def test_flipped_images_with_pictures_come_first_with_both_shares(reference):
    base = bundle(int8(WEIGHTS))
    logits = reference.array("predictions", "logits").argmax(1), base.array("predictions", "logits").argmax(1)
    agreeing = np.flatnonzero(logits[0] == logits[1])
    late, early = int(agreeing[-1]), int(agreeing[agreeing < 4][0])
    other = flipped(reference, late, early)
    one = Subject.of(compare(reference, other, labels=("a", "b")))
    found = flips.build(one)
    first = found["images"][0]
    assert first["displayed"]
    entry = next(entry for entry in found["images"] if entry["image"] == early)
    logits = reference.array("predictions", "logits")[early].astype(np.float64)
    share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert entry["before"] == f"class {logits.argmax()}"
    assert entry["before_share"] == predictions.percent(float(share.max()))
    assert entry["after"] == f"class {other.array('predictions', 'logits')[early].argmax()}"
    assert entry["anchor"] == f"probe-{early}"
    side = 16 * (flips.TILE_SIDE // 16)
    assert (entry["picture"].width, entry["picture"].height) == (3 * side + 6, side)
    assert (entry["maps"]["method"], entry["maps"]["layer"].key) == ("grad-cam", "layer2.conv")
    assert f"of {len(one.reference.manifest.inputs['names'])} images flipped" in found["sentence"]


def test_flips_without_a_picture_say_why_and_lead_to_their_row(reference):
    base = bundle(int8(WEIGHTS))
    same = reference.array("predictions", "logits").argmax(1) == base.array("predictions", "logits").argmax(1)
    late = int(np.flatnonzero(same)[-1])
    source = compare(reference, flipped(reference, late), labels=("a", "b"))
    found = flips.build(Subject.of(source))
    entry = next(entry for entry in found["images"] if entry["image"] == late)
    assert entry["picture"] is None
    assert "--display-count" in found["remark"]
    assert f"#image-{late}" in [link.get("href") for link in page(source).all("a")]


def test_the_other_run_that_is_most_certain_is_shown(reference):
    base = bundle(int8(WEIGHTS))
    same = reference.array("predictions", "logits").argmax(1) == base.array("predictions", "logits").argmax(1)
    image = int(np.flatnonzero(same)[0])

    def certain(content):
        content["predictions"]["logits"][image] = 0
        content["predictions"]["logits"][image, reference.array("predictions", "logits")[image].argmin()] = 20

    source = compare(reference, flipped(reference, image), bundle(int8(WEIGHTS), edit=certain), labels="abc")
    entry = next(entry for entry in flips.build(Subject.of(source))["images"] if entry["image"] == image)
    assert entry["run"].label == "c"
    assert [run.label for run in entry["also"]] == ["b"]
    assert entry["certainty"] == pytest.approx(1, abs=1e-6)


# The first pages ------------------------------------------------------------------------------------------------------


def test_the_verdict_names_weights_images_code_and_noise(subject, reference):
    found = verdict.build(subject)
    assert [row["state"] for row in found["identity"]["rows"]] == [
        evidence.manifest.checkpoint["state_sha256"] for evidence in subject.evidence.values()
    ]
    facts = {fact["name"]: fact for fact in found["identity"]["facts"]}
    assert facts["Probe images (probe_sha256)"]["texts"] == [reference.manifest.inputs["probe_sha256"]]
    assert reference.manifest.tool["version"] in facts["Audited with"]["texts"][0]
    floors = [
        entry["noise_floor"]
        for layer in subject.layers
        for entry in layer.numbers.values()
        if entry.get("noise_floor") is not None
    ]
    assert verdict.number(max(floors)) in found["noise"]
    numbers = [layer.numbers["int8"] for layer in subject.layers]
    moved = sum(entry["diverges"] for entry in numbers if entry["divergence"] is not None)
    assert found["runs"][0]["diverging"].startswith(f"{moved} of ")


def test_other_images_are_told_apart(reference, tmp_path):
    other = bundle(WEIGHTS, tmp_path / "other", images=probe(24, seed=7))
    facts = {
        fact["name"]: fact["differs"]
        for fact in verdict.build(Subject.of(compare(reference, other)))["identity"]["facts"]
    }
    assert facts["Probe images (probe_sha256)"]
    assert not facts["Architecture (architecture_digest)"]


# The whole ------------------------------------------------------------------------------------------------------------


def without_pictures(content):
    for kind in ("maps", "activations", "inputs", "kernels"):
        content.pop(kind, None)
    content["manifest"]["inputs"]["displayed"] = 0


def test_bundles_without_pictures_and_single_audits_are_drawn(reference):
    bare = bundle(WEIGHTS, edit=without_pictures)
    both = compare(bare, bundle(int8(WEIGHTS), edit=without_pictures))
    for source in (reference, bare, both):
        found = page(source)
        assert "Which weights, images and code" in found.text
        assert ("Histogram of the weights" in found.text) == bool(Subject.of(source).chapters)


def test_eight_runs_are_drawn_and_no_table_has_more_than_four(reference):
    runs = [bundle(zeroed_filters(WEIGHTS, "layer1.conv.weight", seed=seed)) for seed in range(7)]
    source = compare(reference, *runs, labels=[f"run {number}" for number in range(8)])
    options = ReportOptions()
    report = build_report(_subject(source, options), options)
    found = Page(render_html(report))
    assert len(found.all("img")) == len([figure for entry in report.entries for figure in figures(entry.data)])
    chapter = next(entry for entry in report.entries if entry.section.id == "chapters").data["chapters"][0]
    assert [len(table["runs"]) for table in chapter["statistics"]] == [4, 4]
    assert render_pdf(report).startswith(b"%PDF")


def test_hostile_names_are_text_and_links_lead_somewhere(reference, rounded, damaged):
    found = page(compare(reference, rounded, damaged, labels=("published", "int8", HOSTILE)))
    assert "<script>alert" not in found.markup.split("</script>", 1)[0].split("<body", 1)[-1]
    assert not [attributes for _, attributes in found.elements if "onmouseover" in attributes]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link["href"][1:] in ids for link in found.all("a") if link.get("href", "").startswith("#"))
