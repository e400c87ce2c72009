"""Several runs against one reference: the join of measures and findings, and comparison.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret import notebook
from interpret.errors import InterpretError
from interpret.evidence import Call, Evidence, as_evidence, unique_labels
from interpret.findings import Finding, findings_between, findings_of, most_severe_first
from interpret.functional.matching import Matching
from interpret.functional.similarity import cka_matrix
from interpret.measures import CallPair, Measures, measure
from interpret.measures.predictions import Predictions
from interpret.measures.representations import mean_cka
from interpret.measures.runs import Run
from interpret.measures.timeline import Timeline, timeline_of
from interpret.measures.weights import TensorPair
from interpret.verdicts import first_divergence, ranking, verdict, weight_ratios

SCHEMA_VERSION = 1
FINDINGS_SHOWN = 5  # in a notebook


@dataclass(frozen=True, slots=True)
class Row:
    """One call of the comparison: the reference's, or one that only other runs have.

    Attributes:
        call: the reference's call, or the call of the first run that has it.
        in_reference: whether the reference has it.
        pairs: the measures by label; a label without this call is missing.
    """

    call: Call
    in_reference: bool
    pairs: Mapping[str, CallPair]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One reference and the runs that are held against it. It needs no model, no images and no GPU.

    Attributes:
        reference: label of the reference.
        labels: labels of all runs, the reference first.
        runs: by label the evidence with its arrays at hand, and what each run says of itself.
        origins: by label what is known of the MLflow run: `run_id`, `run_name`, `step`.
        measures: by label of every other run, what was measured against the reference.
        rows: the calls in the reference's order, with added calls behind their predecessors.
        verdict: by label, one word; see `verdicts.verdict`.
        ranking: by label, keys of the suspicious calls, most suspicious first.
        first_divergence: by label, key of the first call whose output differs, or None.
        findings: sentences about all runs, most severe first.
        mean_cka: R x R mean debiased CKA over calls and images that all runs share; None where not computable.
        timeline: where the runs are checkpoints of one training with known steps.
        no_timeline: why there is none.
    """

    reference: str
    labels: tuple[str, ...]
    runs: Mapping[str, Run]
    origins: Mapping[str, Mapping[str, Any]]
    measures: Mapping[str, Measures]
    rows: tuple[Row, ...]
    verdict: Mapping[str, str]
    ranking: Mapping[str, tuple[str, ...]]
    first_divergence: Mapping[str, str | None]
    findings: tuple[Finding, ...]
    mean_cka: tuple[tuple[float | None, ...], ...]
    timeline: Timeline | None
    no_timeline: str | None

    @property
    def evidence(self) -> Mapping[str, Evidence]:
        """Evidence by label."""
        return {label: run.evidence for label, run in self.runs.items()}

    @property
    def others(self) -> tuple[str, ...]:
        """Labels of all runs but the reference."""
        return self.labels[1:]

    def cka_matrix(self, label: str) -> NDArray[np.float64] | None:
        """Debiased CKA of every call of the reference with every call of another run, on their common images.

        Args:
            label: the other run.

        Returns:
            Shape (L, M), NaN where not computable; None where the runs share no images.
        """
        reference, other = self.runs[self.reference], self.runs[label]
        images = self.measures[label].common
        if not len(images[0]) or not all(run.evidence.has("layers", "gram") for run in (reference, other)):
            return None
        grams = [
            run.grams(np.arange(len(run.calls)), np.array(places, np.intp), recentre=True)
            for run, places in zip((reference, other), images, strict=True)
        ]
        return cka_matrix(*grams)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the verdicts, every call coloured by its change, and the first findings."""
        predictions = {label: self.measures[label].predictions for label in self.others}
        rows = [
            (
                label,
                self.verdict[label],
                self.first_divergence[label] or "none",
                ", ".join(self.ranking[label][:3]),
                "unknown" if predicted is None else f"{predicted.top1_agreement:.1%}",
            )
            for label, predicted in predictions.items()
        ]
        head = ("Run", "Verdict", "First divergence", "Look here first", "Same top-1")
        strips = [
            notebook.strip(
                f"{label}: {name} of every call, in order of execution",
                [(row.call.key, getattr(row.pairs[label], field) if label in row.pairs else None) for row in self.rows],
            )
            for label in self.others
            for field, name in (("weight_change", "relative change of the weights"), ("divergence", "divergence"))
        ]
        findings = [(finding.severity, finding.run, finding.message) for finding in self.findings[:FINDINGS_SHOWN]]
        facts = [("Reference", self.reference), ("Runs", len(self.labels)), ("Calls", len(self.rows))]
        parts = [notebook.table(head, rows), *strips]
        if findings:
            parts.append(notebook.table(("Severity", "Run", "Finding"), findings))
        return notebook.fragment(f"{self.reference} against {', '.join(self.others)}", facts, *parts)

    def to_dict(self) -> dict[str, Any]:
        """comparison.json: strict JSON, no NaN and no infinity; numbers are not rounded.

        ::

            {"schema_version": 1, "reference": LABEL,
             "runs": [{"label", "run_id", "run_name", "step", "device", "state_sha256", "model", "n_images",
                       "checkpoint", "file_sha256", "architecture_digest", "probe_sha256", "parameters", "status"}],
             "comparable": {LABEL: {"weights": bool, "activations", "maps", "predictions":
                                    "exact|subset|own-preprocessing|no", "images": int, "reasons": [str]}},
             "layers": [{"key", "position": int, or null for a call that the reference does not have,
                         "type", "kind", "unit", "output_shape", "runs": {LABEL: {
                             "call", "aligned_by", "presence", "weights", "weight_change", "weight_ratio",
                             "divergence", "gram_change", "mean_change", "noise_floor", "threshold", "diverges": bool,
                             "cka", "cka_p95", "neighbours", "log_amplification", "effective_rank", "stage",
                             "dead_units", "constant_units", "zero_share", "saturated_share", "nonfinite",
                             "leverage", "batchnorm_z_median", "batchnorm_log_variance",
                             "maps": {METHOD: {"pearson", "iou20", "centre_shift", "null_other_image", "null_gaussian",
                                               "images", "empty", "reason"}},
                             "kernels": {"by": "index|cosine|null", "by_index", "matched", "null",
                                         "order": [int], or null where it is the order as it is} or null,
                             "tensors": [{"name", "counterpart", "status", "change", "cosine", "filters",
                                          "changed_filters": int,
                                          "changed_filter_indices": [int], or null where all changed,
                                          "moved_filters": int, "zeroed_filter_indices": [int], "zero_filters",
                                          "near_zero_filters", "zeros", "entries", "distinct"}],
                             "reasons": [str]}}}],
             "ranking": {LABEL: [key]}, "first_divergence": {LABEL: key or null}, "verdict": {LABEL: str},
             "predictions": {LABEL: {"images", "top1_agreement", "churn", "churn_interval": [low, high], "kl_mean",
                                     "kl_max", "top5_overlap", "logit_change", "labelled", "accuracy",
                                     "reference_accuracy", "negative_flips", "positive_flips",
                                     "flips": [{"name", "label", "reference_class", "other_class", "image": int,
                                                "leaves_at": key or null}]}},
             "mean_cka": [[float or null]], rows and columns as in "runs",
             "timeline": see :meth:`interpret.measures.timeline.Timeline.to_dict`; null where the runs are no three or
                         more checkpoints of one training with known steps,
             "findings": [{"severity", "run", "layer", "rule", "message", "meaning", "next", "place"}]}

        `presence` is "removed" wherever a run lacks the call. `weight_ratio` is the change over the median change of
        the other changed tensors of its kind. In the reference's own entries, numbers that need a counterpart are null.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "reference": self.reference,
            "runs": [self._run(label) for label in self.labels],
            "comparable": {label: _comparable(self.measures[label]) for label in self.others},
            "layers": self._layers(),
            "ranking": {label: list(self.ranking[label]) for label in self.others},
            "first_divergence": {label: self.first_divergence[label] for label in self.others},
            "verdict": {label: self.verdict[label] for label in self.others},
            "predictions": {label: _predictions(self.measures[label].predictions) for label in self.others},
            "mean_cka": [list(row) for row in self.mean_cka],
            "timeline": None if self.timeline is None else self.timeline.to_dict(),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def _run(self, label: str) -> dict[str, Any]:
        manifest, origin = self.evidence[label].manifest, self.origins[label]
        return {
            "label": label,
            "run_id": origin.get("run_id"),
            "run_name": origin.get("run_name"),
            "step": origin.get("step"),
            "device": manifest.device,
            "state_sha256": manifest.checkpoint["state_sha256"],
            "model": manifest.model["name"],
            "n_images": manifest.inputs["count"],
            "checkpoint": manifest.checkpoint["uri"],
            "file_sha256": manifest.checkpoint["file_sha256"],
            "architecture_digest": manifest.model["architecture_digest"],
            "probe_sha256": manifest.inputs["probe_sha256"],
            "parameters": manifest.model["parameters"],
            "status": manifest.status,
        }

    def _layers(self) -> list[dict[str, Any]]:
        ratios = {label: weight_ratios(self.measures[label]) for label in self.others}
        return [
            {
                "key": row.call.key,
                "position": row.call.position if row.in_reference else None,
                "type": row.call.type,
                "kind": row.call.kind,
                "unit": row.call.unit,
                "output_shape": list(row.call.output_shape),
                "runs": {
                    self.reference: self._own(row),
                    **{label: _entry(row.pairs.get(label), ratios[label]) for label in self.others},
                },
            }
            for row in self.rows
        ]

    def _own(self, row: Row) -> dict[str, Any]:
        """The reference's own values of one call."""
        if not row.in_reference:
            return _entry(None, {})
        health = self.runs[self.reference].health[row.call.position]
        own = CallPair(row.call, row.call, None, health, health, noise_floor=health.noise_floor)
        return _entry(own, {}) | {"weights": "identical" if row.call.tensors else "none"}


