"""How each image is explained by every method that was recorded, and how far such pictures can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from interpret import charts, drawing
from interpret.evidence import Array, Evidence
from interpret.language import listed, say
from interpret.measures.explanations import STATES, map_states
from interpret.sections import features, trust
from interpret.sections.figures import Scale, jpeg, scale
from interpret.sections.maps import last_mapped, shared_methods
from interpret.sections.subject import Layer, Run, Subject, class_name
from interpret.sections.wording import count, number, percent, sentence

TILE_SIDE = 112  # of a tile of the contact sheet, in pixels
COLUMNS = 10  # of a block, with the photo; more methods are split evenly over several blocks
FROM_ZERO, SIGNED, COLOURED = range(3)
STATE_NAMES = {  # of a map: in a row of others, and as the head of a column
    "fine": (say("fine"), say("Fine")),
    "blank": (say("blank"), say("Blank")),
    "constant": (say("constant"), say("Constant")),
    "not finite": (say("not finite"), say("Not finite")),
    "decided by the constant": (say("decided by the constant"), say("Decided by the constant")),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One method of the contact sheet: its maps at ``layer``, or where that is None its attributions of the input."""

    method: str
    layer: Layer | None


def build(subject: Subject) -> dict[str, Any] | None:
    """The contact sheet, the states of all maps, trust and features; None where no run explains anything."""
    parts = {"sheet": _sheet(subject), "quality": _quality(subject)}
    parts |= {"trust": trust.build(subject), "features": features.build(subject)}
    if all(part is None for part in parts.values()):
        return None
    return {
        **parts,
        "runs": subject.runs,
        "compared": subject.comparison is not None,
        "remarks": _remarks(subject),
        "absent": _absent(subject, parts),
    }


def _absent(subject: Subject, parts: dict[str, Any]) -> list[tuple[str, str]]:
    """What was not recorded, with the option that records it."""
    attributed = any(drawing.attribution_methods(evidence) for evidence in subject.evidence.values())
    wanted = (
        (say("attributions of the input"), "--methods saliency,integrated-gradients,...", attributed),
        (say("trust in the maps"), "--trust", parts["trust"] is not None),
        (say("features of channels"), "--features", parts["features"] is not None),
    )
    return [(what, option) for what, option, found in wanted if not found]


def _remarks(subject: Subject) -> list[tuple[list[Run], str]]:
    """Methods that were refused, and what limits the results of others; of equal sentences one, with its runs."""
    said: dict[str, list[Run]] = {}
    for run in subject.runs:
        settings = subject.evidence[run.label].manifest.settings
        refused = [say("Refused: {text}", text=text) for text in _texts(settings, "refused")]
        for text in (*refused, *_texts(settings, "notes")):
            said.setdefault(text, []).append(run)
    return [(runs, text) for text, runs in said.items()]


def _texts(settings: Mapping[str, Any], name: str) -> list[str]:
    """A sentence per method, which it starts with."""
    said = [(str(method), sentence(str(text))) for method, text in (settings.get(name) or {}).items()]
    return [
        text if text.startswith(method) else say("{method}: {text}", method=method, text=text) for method, text in said
    ]


# Contact sheet --------------------------------------------------------------------------------------------------------


def _sheet(subject: Subject) -> dict[str, Any] | None:
    columns = [*_map_columns(subject), *_attribution_columns(subject)]
    if not columns or not subject.displayed or not subject.reference.has("inputs", "images"):
        return None
    photos = [
        drawing.photo_tile(image, TILE_SIDE)
        for image in subject.reference.array("inputs", "images")[list(subject.displayed)]
    ]
    drawn = [_Drawn.of(subject, column, photos) for column in columns]
    places = {column.layer.id: column.layer for column in columns if column.layer}
    place = next(iter(places.values())) if len(places) == 1 else None
    if place:  # it is said once, above all columns
        drawn = [replace(one, under=()) if one.column.layer else one for one in drawn]
    repeated = _repeated(subject, columns)
    parts = [drawn]
    if len(drawn) >= COLUMNS:
        again = [one for one in drawn if one.column in repeated]
        parts = [part for part in (again, [one for one in drawn if one not in again]) if part]
    names = [str(subject.reference.manifest.inputs["names"][index]) for index in subject.displayed]
    explained = [[_explained(subject, run, place) for run in subject.runs] for place in range(len(photos))]
    return {
        "blocks": [
            {
                **_block(subject, some, len(some) + missing, photos, names, explained),
                "repeated": all(one.column in repeated for one in some),
            }
            for part in parts
            for some, missing in _even(part)
        ],
        "repeated": listed(column.method for column in repeated),
        "place": place,
        "scales": _scales(drawn),
        "several": any(_targets(evidence) > 1 for evidence in subject.evidence.values()),
    }


