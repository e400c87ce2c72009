"""The main charts as matplotlib figures: right values, right scales, and plain errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import interpret
from bundles import bundle, network, zeroed_filters
from interpret import drawing, figures
from interpret.errors import LayerError, ReportError


@pytest.fixture(scope="module")
def weights():
    return network()


@pytest.fixture(scope="module")
def evidence(weights):
    return bundle(weights)


@pytest.fixture(scope="module")
def comparison(weights, evidence):
    damaged = bundle(zeroed_filters(weights, "layer2.conv.weight", share=0.5))
    return interpret.compare(evidence, damaged, labels=["published", "damaged"])


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}


def test_a_curve_holds_the_numbers_of_the_comparison(comparison):
    drawn = lines(figures.curves(comparison, "divergence"))
    assert set(drawn) == {"damaged"}
    entries = [layer["runs"]["damaged"]["divergence"] for layer in comparison.to_dict()["layers"]]
    known = [(place, value) for place, value in enumerate(entries) if value is not None]
    assert np.array_equal(np.column_stack(drawn["damaged"].get_data()), np.array(known))


def test_cka_is_drawn_as_its_distance_from_one(comparison):
    drawn = lines(figures.curves(comparison, "cka"))["damaged"].get_ydata()
    entries = [layer["runs"]["damaged"]["cka"] for layer in comparison.to_dict()["layers"]]
    assert drawn == pytest.approx([1 - value for value in entries if value is not None], abs=1e-12)


def test_both_runs_have_a_line_where_both_have_the_statistic(comparison):
    assert set(lines(figures.curves(comparison, "zero_share"))) == {"published", "damaged"}


def test_one_audit_has_its_own_curves(evidence):
    (line,) = lines(figures.curves(evidence, "zero_share")).values()
    assert np.array_equal(line.get_ydata(), evidence.array("layers", "zero_share").astype(float))
    assert np.array_equal(lines(figures.curves(evidence.folder, "zero_share"))["TinyNet"].get_ydata(), line.get_ydata())


def test_the_similarity_matrix_is_the_comparisons(comparison):
    image = figures.similarity(comparison).axes[0].get_images()[0]
    assert np.array_equal(image.get_array(), comparison.cka_matrix("damaged"))
    assert image.get_clim() == (0, 1)


def test_kernels_of_both_runs_share_one_scale(comparison):
    figure = figures.kernels(comparison, "conv1")
    weights = [evidence.array("kernels", "conv1.weight") for evidence in comparison.evidence.values()]
    limit = drawing.weight_limit(weights)
    pictures = [axes.get_images()[0].get_array() for axes in figure.axes[:2]]
    for weight, picture in zip(weights, pictures, strict=True):
        drawn = drawing.kernel_picture(np.asarray(weight, np.float64), limit).image().convert("RGBA")
        assert np.array_equal(picture, np.asarray(drawn))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["published", "damaged"]
    low, high = figure.axes[-1].get_ylim()
    assert (low, high) == pytest.approx((-limit, limit))


def test_activations_share_one_scale(comparison):
    figure = figures.activations(comparison, "layer2.conv", image=1)
    values = [drawing.decode_activations(run, "layer2.conv")[1] for run in comparison.evidence.values()]
    low, high = drawing.value_range([array[: figures.CHANNELS] for array in values])
    assert figure.axes[-1].get_ylim() == pytest.approx((low, high))
    assert "image" in figure.get_suptitle()


def test_maps_have_a_row_per_run_and_a_column_per_image(comparison):
    figure = figures.maps(comparison, "layer2.conv", "grad-cam")
    displayed = int(comparison.evidence["published"].manifest.inputs["displayed"])
    assert len(figure.axes) == 2 * displayed + 1
    assert [figure.axes[row * displayed].get_ylabel() for row in (0, 1)] == ["published", "damaged"]


def test_a_notebook_gets_a_png(comparison):
    assert figures.curves(comparison)._repr_png_().startswith(b"\x89PNG")


def test_what_is_not_there_is_said(comparison, evidence):
    with pytest.raises(ReportError, match=r"'diverg'; did you mean 'divergence'"):
        figures.curves(comparison, "diverg")
    with pytest.raises(ReportError, match=r"'zeros'.*zero_share"):
        figures.curves(evidence, "zeros")
    with pytest.raises(ReportError, match=r"'dead'.*damaged"):
        figures.similarity(comparison, "dead")
    for draw in (figures.kernels, figures.activations, figures.maps):
        with pytest.raises(LayerError, match=r"'layer9'"):
            draw(comparison, "layer9")
    with pytest.raises(LayerError, match="no kernels of 'avgpool'"):
        figures.kernels(comparison, "avgpool")
    with pytest.raises(ReportError, match=r"'gradcam'.*did you mean 'grad-cam'"):
        figures.maps(comparison, "layer2.conv", "gradcam")
    with pytest.raises(ReportError, match="no displayed image 99"):
        figures.activations(comparison, "layer2.conv", image=99)


def test_pyplot_stays_out():
    code = (
        "import sys; from interpret import figures; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
