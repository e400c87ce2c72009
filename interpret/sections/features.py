"""What excites single channels: the picture that does most, the patches of the probe images, and what of them does."""

from __future__ import annotations

from typing import Any

import numpy as np

from interpret import drawing
from interpret.evidence import Array, Evidence
from interpret.language import Message, say
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
        "scale": scale(-1, 1, drawing.DIVERGING, labels=(say("\N{MINUS SIGN}top"), "0", say("top"))),
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
    where = say("{call}, channel {channel}", call=key, channel=channel)
    shown = say("Patches that excite {where}, and what of them does", where=where)
    limit = number(sheet.high) if sheet is not None and reconstructed else ""
    return {
        "run": run,
        "key": key,
        "channel": channel,
        "maximized": png(drawing.Picture(array("maximized")), say("The picture that excites {where}", where=where)),
        "excitation": _excitation(number(noise), number(picture), number(best), limit),
        "sheet": png(sheet, shown) if sheet is not None else None,
        "patches": [
            (str(names[int(patch[0])]), number(float(value)))
            for patch, value in zip(patches[:PATCHES], activations, strict=False)
        ],
        "limit": limit,
    }


def _excitation(noise: str, picture: str, best: str, limit: str) -> Message:
    values = {"noise": noise, "picture": picture, "best": best}
    excitation = say("excited by noise {noise}, this picture {picture}, best probe image {best}", **values)
    return say("{excitation}; top of the scale {limit}", excitation=excitation, limit=limit) if limit else excitation


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
        text = say(
            "{kernels} kernels of {call}, {shape} each",
            kernels=count(len(values)),
            call=key,
            shape=shape(values.shape[1:]),
        )
        bar = scale(low, high, drawing.DIVERGING if low < 0 else drawing.VIRIDIS, float(np.abs(values).max(initial=0)))
        figure = png(picture, say("Responses of {kernels}", kernels=text))
        drawn.append({"run": run, "key": key, "text": text, "figure": figure, "scale": bar})
    return drawn
