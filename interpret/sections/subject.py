"""What a report is about: one audit, or a reference and other runs, with their calls and images matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from interpret import charts, drawing
from interpret.evidence import Array, Call, Evidence
from interpret.findings import findings_of
from interpret.language import say
from interpret.sections.links import Links, links_of

if TYPE_CHECKING:
    from interpret.comparison import Comparison


ROWS_PER_RANKING = 3  # most changed calls per run that get a chapter
BRIEF_ROWS = 6  # most changed calls of all runs together in the brief form, but one of each run at least


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the templates name it.

    Attributes:
        number: decides colour and marker; 0 is the reference, or the only run.
        label: its name.
        links: its pages in MLflow, where the report is to lead there.
    """

    number: int
    label: str
    links: Links | None = None

    @property
    def marker(self) -> charts.Chart:
        """Return the run's coloured marker."""
        return charts.run_marker(self.number)


@dataclass(frozen=True, slots=True)
class Layer:
    """A call of the reference, or one that only another run has, with its counterparts.

    Attributes:
        id: anchor of its row and, with "chapter-" before it, of its chapter.
        key, position, type, kind: of the call; the position is None where the reference does not have it.
        calls: label to the run's call; a run without a counterpart is absent.
        numbers: label to the numbers of comparison.json; empty for a single run.
    """

    id: str
    key: str
    position: int | None
    type: str
    kind: str
    calls: Mapping[str, Call]
    numbers: Mapping[str, Mapping[str, Any]]

    @property
    def call(self) -> Call:
        """Return the first run's call that there is: the reference's where it has one."""
        return next(iter(self.calls.values()))