def compare(
    reference: Evidence | str | Path,
    *others: Evidence | str | Path,
    labels: Sequence[str] | None = None,
    origins: Sequence[Mapping[str, Any]] | None = None,
) -> Comparison:
    """Hold runs against one reference, from their evidence alone.

    Args:
        reference: evidence, or the folder of a bundle.
        others: the runs in question.
        labels: names of the runs, the reference first; by default the MLflow run's name, the bundle's folder, or the
            model's name where the bundle is temporary. Repeated names get a number.
        origins: for each run what MLflow says of it: `run_id`, `run_name`, `step`; without a step the evidence's holds.

    Raises:
        InterpretError: there is nothing to compare with, or labels or origins do not fit the runs.
        EvidenceError: a folder holds no finished bundle.
    """
    evidence = [as_evidence(run) for run in (reference, *others)]
    if len(evidence) < 2:
        raise InterpretError("a comparison needs a reference and at least one other run; only one was given")
    for what, given in (("labels", labels), ("origins", origins)):
        if given is not None and len(given) != len(evidence):
            raise InterpretError(
                f"{len(given)} {what} were given for {len(evidence)} runs; give one for each, the reference first"
            )
    known = [
        {**origin, "step": item.manifest.checkpoint["step"] if origin.get("step") is None else origin["step"]}
        for item, origin in zip(evidence, origins or [{}] * len(evidence), strict=True)
    ]
    names = list(labels) if labels is not None else [_name(*item) for item in zip(evidence, known, strict=True)]
    unique = unique_labels(names)
    runs = {label: Run(item) for label, item in zip(unique, evidence, strict=True)}
    first, *rest = unique
    measures = {label: measure(runs[first], runs[label]) for label in rest}
    rows = _rows(runs[first], measures)
    shared = [
        [row.call.key, *(pair.other.key for pair in row.pairs.values() if pair.other is not None)]
        for row in rows
        if row.in_reference and all(pair.other is not None for pair in row.pairs.values())
    ]
    timeline, no_timeline = timeline_of(runs, dict(zip(unique, known, strict=True)))
    return Comparison(
        reference=first,
        labels=unique,
        runs=runs,
        origins=dict(zip(unique, known, strict=True)),
        measures=measures,
        rows=rows,
        verdict={label: verdict(found) for label, found in measures.items()},
        ranking={label: ranking(found) for label, found in measures.items()},
        first_divergence={label: first_divergence(found) for label, found in measures.items()},
        findings=_findings(runs, measures),
        mean_cka=tuple(tuple(row) for row in mean_cka(list(runs.values()), shared)),
        timeline=timeline,
        no_timeline=no_timeline,
    )


