"""The report's main charts as matplotlib figures, for notebooks and papers.

    from interpret import figures

    figures.curves(comparison, "divergence")
    figures.maps(comparison, "layer4.1.conv2", "grad-cam").savefig("maps.pdf")

They are drawn from evidence alone, on the report's scales and in its colours. pyplot does not know them: a figure goes
when nobody holds it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure as MatplotlibFigure

from interpret import drawing
from interpret.charts import RUN_COLOURS, marker_of
from interpret.errors import LayerError, ReportError, did_you_mean
from interpret.evidence import Array, Evidence, as_evidence
from interpret.sections.maps import fitted, raw_maps, shared_methods
from interpret.sections.subject import Layer, Run, Subject
from interpret.sections.wording import dissimilarity, shape

if TYPE_CHECKING:
    from interpret.comparison import Comparison

MARKERS = ("o", "s", "^", "D", "v", ">", "<", "p")  # a shape per run, for readers to whom colours look alike
LOGARITHMIC = ("weight_change", "divergence", "cka", "noise_floor", "noise_gram")
CHANNELS = 32  # of a layer that are drawn
SIDE = 160  # of a photo, in pixels


class Figure(MatplotlibFigure):
    """A matplotlib figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


def curves(source: Evidence | Comparison | str | Path, statistic: str = "divergence") -> Figure:
    """A statistic of every call over the depth of the network, a line per run.

    Args:
        source: a comparison, an audit, or the folder of one.
        statistic: of a comparison any number of its `layers` in comparison.json ("weight_change", "divergence", "cka",
            drawn as 1 - CKA, "zero_share", ...); of an audit any per-call array of layers.npz ("zero_share", ...).

    Raises:
        ReportError: there is no such statistic.
    """
    subject = _subject(source)
    series = _series(subject, statistic)
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    for run, values in series.items():
        known = [(place, value) for place, value in enumerate(values) if value is not None]
        line = axes.plot([place for place, _ in known], [value for _, value in known], label=run.label)[0]
        line.set(color=_colour(run), marker=MARKERS[marker_of(run.number)], markersize=3, linewidth=1)
    positive = [value for values in series.values() for value in values if value is not None and value > 0]
    if statistic in LOGARITHMIC and positive:
        axes.set_yscale("symlog", linthresh=min(positive))
        axes.set_ylim(bottom=0)
    for place, layer in enumerate(subject.layers):
        if layer.id in subject.stage_ends:
            axes.axvline(place, color="0.8", linewidth=0.7, linestyle="--", zorder=0)
    axes.set_xlabel("Position of the call; dashed: the ends of stages")
    axes.set_ylabel("1 \N{MINUS SIGN} CKA" if statistic == "cka" else statistic.replace("_", " "))
    axes.legend(frameon=False)
    return figure


def similarity(comparison: Comparison, run: str | None = None) -> Figure:
    """Debiased CKA of every call of the reference with every call of another run.

    Args:
        comparison: the comparison.
        run: label of the other run; None takes the first.

    Raises:
        ReportError: there is no such run, or the two share too few images.
    """
    label = comparison.others[0] if run is None else run
    if label not in comparison.others:
        raise ReportError(f"no run {label!r} is compared; there are {', '.join(map(repr, comparison.others))}")
    matrix = comparison.cka_matrix(label)
    if matrix is None:
        raise ReportError(f"{label!r} and the reference share too few images for similarities")
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap=_colours(drawing.VIRIDIS), interpolation="nearest")
    axes.set_xlabel(f"Call of {label}")
    axes.set_ylabel(f"Call of {comparison.reference}")
    figure.colorbar(image, label="Debiased CKA")
    return figure


def kernels(source: Evidence | Comparison | str | Path, layer: str) -> Figure:
    """The recorded kernels of a layer, a picture per run on one scale that is symmetric about 0.

    Raises:
        LayerError: there is no such layer, or none of its kernels is recorded.
    """
    subject = _subject(source)
    chosen = _layer(subject, layer)
    found: dict[Run, Array] = {}
    for run in subject.runs:
        evidence, call = subject.evidence[run.label], chosen.calls.get(run.label)
        names = [name for name in call.tensors if evidence.has("kernels", name)] if call else []
        if names:
            found[run] = np.asarray(evidence.array("kernels", names[0]), np.float64)
    if not found:
        raise LayerError(f"no kernels of {layer!r} are recorded")
    limit = drawing.weight_limit(list(found.values()))
    pictures = {run: drawing.kernel_picture(weight, limit) for run, weight in found.items()}
    first = next(iter(found.values()))
    colours = first.ndim == 4 and first.shape[1] == 3
    return _pictures(
        pictures, f"Kernels of {layer}, {shape(first.shape)}", -limit, limit, _gray() if colours else drawing.DIVERGING
    )


def activations(source: Evidence | Comparison | str | Path, layer: str, image: int = 0) -> Figure:
    """The first channels of a layer's output for a displayed image, a picture per run on one scale.

    Args:
        source: a comparison, an audit, or the folder of one.
        layer: key of the call.
        image: which of the displayed images that all runs share.

    Raises:
        LayerError: there is no such layer, or its output is not recorded.
        ReportError: there is no such image.
    """
    subject = _subject(source)
    chosen = _layer(subject, layer)
    shown = _displayed(subject, image)
    found: dict[Run, Array] = {}
    for run in subject.runs:
        evidence, call = subject.evidence[run.label], chosen.calls.get(run.label)
        position = subject.image(run.label, shown)
        if call is not None and position is not None and evidence.has("activations", f"{call.key}/values"):
            found[run] = drawing.decode_activations(evidence, call.key)[position][:CHANNELS]
    if not found:
        raise LayerError(f"no output of {layer!r} is recorded; audit with --layers {layer!r}")
    low, high = drawing.value_range(list(found.values()))
    pictures = {run: drawing.activation_picture(values, low, high) for run, values in found.items()}
    channels, name = len(next(iter(found.values()))), subject.reference.manifest.inputs["names"][shown]
    title = f"{layer}, channels 0 to {channels - 1} of {chosen.call.channels}, for {name}"
    return _pictures(pictures, title, low, high, drawing.DIVERGING if low < 0 else drawing.VIRIDIS)


