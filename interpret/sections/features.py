"""What excites single channels: the picture that does most, the patches of the probe images, and what of them does."""

from __future__ import annotations

from typing import Any

import numpy as np

from interpret import drawing
from interpret.evidence import Array, Evidence
from interpret.sections.figures import png, scale
from interpret.sections.subject import Run, Subject
from interpret.sections.wording import count, number, shape

PATCHES = 9  # shown of a channel
RESPONSES_WIDTH = 480  # of the grid of responses, in pixels


def build(subject: Subject) -> dict[str, Any] | None:
    """Channels and responses of every run that was asked for them; None where none was."""
    runs = [run for run in subject.runs if subject.evidence[run.label].keys("features")]
    if not runs:
        return None
    channels = [entry for run in runs for entry in _channels(subject.evidence[run.label], run)]
    order = {layer.key: place for place, layer in enumerate(subject.layers)}
    channels.sort(key=lambda entry: (order.get(entry["key"], len(order)), entry["channel"], entry["run"].number))
    return {
        "channels": channels,
        "responses": [entry for run in runs for entry in _responses(subject.evidence[run.label], run)],
        "reconstructed": any(entry["limit"] for entry in channels),
        "scale": scale(-1, 1, drawing.DIVERGING, labels=("\N{MINUS SIGN}top", "0", "top")),
    }


def _channels(evidence: Evidence, run: Run) -> list[dict[str, Any]]:
    return [
        _channel(evidence, run, call.key, channel)
        for call in evidence.calls
        for channel in drawing.feature_channels(evidence, call.key)
    ]


def _channel(evidence: Evidence, run: Run, key: str, channel: int) -> dict[str, Any]:
    def array(name: str) -> Array:
        return evidence.array("features", f"{key}/{channel}/{name}")

    noise, picture, best = (float(value) for value in array("excitation"))
    names, patches, activations = evidence.manifest.inputs["names"], array("patches"), array("activations")
    sheet = drawing.feature_sheet(evidence, key, channel, PATCHES) if len(patches) else None
    reconstructed = np.isfinite(array("reconstructions")[:PATCHES]).any()
    where = f"{key}, channel {channel}"
    return {
        "run": run,
        "key": key,
        "channel": channel,
        "maximized": png(drawing.Picture(array("maximized")), f"The picture that excites {where}"),
        "excitation": [
            ("noise", number(noise)),
            ("this picture", number(picture)),
            ("best probe image", number(best)),
        ],
        "sheet": png(sheet, f"Patches that excite {where}, and what of them does") if sheet is not None else None,
        "patches": [
            (str(names[int(patch[0])]), number(float(value)))
            for patch, value in zip(patches[:PATCHES], activations, strict=False)
        ],
        "limit": number(sheet.high) if sheet is not None and reconstructed else "",
    }


def _responses(evidence: Evidence, run: Run) -> list[dict[str, Any]]:
    """The first displayed image under each kernel of the first convolution, as one grid."""
    drawn = []
    for name in evidence.keys("features"):
        kind, _, key = name.partition("/")
        if kind != "responses":
            continue
        values = evidence.array("features", name).astype(np.float64)
        low, high = drawing.value_range([values])
        picture = drawing.activation_picture(values, low, high, RESPONSES_WIDTH)
        text = f"{count(len(values))} kernels of {key}, {shape(values.shape[1:])} each"
        bar = scale(low, high, drawing.DIVERGING if low < 0 else drawing.VIRIDIS, float(np.abs(values).max(initial=0)))
        drawn.append(
            {"run": run, "key": key, "text": text, "figure": png(picture, f"Responses of {text}"), "scale": bar}
        )
    return drawn