def _name(evidence: Evidence, origin: Mapping[str, Any]) -> str:
    if origin.get("run_name"):
        return str(origin["run_name"])
    folder = evidence.folder.resolve()
    if evidence.temporary:  # temporary: the folder's name is random
        return str(evidence.manifest.model["name"])
    return folder.parent.name if folder.name in ("interpret", "evidence") else folder.name


def _rows(reference: Run, measures: Mapping[str, Measures]) -> tuple[Row, ...]:
    """The calls of all runs: the reference's in order, each added call behind the one that precedes it in its run."""
    order: list[tuple[bool, str]] = [(True, call.key) for call in reference.calls]
    pairs: dict[tuple[bool, str], dict[str, CallPair]] = {row: {} for row in order}
    for label, found in measures.items():
        place = 0
        for pair in found.calls:
            row = (pair.reference is not None, pair.key)
            if row not in pairs:
                order.insert(place, row)
                pairs[row] = {}
            pairs[row][label] = pair
            place = order.index(row, 0) + 1
    return tuple(
        Row(
            reference.evidence.call[key] if mine else next(iter(pairs[mine, key].values())).call, mine, pairs[mine, key]
        )
        for mine, key in order
    )


def _findings(runs: Mapping[str, Run], measures: Mapping[str, Measures]) -> tuple[Finding, ...]:
    """Findings of all runs; of what another run says of itself, the warnings that the reference does not give too."""
    first, *rest = runs
    found = list(findings_of(runs[first], first))
    known = {(finding.rule, finding.layer) for finding in found}
    for label in rest:
        own = [item for item in findings_of(runs[label], label) if item.severity in ("critical", "warning")]
        found += findings_between(measures[label], label)
        other_network = measures[label].other_network  # whose layers have the same names by chance
        found += [item for item in own if other_network or (item.rule, item.layer) not in known]
    return most_severe_first(found)