def _repeated(subject: Subject, columns: Sequence[Column]) -> list[Column]:
    """The columns whose maps of the same images the section on predictions draws too."""
    if not subject.reference.has("predictions", "logits"):
        return []
    layer = last_mapped(subject, subject.runs)
    methods = shared_methods(subject, layer, subject.runs) if layer else []
    return [column for column in columns if layer and column.layer is layer and column.method in methods]


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """A column's tiles by image and run (None where the run has no such picture), and the texts under it."""

    column: Column
    kind: int
    tiles: Sequence[Sequence[Array | None]]
    under: Sequence[tuple[Sequence[Run], str]]

    @classmethod
    def of(cls, subject: Subject, column: Column, photos: Sequence[Array]) -> _Drawn:
        return _drawn_maps(subject, column, column.layer, photos) if column.layer else _drawn(subject, column, photos)


def _even(drawn: Sequence[_Drawn]) -> list[tuple[Sequence[_Drawn], int]]:
    """As few blocks as hold all columns, about equally wide, each with how many columns it lacks of that width."""
    blocks = -(-len(drawn) // (COLUMNS - 1))
    width = -(-len(drawn) // blocks)
    parts = [drawn[start : start + width] for start in range(0, len(drawn), width)]
    return [(part, width - len(part)) for part in parts]


def _map_columns(subject: Subject) -> list[Column]:
    """The reference's methods, each at the call named ``last``, or else at its last one."""
    label, evidence = subject.labels[0], subject.reference
    layers = [layer for layer in subject.layers if label in layer.calls]
    found = []
    for method in dict.fromkeys(name.partition("/")[0] for name in evidence.keys("maps") if "/" in name):
        mapped = [layer for layer in layers if evidence.has("maps", f"{method}/{layer.calls[label].key}")]
        if mapped:
            last = next((layer for layer in mapped if layer.calls[label].last), mapped[-1])
            found.append(Column(method, last))
    return found


def _attribution_columns(subject: Subject) -> list[Column]:
    return [Column(method, None) for method in drawing.attribution_methods(subject.reference)]


def _drawn_maps(subject: Subject, column: Column, layer: Layer, photos: Sequence[Array]) -> _Drawn:
    """Overlays; per image on one scale for all runs."""
    stored = {
        run.label: subject.evidence[run.label].array("maps", name)[subject.displayed_by(run.label), 0]
        for run in subject.runs
        if run.label in layer.calls
        and subject.evidence[run.label].has("maps", name := f"{column.method}/{layer.calls[run.label].key}")
    }
    tiles: list[list[Array | None]] = []
    for place, photo in enumerate(photos):
        heat = drawing.heatmap([maps[place] for maps in stored.values()], photo.shape[:2], shared=True)
        overlays = dict(zip(stored, (drawing.overlay_tile(photo, one) for one in heat), strict=True))
        tiles.append([overlays.get(run.label) for run in subject.runs])
    return _Drawn(column, FROM_ZERO, tiles, [((), say("at {call}", call=layer.key))])


def _drawn(subject: Subject, column: Column, photos: Sequence[Array]) -> _Drawn:
    """Attributions; on one scale for all images and runs, which is printed under them."""
    method, views = column.method, {}
    said: dict[str, list[Run]] = {}
    for run in subject.runs:
        evidence = subject.evidence[run.label]
        if evidence.has("attributions", method):
            rows = subject.displayed_by(run.label)
            values = evidence.array("attributions", method)[rows, 0]
            views[run.label] = drawing.attribution_view(values, method, photos[0].shape[:2])
            for text in _under(evidence, method, values, rows):
                said.setdefault(text, []).append(run)
    limit = drawing.attribution_limit(list(views.values()))
    coloured = views[subject.labels[0]].ndim == 4
    from_zero = method in drawing.SEQUENTIAL_ATTRIBUTIONS
    kind = COLOURED if coloured else FROM_ZERO if from_zero else SIGNED
    tiles = [
        [
            drawing.attribution_tile(views[run.label][place], method, limit) if run.label in views else None
            for run in subject.runs
        ]
        for place in range(len(photos))
    ]
    scaled = f"0 \N{HORIZONTAL ELLIPSIS} {number(limit)}" if from_zero else f"\N{PLUS-MINUS SIGN}{number(limit)}"
    everywhere = len(views)  # what holds for every run needs no marker
    under = [((), scaled), *(((), text) if len(runs) == everywhere else (runs, text) for text, runs in said.items())]
    return _Drawn(column, kind, tiles, under)


def _under(evidence: Evidence, method: str, values: Array, rows: Sequence[int]) -> list[str]:
    """What is known of the quality of a method's attributions: what is missing, gradients taken, broken values."""
    texts: list[str] = []
    if evidence.has("attributions", f"{method}/gap"):
        gaps = np.abs(evidence.array("attributions", f"{method}/gap")[rows, 0])
        texts.append(say("gap {share}", share=percent(float(gaps.max()))))
    if evidence.has("attributions", f"{method}/steps"):
        steps = evidence.array("attributions", f"{method}/steps")[rows, 0]
        ends = [count(end) for end in sorted({int(steps.min()), int(steps.max())})]
        texts.append(say("{steps} steps", steps="\N{EN DASH}".join(ends)))
    if broken := int((~np.isfinite(values)).sum()):
        texts.append(say("{count} not finite", count=count(broken)))
    return texts


def _block(
    subject: Subject,
    drawn: Sequence[_Drawn],
    width: int,
    photos: Sequence[Array],
    names: Sequence[str],
    explained: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Columns side by side, filled up with white: a row of tiles per image and run, the photo at the first run's."""
    rows = []
    methods = [one.column.method for one in drawn]
    for place, (photo, name) in enumerate(zip(photos, names, strict=True)):
        paper = np.full_like(photo, 255)
        tiles = []
        for number_of_run in range(len(subject.runs)):
            found = [one.tiles[place][number_of_run] for one in drawn]
            tiles += [paper if number_of_run else photo, *(paper if tile is None else tile for tile in found)]
            tiles += [paper] * (width - len(drawn))
        alt = say("{image} explained by {methods}", image=name, methods=", ".join(methods))
        if subject.others:
            alt = say("{picture}; rows: {runs}", picture=alt, runs=", ".join(subject.labels))
        figure = jpeg(drawing.tile_sheet(tiles, width + 1), alt)
        rows.append({"name": name, "explained": explained[place], "figure": figure})
    return {
        "methods": [*methods, *[""] * (width - len(drawn))],
        "under": [*(one.under for one in drawn), *[[]] * (width - len(drawn))],
        "columns": width + 1,
        "rows": rows,
    }


def _explained(subject: Subject, run: Run, place: int) -> str:
    """The class that a run's maps explain for an image, and what it scores."""
    evidence, row = subject.evidence[run.label], subject.displayed_by(run.label)[place]
    if not evidence.has("maps", "targets"):
        return say("the class predicted")
    target = class_name(evidence, int(evidence.array("maps", "targets")[row, 0]))
    if not evidence.has("maps", "scores"):
        return target
    score = number(float(evidence.array("maps", "scores")[row, 0]))
    return say("{target}, score {score}", target=target, score=score)


def _targets(evidence: Evidence) -> int:
    return int(evidence.array("maps", "targets").shape[1]) if evidence.has("maps", "targets") else 1


def _scales(drawn: Sequence[_Drawn]) -> list[tuple[str, Scale]]:
    """A colour bar for each kind of column that there is, with what it stands for."""
    kinds, maps = {one.kind for one in drawn}, any(one.column.layer for one in drawn)
    magnitudes = any(one.column.layer is None and one.kind == FROM_ZERO for one in drawn)
    named = say("maps and magnitudes") if maps and magnitudes else say("maps") if maps else say("magnitudes")
    top, bottom = say("top"), say("\N{MINUS SIGN}top")
    grays = np.repeat(np.linspace(0, 255, drawing.LEVELS).round().astype(np.uint8)[:, None], 3, axis=1)
    bars = (
        (FROM_ZERO, named, drawing.VIRIDIS, ("0", "", top)),
        (SIGNED, say("signed sums over the channels"), drawing.DIVERGING, (bottom, "0", top)),
        (COLOURED, say("red, green and blue, each"), grays, (bottom, "0", top)),
    )
    return [(text, scale(0, 1, palette, labels=ends)) for kind, text, palette, ends in bars if kind in kinds]


# Quality --------------------------------------------------------------------------------------------------------------


def _quality(subject: Subject) -> dict[str, Any] | None:
    """Of the runs and methods that have maps which are not fine: a picture with a column per call, and counts."""
    runs = []
    for run in subject.runs:
        states = map_states(subject.evidence[run.label])
        keys = [call.key for call in subject.evidence[run.label].calls if any(call.key in at for at in states.values())]
        if states:
            runs.append((run, [_states_row(method, found, keys) for method, found in states.items()]))
    if not runs:
        return None
    spoiled = [(run, [row for row in rows if row["spoiled"]]) for run, rows in runs]
    total, broken = (sum(len(rows) for _, rows in some) for some in (runs, spoiled))
    return {
        "runs": [(run, rows) for run, rows in spoiled if rows],
        "states": [(charts.state_key(state), *STATE_NAMES[name]) for state, name in enumerate(STATES)],
        "fine": total - broken,
        "total": total,
        "calls": count(max(row["columns"] for _, rows in runs for row in rows)),
    }


def _states_row(method: str, found: Any, keys: Sequence[str]) -> dict[str, Any]:
    images = next(iter(found.values())).size
    columns = [found[key].ravel().tolist() if key in found else [None] * images for key in keys]
    flat = [state for column in columns for state in column if state is not None]
    counts = [flat.count(state) for state in range(1, len(STATES))]
    told = [
        say("{count} {state}", count=number, state=STATE_NAMES[name][0])
        for number, name in zip(counts, STATES[1:], strict=True)
        if number
    ]
    states = listed(told) if told else say("all fine")
    label = say("{method}: {states}, of {maps} maps", method=method, states=states, maps=len(flat))
    return {
        "method": method,
        "chart": charts.state_grid(list(zip(*columns, strict=True)), label),
        "maps": count(len(flat)),
        "counts": [count(number) for number in counts],
        "columns": len(keys),
        "spoiled": any(counts),
    }
