"""Images that another run puts into another class: which became which, what both looked at, and where it began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interpret import drawing
from interpret.evidence import Array
from interpret.language import Message, say
from interpret.sections.figures import Figure, jpeg
from interpret.sections.maps import classes_at, last_mapped, raw_maps, shared_methods
from interpret.sections.predictions import softmax
from interpret.sections.subject import Run, Subject, class_name
from interpret.sections.wording import count, percent

MOST = 4  # images shown
TILE_SIDE = 160  # of a photo and of each map, in pixels
PREFERRED = "grad-cam"  # whose maps are shown where both runs have them


def build(subject: Subject) -> dict[str, Any] | None:
    """The flipped images, those with pictures first; None where no run's predictions were compared."""
    compared = [run for run in subject.others if (subject.comparison or {})["predictions"].get(run.label)]
    if subject.comparison is None or not compared:
        return None
    found = {run.label: subject.comparison["predictions"][run.label] for run in compared}
    images = max(int(one["images"]) for one in found.values())
    flipped: dict[int, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run in compared:
        for flip in found[run.label]["flips"]:
            flipped.setdefault(int(flip["image"]), []).append((run, flip))
    if not flipped:
        sentence = say(
            "No prediction flipped: the most likely class is the same for all {images} images.", images=count(images)
        )
        return {"sentence": sentence, "images": [], "remark": None}
    probabilities = {run.label: softmax(subject.evidence[run.label]) for run in (subject.runs[0], *compared)}
    entries = [_flip(subject, image, pairs, probabilities) for image, pairs in flipped.items()]
    entries.sort(key=lambda entry: (not entry["displayed"], -entry["certainty"], entry["image"]))
    chosen = entries[:MOST]
    for entry in chosen:
        entry["picture"], entry["maps"] = _picture(subject, entry["run"], entry["image"])
    told = {"flipped": count(len(entries)), "images": count(images)}
    return {
        "sentence": say("The most likely class of {flipped} of {images} images flipped:", **told)
        if len(chosen) == len(entries)
        else say(
            "The most likely class of {flipped} of {images} images flipped; {shown} of them:",
            **told,
            shown=count(len(chosen)),
        ),
        "images": chosen,
        "remark": _remark(subject, chosen),
    }


def _flip(
    subject: Subject, image: int, pairs: list[tuple[Run, Mapping[str, Any]]], probabilities: Mapping[str, Array]
) -> dict[str, Any]:
    """One flipped image by the run that is most certain of another class; ``also`` names the others."""
    reference = subject.labels[0]

    def share(label: str, chosen: int) -> float:
        sample = subject.sample(label, image)
        return 0.0 if sample is None else float(probabilities[label][sample, chosen])

    run, flip = max(pairs, key=lambda pair: (share(pair[0].label, pair[1]["other_class"]), -pair[0].number))
    before, after = int(flip["reference_class"]), int(flip["other_class"])
    label = flip["label"]
    return {
        "image": image,
        "name": str(flip["name"]),
        "run": run,
        "also": [other for other, _ in pairs if other is not run],
        "before": class_name(subject.reference, before),
        "before_share": percent(share(reference, before)),
        "after": class_name(subject.evidence[run.label], after),
        "after_share": percent(share(run.label, after)),
        "label": None if label is None else class_name(subject.reference, int(label)),
        "leaves": subject.layer.get(flip["leaves_at"]) if flip["leaves_at"] else None,
        "certainty": share(run.label, after),
        "displayed": image in subject.displayed and subject.reference.has("inputs", "images"),
        "anchor": f"probe-{image}" if image in subject.displayed else f"image-{image}",
    }


def _picture(subject: Subject, run: Run, image: int) -> tuple[Figure | None, dict[str, Any] | None]:
    """The photo, and beside it both runs' maps on one scale where both have them; with what the maps are of."""
    if image not in subject.displayed or not subject.reference.has("inputs", "images"):
        return None, None
    name, reference = subject.reference.manifest.inputs["names"][image], subject.runs[0]
    photo = subject.reference.array("inputs", "images")[image]
    tiles, alt, maps = [drawing.photo_tile(photo, TILE_SIDE)], say("Probe image {image}", image=name), None
    layer = last_mapped(subject, (reference, run))
    if layer is not None:
        methods = shared_methods(subject, layer, (reference, run))
        method, place = PREFERRED if PREFERRED in methods else methods[0], subject.displayed.index(image)
        raw = [raw_maps(subject, layer, one, method)[place] for one in (reference, run)]
        heat = drawing.heatmap(raw, tiles[0].shape[:2], shared=True)
        tiles += [drawing.overlay_tile(tiles[0], one) for one in heat]
        alt = say(
            "Probe image {image}; beside it {method} at {call} in {reference} and in {run}, on one scale",
            image=name,
            method=method,
            call=layer.key,
            reference=reference.label,
            run=run.label,
        )
        maps = {"method": method, "layer": layer, "classes": _both(classes_at(subject, (reference, run), place))}
    return jpeg(drawing.tile_sheet(tiles, len(tiles)), alt), maps


def _both(classes: list[str]) -> str:
    """The class that two runs explain, or the one and the other."""
    return classes[0] if len(classes) == 1 else say("{first} and {second}", first=classes[0], second=classes[1])


def _remark(subject: Subject, chosen: list[dict[str, Any]]) -> Message | None:
    """Why some of the images have no picture."""
    if all(entry["displayed"] for entry in chosen):
        return None
    return say(
        "Pictures are kept of the displayed images alone, here {images}; an audit with {option} keeps more.",
        images=count(len(subject.displayed)),
        option="--display-count",
    )