# comparison.json ------------------------------------------------------------------------------------------------------


def _comparable(measures: Measures) -> dict[str, Any]:
    return {
        "weights": measures.weights,
        "activations": measures.activations,
        "maps": measures.maps,
        "predictions": measures.predicted,
        "images": measures.images,
        "reasons": list(measures.reasons),
    }


def _entry(pair: CallPair | None, ratios: Mapping[str, float]) -> dict[str, Any]:
    """One run's entry for one call; all null where the run lacks the call."""
    health = None if pair is None else pair.other_health
    return {
        "call": None if pair is None or pair.other is None else pair.other.key,
        "aligned_by": None if pair is None else pair.aligned_by,
        "presence": "removed" if pair is None else pair.presence,
        "weights": "none" if pair is None else pair.weights,
        "weight_change": None if pair is None else pair.weight_change,
        "weight_ratio": None if pair is None else ratios.get(pair.key),
        "divergence": None if pair is None else pair.divergence,
        "gram_change": None if pair is None else pair.gram_change,
        "mean_change": None if pair is None else pair.mean_change,
        "noise_floor": None if pair is None else pair.noise_floor,
        "threshold": None if pair is None or pair.divergence is None else pair.threshold,
        "diverges": pair is not None and pair.diverges,
        "cka": None if pair is None else pair.cka,
        "cka_p95": None if pair is None else pair.cka_p95,
        "neighbours": None if pair is None else pair.neighbours,
        "log_amplification": None if pair is None else pair.log_amplification,
        "effective_rank": health and health.effective_rank,
        "stage": health and health.stage,
        "dead_units": health and health.dead_units,
        "constant_units": health and health.constant_units,
        "zero_share": health and health.zero_share,
        "saturated_share": health and health.saturated_share,
        "nonfinite": health and health.nonfinite,
        "leverage": health and health.leverage,
        "batchnorm_z_median": health and health.batchnorm_z_median,
        "batchnorm_log_variance": health and health.batchnorm_log_variance,
        "maps": {} if pair is None else {name: dataclasses.asdict(found) for name, found in pair.maps.items()},
        "kernels": None if pair is None or pair.kernels is None else _kernels(pair.kernels),
        "tensors": [] if pair is None else [_tensor(tensor) for tensor in pair.tensors],
        "reasons": [] if pair is None else list(pair.reasons),
    }


def _tensor(tensor: TensorPair) -> dict[str, Any]:
    other = tensor.other
    all_changed = other is not None and len(tensor.changed_filters) == other.filters
    return {
        "name": tensor.name,
        "counterpart": None if other is None else other.name,
        "status": tensor.status,
        "change": tensor.change,
        "cosine": tensor.cosine,
        "filters": None if other is None else other.filters,
        "changed_filters": len(tensor.changed_filters),
        "changed_filter_indices": None if all_changed and tensor.changed_filters else list(tensor.changed_filters),
        "moved_filters": len(tensor.moved_filters),
        "zeroed_filter_indices": list(tensor.zeroed_filters),
        "zero_filters": None if other is None else other.zero_filters,
        "near_zero_filters": None if other is None else other.near_zero_filters,
        "zeros": None if other is None else other.zeros,
        "entries": None if other is None else other.entries,
        "distinct": None if other is None else other.distinct,
    }


def _kernels(found: Matching) -> dict[str, Any]:
    null = found.null if math.isfinite(found.null) else None
    order = found.order.tolist() if found.by == "cosine" else None
    return {"by": found.by, "by_index": found.by_index, "matched": found.matched, "null": null, "order": order}


def _predictions(found: Predictions | None) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(Predictions)]
    if found is None:
        return {**dict.fromkeys(names), "churn": None, "images": 0, "labelled": 0, "flips": []}
    content = dataclasses.asdict(found)
    content |= {"churn": found.churn, "churn_interval": list(found.churn_interval), "flips": list(content["flips"])}
    return content