@dataclass(frozen=True)
class Subject:
    """What a report is about: one audit, or a comparison of several.

    Attributes:
        labels: names of the runs, the reference first.
        evidence: label to evidence.
        comparison: comparison.json, or None for one audit.
        detail: "matters" for chapters of the calls that matter, "all" for every call, "none" for no chapters,
            "brief" for tables of the calls that matter.
        source: what the comparison was made from; None for one audit.
        links: label to the run's pages in MLflow; a run without them is absent.
    """

    labels: tuple[str, ...]
    evidence: Mapping[str, Evidence]
    comparison: Mapping[str, Any] | None
    detail: str = "matters"
    source: Comparison | None = None
    links: Mapping[str, Links] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        source: Evidence | Comparison,
        detail: str = "matters",
        ui_url: str | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> Subject:
        """Return the subject of a report on one audit or on a comparison.

        Args:
            source: what the report is about.
            detail: which calls get a chapter.
            ui_url: address of MLflow's user interface, to which the report is to lead.
            origin: what MLflow says of the run of a single audit; a comparison knows its own.
        """
        if isinstance(source, Evidence):
            label = str(source.manifest.model["name"])
            links = links_of(ui_url, {label: origin or {}})
            return cls((label,), {label: source}, None, detail, links=links)
        links = links_of(ui_url, source.origins)
        return cls(tuple(source.labels), dict(source.evidence), source.to_dict(), detail, source, links)

    def cka_matrix(self, label: str) -> Array | None:
        """Debiased CKA of every call of the reference with every call of a run; None where not computable."""
        return None if self.source is None else self.source.cka_matrix(label)

    @property
    def reference(self) -> Evidence:
        """Return the reference, or the only audit."""
        return self.evidence[self.labels[0]]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs, the reference first."""
        return tuple(Run(number, label, self.links.get(label)) for number, label in enumerate(self.labels))

    @cached_property
    def others(self) -> tuple[Run, ...]:
        """The runs that are compared with the reference."""
        return self.runs[1:]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every call of the reference and every call that only another run has, in order."""
        if self.comparison is None:
            label = self.labels[0]
            return tuple(
                Layer(
                    f"layer-{call.position}", call.key, call.position, call.type, call.kind, {label: call}, {label: {}}
                )
                for call in self.reference.calls
            )
        return tuple(self._layer(number, entry) for number, entry in enumerate(self.comparison["layers"]))

    @cached_property
    def layer(self) -> Mapping[str, Layer]:
        """The layers by key; the reference's where two runs use a key for different calls."""
        added = {layer.key: layer for layer in self.layers if layer.position is None}
        return added | {layer.key: layer for layer in self.layers if layer.position is not None}

    def layer_of(self, label: str, key: str) -> Layer | None:
        """The layer that a run itself calls so."""
        own = (layer for layer in self.layers if label in layer.calls and layer.calls[label].key == key)
        return next(own, None)

    @cached_property
    def chapters(self) -> tuple[Layer, ...]:
        """The layers that get a chapter of their own, in order."""
        if self.detail not in ("matters", "brief"):
            return self.layers if self.detail == "all" else ()
        chosen = {layer.id for layer in self.layers if layer.id in self.stage_ends and self._is_pictured(layer)}
        if self.comparison is None:
            convolutions = [layer for layer in self.layers if layer.kind == "convolution" and self._is_pictured(layer)]
            found = (self.layer[finding.layer] for finding in findings_of(self.reference) if finding.layer)
            chosen |= {
                layer.id for layer in (*convolutions[:1], *convolutions[-1:], *found) if self._is_pictured(layer)
            }
        else:
            first = self.comparison["first_divergence"].values()
            ranked = (keys[:ROWS_PER_RANKING] for keys in self.comparison["ranking"].values())
            keys = [*(key for key in first if key), *(key for some in ranked for key in some)]
            chosen |= {self.layer[key].id for key in keys if key in self.layer}
        return tuple(layer for layer in self.layers if layer.id in chosen)

    @cached_property
    def listed(self) -> tuple[Layer, ...]:
        """The layers that the overview has a row for: in the brief form where runs diverge and what changed most."""
        if self.detail != "brief":
            return self.layers
        if self.comparison is None:
            return self.chapters
        each = max(1, BRIEF_ROWS // len(self.others))
        ranked = (keys[:each] for keys in self.comparison["ranking"].values())
        keys = {*self.comparison["first_divergence"].values(), *(key for some in ranked for key in some)}
        return tuple(layer for layer in self.layers if self.layer.get(layer.key) is layer and layer.key in keys)

    @cached_property
    def stage_ends(self) -> frozenset[str]:
        """Ids of the last layers of each spatial size that a convolution has: what only padding has is no stage."""
        sizes = {layer.call.spatial_shape for layer in self.layers if layer.kind in ("convolution", "attention")}
        ends = (layer for layer in self.layers if layer.call.stage_end and layer.call.spatial_shape in sizes)
        return frozenset(layer.id for layer in ends if layer.call.spatial_shape)

    @cached_property
    def displayed(self) -> tuple[int, ...]:
        """Displayed images of the reference that every run displays too."""
        count = int(self.reference.manifest.inputs["displayed"])
        return tuple(
            index for index in range(count) if all(self.image(run.label, index) is not None for run in self.runs)
        )

    def image(self, label: str, index: int) -> int | None:
        """The run's index of the reference's image, by digest; None where the run does not display it."""
        position = self._positions[label].get(index)
        return (
            position
            if position is not None and position < int(self.evidence[label].manifest.inputs["displayed"])
            else None
        )

    def displayed_by(self, label: str) -> list[int]:
        """The run's indices of the images that every run displays, in the reference's order."""
        return [self._positions[label][index] for index in self.displayed]

    def sample(self, label: str, index: int) -> int | None:
        """The run's index of the reference's image among all its probe images, by digest."""
        return self._positions[label].get(index)

    @cached_property
    def _positions(self) -> Mapping[str, Mapping[int, int]]:
        wanted = self.reference.manifest.inputs
        positions = {}
        for label, evidence in self.evidence.items():
            inputs = evidence.manifest.inputs
            tensors = _first_positions(inputs["tensor_sha256"])
            sources = _first_positions(inputs["source_sha256"])
            pairs = enumerate(zip(wanted["tensor_sha256"], wanted["source_sha256"], strict=True))
            found = {index: tensors.get(tensor, sources.get(source)) for index, (tensor, source) in pairs}
            positions[label] = {index: position for index, position in found.items() if position is not None}
        return positions

    def _layer(self, number: int, entry: Mapping[str, Any]) -> Layer:
        calls = {}
        for label in self.labels:
            key = entry["runs"].get(label, {}).get("call")
            if key is None and label == self.labels[0] and not _is_added(entry):
                key = entry["key"]
            if key in self.evidence[label].call:
                calls[label] = self.evidence[label].call[key]
        position = entry["position"]
        return Layer(f"layer-{number}", entry["key"], position, entry["type"], entry["kind"], calls, entry["runs"])

    def _is_pictured(self, layer: Layer) -> bool:
        return any(
            self.evidence[label].has("activations", f"{call.key}/values")
            or drawing.map_methods(self.evidence[label], call.key)
            or any(self.evidence[label].has("kernels", name) for name in call.tensors)
            for label, call in layer.calls.items()
        )


def class_name(evidence: Evidence, index: int) -> str:
    """The class's name up to its first comma, or its number."""
    names = evidence.manifest.model["class_names"]
    if index < 0:
        return say("a score given in Python")
    return str(names[index]).split(",")[0] if names and index < len(names) else say("class {number}", number=index)


def _is_added(entry: Mapping[str, Any]) -> bool:
    return any(run.get("presence") == "added" for run in entry["runs"].values())


def _first_positions(digests: Sequence[str]) -> dict[str, int]:
    positions: dict[str, int] = {}
    for index, digest in enumerate(digests):
        positions.setdefault(digest, index)
    return positions
