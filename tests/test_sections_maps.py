from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from bundles import bundle, int8, network, with_attributions, with_features, with_trust
from interpret import drawing
from interpret.comparison import compare
from interpret.findings import findings_of
from interpret.measures import explanations as explanations_of
from interpret.reporting import ReportOptions, _subject, build_report, render_html, render_pdf
from interpret.sections import explanations, features, trust
from interpret.sections.subject import Subject
from interpret.sections.verdict import reservations
from test_reporting import Page, figures

WEIGHTS = network(widths=(8, 12, 16))


def everything(content):
    with_attributions(content)
    with_trust(content)
    with_features(content)


def pass_over(content):
    content["manifest"]["collectors"]["attributions"] = {
        "status": "skipped",
        "message": "nobody asked for attributions",
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return bundle(WEIGHTS, tmp_path_factory.mktemp("plain"), edit=pass_over)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return bundle(WEIGHTS, tmp_path_factory.mktemp("full"), edit=everything)


def data(*evidence):
    several = len(evidence) > 1
    return explanations.build(Subject.of(compare(*evidence, labels="abc"[: len(evidence)]) if several else evidence[0]))


def page(source) -> Page:
    return Page(render_html(build_report(_subject(source, ReportOptions()), ReportOptions())))


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


# Contact sheet --------------------------------------------------------------------------------------------------------


def test_a_row_per_image_and_a_column_per_method(full):
    sheet = data(full)["sheet"]
    (block,) = sheet["blocks"]
    assert block["methods"] == ["grad-cam", "layer-cam", "saliency", "integrated-gradients", "guided-backprop"]
    assert [row["name"] for row in block["rows"]] == [f"image_{number:02d}.png" for number in range(4)]
    tile = 16 * 7  # a photo of 16 pixels, enlarged by the whole factor that fits
    assert {(row["figure"].width, row["figure"].height) for row in block["rows"]} == {(6 * tile + 5 * 3, tile)}


def test_the_class_and_its_score_stand_at_the_image(full):
    target, score = full.array("maps", "targets")[2, 0], full.array("maps", "scores")[2, 0]
    (text,) = data(full)["sheet"]["blocks"][0]["rows"][2]["explained"]
    assert text.startswith(f"class {target}, score ")
    assert float(text.rpartition(" ")[2]) == pytest.approx(score, rel=5e-3)


def test_the_scale_is_the_percentile_of_what_is_drawn(full):
    (block,) = data(full)["sheet"]["blocks"]
    methods = ("saliency", "integrated-gradients", "guided-backprop")
    shown = (full.array("attributions", method)[:, 0] for method in methods)
    saliency, signed, colours = (np.repeat(np.repeat(values, 7, 2), 7, 3) for values in shown)
    tops = [saliency.max(1), np.abs(signed.sum(1)), np.abs(colours)]
    for texts, top, start in zip(block["under"][2:], tops, ("0 … ", "±", "±"), strict=True):
        written = texts[0][1]
        assert written.startswith(start)
        assert float(written.removeprefix(start)) == pytest.approx(np.percentile(top, 99), rel=5e-3)
    assert [text for _, text in block["under"][3][1:]] == ["gap 0.4\N{NO-BREAK SPACE}%", "64 steps"]


def test_maps_are_taken_at_the_call_named_last(plain):
    sheet = data(plain)["sheet"]
    last = next(call.key for call in plain.calls if call.last)
    assert sheet["place"].key == last  # said once above, not under every column
    assert not any(texts for texts in sheet["blocks"][0]["under"])


def test_many_methods_wrap_into_even_blocks(tmp_path):
    names = [f"method-{number}" for number in range(11)]
    sheet = data(bundle(WEIGHTS, methods=names))["sheet"]
    assert [block["methods"] for block in sheet["blocks"]] == [names[:6], [*names[6:], ""]]
    assert len({row["figure"].width for block in sheet["blocks"] for row in block["rows"]}) == 1


def test_runs_lie_below_each_other_and_what_one_lacks_stays_white(full, plain):
    (block,) = data(full, plain)["sheet"]["blocks"]
    figure = block["rows"][0]["figure"]
    tile = 16 * 7
    assert figure.height == 2 * tile + 3
    drawn = pixels(figure.content)
    second = drawn[tile + 12 :]
    assert (second[:, : tile - 8] >= 250).all()  # the photo stands once
    assert (second[:, 3 * (tile + 3) + 8 :] >= 250).all()  # the other run has no attributions
    assert (second[:, tile + 11 : 3 * tile] < 200).any()
    assert len(block["rows"][0]["explained"]) == 2


def test_remarks_are_said_once_with_their_runs(full):
    again = bundle(int8(WEIGHTS), edit=with_attributions)
    remarks = data(full, again)["remarks"]
    assert [text for _, text in remarks] == [
        "Refused: cam needs a linear head that reads the mean.",
        "guided-backprop: guided at 3 rectifiers.",
    ]
    assert [[run.label for run in runs] for runs, _ in remarks] == [["a", "b"]] * 2


def test_what_was_not_recorded_names_its_option(plain, full):
    assert [option for _, option in data(plain)["absent"]] == [
        "--methods saliency,integrated-gradients,...", "--trust", "--features",
    ]  # fmt: skip
    assert data(full)["absent"] == []
    assert not [text for text in reservations(Subject.of(plain)) if "attributions" in text]
    text = page(plain).text
    assert "Not recorded: attributions of the input" in text
    assert "Trust in the maps" not in text


def test_without_any_explanation_the_section_says_so():
    def forget(content):
        del content["maps"]

    with bundle(WEIGHTS, edit=forget) as bare:
        assert data(bare) is None


# Quality --------------------------------------------------------------------------------------------------------------


def spoil(content):
    maps = content["maps"]
    squares = np.full((4, 1, 3), 1.0)
    squares[:, :, 1] = 4e-7  # 2 G^2 < 1e-6
    squares[0, 0, 1] = 6e-7  # and here not
    maps["gradient_square"] = squares.astype(np.float32)
    for key in content["manifest"]["settings"]["maps"]:
        maps[f"grad-cam++/{key}"] = np.abs(maps[f"grad-cam++/{key}"]) + np.eye(*maps[f"grad-cam++/{key}"].shape[2:])
        maps[f"grad-cam/{key}"] = maps[f"grad-cam/{key}"] + np.eye(*maps[f"grad-cam/{key}"].shape[2:])
    maps["grad-cam/conv1"][0] = -1.0
    maps["grad-cam/conv1"][1] = 0.0
    maps["grad-cam/layer1.conv"][2] = 3.0
    maps["grad-cam/layer1.conv"][3, 0, 0, 0] = np.nan
    maps["grad-cam/layer2.conv"][3, 0, 0, 0] = np.inf


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    return bundle(WEIGHTS, tmp_path_factory.mktemp("spoiled"), methods=("grad-cam", "grad-cam++"), edit=spoil)


def test_the_state_of_every_map(spoiled):
    states = explanations_of.map_states(spoiled)
    assert {key: found.ravel().tolist() for key, found in states["grad-cam"].items()} == {
        "conv1": [1, 1, 0, 0],
        "layer1.conv": [0, 0, 2, 3],
        "layer2.conv": [0, 0, 0, 3],
    }
    assert states["grad-cam++"]["layer1.conv"].ravel().tolist() == [0, 4, 4, 4]
    assert not states["grad-cam++"]["conv1"].any()


def test_the_grid_and_its_counts(spoiled):
    ((_, rows),) = data(spoiled)["quality"]["runs"]
    assert [(row["method"], row["maps"], row["counts"]) for row in rows] == [
        ("grad-cam", "12", ["2", "1", "2", "0"]),
        ("grad-cam++", "12", ["0", "0", "0", "3"]),
    ]
    assert rows[0]["chart"].label == "grad-cam: 2 blank, 1 constant, 2 not finite, of 12 maps"


def test_findings_count_the_maps_that_show_nothing(spoiled):
    found = {(finding.rule, finding.severity): finding.message for finding in findings_of(spoiled)}
    assert found["maps-not-finite", "warning"] == "NaN or infinite: 2 of 12 maps of grad-cam."
    assert found["maps-decided-by-a-constant", "notice"].endswith(
        "3 of 12 maps of grad-cam++. Another scale of the logits would give other maps."
    )
    messages = [finding.message for finding in findings_of(spoiled) if finding.rule == "maps-without-content"]
    assert messages == [
        "Blank, with no positive value: 2 of 12 maps of grad-cam.",
        "Constant, so nothing to see once scaled: 1 of 12 maps of grad-cam.",
    ]


def test_blank_overlays_say_so(spoiled):
    photo = np.full((64, 64, 3), 100, np.uint8)
    drawn = drawing.overlay_tile(photo, np.zeros((64, 64)))
    pale = round(255 - 0.4 * 155)
    assert (drawn[0, 0] == pale).all()
    assert (drawn == drawing.INK).all(2).sum() > 40  # the letters
    assert not (drawing.overlay_tile(photo, np.eye(64)) == drawing.INK).all(2).any()
    small = drawing.overlay_tile(photo[:9, :9], np.zeros((9, 9)))  # too small for letters: a cross
    assert [tuple(small[place, place]) for place in range(9)] == [drawing.INK] * 9


# Trust ----------------------------------------------------------------------------------------------------------------


def test_the_score_is_the_closed_form(tmp_path):
    evidence = bundle(WEIGHTS, edit=lambda content: with_trust(content, steps=2000))
    for name, q in (("grad-cam", 4.0), ("layer-cam", 1.2), ("random", 1.0), ("gaussian", 2.0)):
        # the integral of t^(1/q) is q / (q + 1), that of (1 - t)^q is 1 / (q + 1)
        assert explanations_of.faithfulness(evidence, name, "layer2.conv") == pytest.approx((q - 1) / (q + 1), abs=5e-3)


def test_methods_are_ranked_beside_their_controls(full):
    ((_, tested),) = trust.build(Subject.of(full))["runs"]
    assert [row["name"] for row in tested["ranking"]] == ["grad-cam", "centred Gaussian", "layer-cam", "random map"]
    best, gaussian, weak, _ = tested["ranking"]
    assert (best["beats"], best["probability"], best["drop"], best["increase"]) == (
        "4 of 4 images", "0.0625", "25\N{NO-BREAK SPACE}%", "1 of 4",
    )  # fmt: skip
    assert (weak["beats"], weak["probability"]) == ("0 of 4 images", "1.00")
    assert [cell["weak"] for row in tested["ranking"] for cell in row["cells"]] == [False] * 4 + [True] * 2 + [
        False
    ] * 2
    assert gaussian["beats"] == ""
    assert [row["verdict"] for row in tested["cascade"]["rows"]] == ["depends on the weights", "does not"]
    assert tested["cascade"]["stages"] == [(0, "fc"), (1, "conv1")]
    assert [panel["method"] for panel in tested["panels"]] == ["grad-cam", "layer-cam"]


def test_nothing_is_beaten_where_a_control_or_a_number_is_missing():
    def spoil(content):
        with_trust(content)
        content["trust"]["insertion/grad-cam/layer2.conv"][1, 3] = np.nan
        del content["trust"]["insertion/random/layer1.conv"]

    evidence = bundle(WEIGHTS, edit=spoil)
    assert explanations_of.wins(evidence, "grad-cam", "layer2.conv") == (3, 4, 0.3125)
    assert explanations_of.wins(evidence, "grad-cam", "layer1.conv") == (0, 0, 1.0)
    assert trust.build(Subject.of(evidence))["runs"]
    assert page(evidence).text.count("3 of 4 images") == 1


def test_attributions_are_ranked_at_the_input():
    def add(content):
        with_trust(content)
        for kind in ("insertion", "deletion", "drop", "increase"):
            for name, like in (("saliency", "layer-cam"), ("random", "random"), ("gaussian", "gaussian")):
                content["trust"][f"{kind}/{name}/input"] = content["trust"][f"{kind}/{like}/layer2.conv"]

    evidence = bundle(WEIGHTS, edit=add)
    (_, at_calls), (_, at_input) = trust.build(Subject.of(evidence))["runs"]
    assert "saliency" not in [row["name"] for row in at_calls["ranking"]]
    assert [row["name"] for row in at_input["ranking"]] == ["centred Gaussian", "saliency", "random map"]
    assert at_input["cascade"] is None
    assert any("At the input insertion" in finding.message for finding in findings_of(evidence))
    assert page(evidence).text.count("0 of 4 images") == 2


def test_findings_name_the_methods_that_do_not_beat_their_controls(full):
    found = {finding.rule: finding for finding in findings_of(full)}
    assert found["maps-no-better-than-controls"].severity == "notice"  # four images decide little
    assert found["maps-no-better-than-controls"].message == (
        "At layer2.conv insertion less deletion does not beat both a random map and a centred Gaussian on more than "
        "half of the images: layer-cam (0 of 4)."
    )
    assert found["maps-insensitive-to-weights"].message.endswith("(mean over the images, above 0.5): layer-cam (0.90).")


# Features -------------------------------------------------------------------------------------------------------------


def test_a_channel_has_its_picture_patches_and_reconstructions(full):
    (entry,) = features.build(Subject.of(full))["channels"]
    assert (entry["key"], entry["channel"]) == ("conv1", 5)
    excited = "excited by noise 0.125, this picture 7.50, best probe image 3.25"
    assert entry["excitation"] == f"{excited}; top of the scale {entry['limit']}"
    assert entry["patches"] == [("image_01.png", "3.25"), ("image_00.png", "2.00"), ("image_09.png", "1.00")]
    drawn = pixels(entry["sheet"].content)
    assert np.array_equal(drawn[:8, :8], full.array("features", "conv1/5/crops")[0])
    parts = full.array("features", "conv1/5/reconstructions")
    limit = np.percentile(np.abs(parts[:2]), 99)
    assert float(entry["limit"]) == pytest.approx(limit, rel=5e-3)
    place = np.round((np.clip(parts[1] / limit, -1, 1) + 1) / 2 * 254).astype(int)
    assert np.array_equal(drawn[11:19, 11:19], drawing.DIVERGING[place])
    assert (drawn[11:19, 22:30] == 255).all()  # not displayed: no reconstruction


def test_responses_are_one_grid_on_one_scale(full):
    (entry,) = features.build(Subject.of(full))["responses"]
    assert entry["text"] == "8 kernels of conv1, 16×16 each"
    assert entry["scale"].low == "\N{MINUS SIGN}" + entry["scale"].high
    assert (entry["figure"].width, entry["figure"].height) == (4 * (7 * 16 + 1) - 1, 2 * (7 * 16 + 1) - 1)


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compared", [False, True])
def test_every_picture_is_on_the_page_and_the_page_is_sound(full, plain, compared):
    source = compare(plain, full, labels=("plain", "full")) if compared else full
    report = build_report(_subject(source, ReportOptions()), ReportOptions())
    found = Page(render_html(report))
    assert len(found.all("img")) == len([figure for entry in report.entries for figure in figures(entry.data)])
    ids = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    assert all(attributes["href"][1:] in ids for attributes in found.all("a"))
    assert all("scope" in header for header in found.all("th"))
    for words in ("Quality of the maps", "Trust in the maps", "Randomised weights", "Features", "4 of 4 images"):
        assert words in found.text
    assert render_pdf(report).startswith(b"%PDF")


def test_a_real_audit_with_attributions_is_reported(tmp_path):
    torch = pytest.importorskip("torch")
    import interpret
    from networks import digit_images, trained_digits

    images = digit_images()[0][:2]
    methods = ("grad-cam", "grad-cam++", "cam", "saliency", "integrated-gradients", "full-grad", "guided-backprop")
    with interpret.audit(trained_digits(), images, methods=methods, display_count=2) as evidence:
        (block,) = data(evidence)["sheet"]["blocks"]
        assert block["methods"] == list(methods)
        gap = np.abs(evidence.array("attributions", "integrated-gradients/gap")).max()
        assert 0 <= gap < 0.05  # an audit takes at most 128 gradients
        assert math.isfinite(gap)
        colours = torch.from_numpy(evidence.array("attributions", "guided-backprop"))
        assert colours.shape[2] == 1  # gray images: signed sums, no colours
        assert all("red, green" not in text for text, _ in data(evidence)["sheet"]["scales"])
        written = drawing.write_previews(evidence)
        names = {path.name for path in written if path.parent.name == "attributions"}
        assert names == {f"{method}.png" for method in methods[3:]}