def maps(source: Evidence | Comparison | str | Path, layer: str, method: str = "grad-cam") -> Figure:
    """A method's maps at a layer over the displayed images: a row per run, scaled per image for all runs together.

    Raises:
        LayerError: there is no such layer.
        ReportError: not every run that has the layer recorded such maps, or the runs display no common image.
    """
    subject = _subject(source)
    chosen = _layer(subject, layer)
    runs = [run for run in subject.runs if run.label in chosen.calls]
    methods = shared_methods(subject, chosen, runs)
    if method not in methods:
        recorded = f"recorded there: {', '.join(methods)}" if methods else "none are recorded there"
        raise ReportError(f"no {method!r} maps of {layer!r} in every run{did_you_mean(method, methods)}; {recorded}")
    _displayed(subject, 0)
    images = subject.reference.array("inputs", "images")[list(subject.displayed)]
    size = fitted(images.shape[1:3], SIDE)
    raw = [raw_maps(subject, chosen, run, method) for run in runs]
    figure = Figure(figsize=(0.6 + 1.7 * len(images), 0.4 + 1.7 * len(runs)), layout="constrained")
    figure.suptitle(f"{method} at {layer}", fontsize="medium")
    grid = figure.subplots(len(runs), len(images), squeeze=False)
    for column, photo in enumerate(images):
        heat = drawing.heatmap([of_run[column] for of_run in raw], size, shared=True)
        for row, run in enumerate(runs):
            axes = grid[row, column]
            axes.imshow(drawing.overlay_tile(drawing.photo_tile(photo, SIDE), heat[row]))
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(run.label, color=_colour(run))
    scale = figure.colorbar(_scale(0, 1, drawing.VIRIDIS), ax=grid, shrink=0.6, aspect=25, ticks=[0, 1])
    scale.ax.set_yticklabels(["0", "image's largest"])
    return figure


def _subject(source: Evidence | Comparison | str | Path) -> Subject:
    return Subject.of(as_evidence(source) if isinstance(source, (str, Path)) else source)


def _layer(subject: Subject, key: str) -> Layer:
    if key not in subject.layer:
        raise LayerError(f"no layer {key!r} in the evidence{did_you_mean(key, subject.layer)}")
    return subject.layer[key]


def _displayed(subject: Subject, image: int) -> int:
    """The reference's index of one of the images that all runs display."""
    if not 0 <= image < len(subject.displayed):
        raise ReportError(f"no displayed image {image}: the runs share {len(subject.displayed)} of them")
    return subject.displayed[image]


def _series(subject: Subject, statistic: str) -> Mapping[Run, Sequence[float | None]]:
    if subject.comparison is None:
        known = [name for name in subject.reference.keys("layers") if _is_per_call(subject.reference, name)]
        if statistic not in known:
            raise _unknown(statistic, known)
        values = subject.reference.array("layers", statistic)
        return {subject.runs[0]: [float(value) if math.isfinite(value) else None for value in values]}
    series = {
        run: [layer.numbers.get(run.label, {}).get(statistic) for layer in subject.layers] for run in subject.runs
    }
    if statistic == "cka":
        series = {run: [dissimilarity(value) for value in values] for run, values in series.items()}
    drawn = {run: values for run, values in series.items() if any(_is_number(value) for value in values)}
    if not drawn or not all(value is None or _is_number(value) for values in drawn.values() for value in values):
        numbers = [layer.numbers.get(run.label, {}) for run in subject.runs for layer in subject.layers]
        raise _unknown(statistic, sorted({name for each in numbers for name in each if _is_number(each[name])}))
    return drawn


def _unknown(statistic: str, known: Sequence[str]) -> ReportError:
    return ReportError(f"no statistic {statistic!r}{did_you_mean(statistic, known)}; there are {', '.join(known)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_per_call(evidence: Evidence, name: str) -> bool:
    return evidence.array("layers", name).shape == (len(evidence.calls),)


def _pictures(pictures: Mapping[Run, drawing.Picture], title: str, low: float, high: float, palette: Array) -> Figure:
    width = sum(picture.size[0] for picture in pictures.values())
    height = max(picture.size[1] for picture in pictures.values())
    inches = min(12.0, 3.2 * len(pictures))
    figure = Figure(figsize=(inches + 0.8, inches * height / width + 0.8), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    grid = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axes, (run, picture) in zip(grid, pictures.items(), strict=True):
        axes.imshow(picture.image().convert("RGBA"), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(run.label, color=_colour(run), fontsize="medium")
        axes.spines[:].set_visible(False)
    figure.colorbar(_scale(low, high, palette), ax=grid, shrink=0.8)
    return figure


def _scale(low: float, high: float, palette: Array) -> ScalarMappable:
    return ScalarMappable(Normalize(low, high), _colours(palette))


def _colours(palette: Array) -> ListedColormap:
    return ListedColormap(palette[: drawing.LEVELS].astype(np.float64) / 255)


def _gray() -> Array:
    return np.repeat(np.linspace(0, 255, drawing.LEVELS).round()[:, None], 3, axis=1)


def _colour(run: Run) -> str:
    return RUN_COLOURS[run.number % len(RUN_COLOURS)]
