"""Previews, report, upload: from the evidence of an audit to a run in MLflow.

The keys, numbers and pictures that MLflow shows of an audit are chosen here; `tracking` only carries them. mlflow and
the report's engine are imported by the functions that need them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import html
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from interpret import __version__
from interpret.errors import InterpretError
from interpret.evidence import Evidence, as_evidence

if TYPE_CHECKING:
    from interpret.comparison import Comparison
    from interpret.reporting import ReportOptions
    from interpret.tracking import AuditRun

logger = logging.getLogger("interpret")

Progress = Callable[[str, int, int], None]
Column = NDArray[np.float64]

NOTED = 3  # findings in a run's description; the report has them all
CURATED = 4  # pictures of each kind among the run's charts; the rest is in previews/ and in the report

# Statistics with a chart, and the kinds of calls that they say something of. MLflow takes a third of a millisecond for
# a point; the table has every statistic of every call.
CHARTED = {
    "activation_standard_deviation": ("convolution", "linear", "normalization", "activation", "attention"),
    "constant_units": ("convolution", "linear"),
    "dead_units": ("activation",),
    "effective_dimension": ("convolution", "linear", "activation", "attention"),
    "weight_norm": ("convolution", "linear", "normalization", "attention"),
    "zero_share": ("activation",),
}


def evidence_key(evidence: Evidence) -> str:
    """Identity of an audit, for recognising the same one again: sha256 over what it was asked to look at.

    Covers the schema, the weights, the architecture, the probe images, the targets, the settings, the seed and the
    tool's major.minor version; not the device, the file that held the weights, or the time.
    """
    manifest = evidence.manifest
    targets: Any = manifest.settings["targets"]
    if evidence.has("maps", "targets"):
        classes = evidence.array("maps", "targets")
        # A callable target (-1) has no identity of its own: its maps stand for it.
        targets = manifest.files["maps.npz"] if (classes < 0).any() else classes.tolist()
    identity = {
        "schema_version": manifest.schema_version,
        "state_sha256": manifest.checkpoint["state_sha256"],
        "architecture_digest": manifest.model["architecture_digest"],
        "probe_sha256": manifest.inputs["probe_sha256"],
        "settings": {**manifest.settings, "targets": targets},
        "seed": manifest.seed,
        "tool": manifest.tool["version"].split(".")[:2],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def layer_statistics(evidence: Evidence) -> dict[str, Column]:
    """One number per call for each statistic, (L,) float64; NaN where it does not apply or was not recorded.

    `weight_norm`: L2 norm of the call's weight tensors. `activation_mean`, `activation_standard_deviation`: over all
    images, channels and positions. `effective_dimension`: participation ratio tr(K)^2 / tr(K^2) of the centred Gram
    matrix K: 1 where all images lie on one line, up to N - 1 where they spread evenly (Gao et al. 2017,
    doi:10.1101/214262). The others are those of layers.npz.
    """
    statistics: dict[str, Column] = {}
    if evidence.has("layers", "channel_mean"):
        channels = evidence.array("layers", "channels")
        channel_means = evidence.array("layers", "channel_mean").astype(np.float64)
        mean = _channel_means(channel_means, channels)
        variance = _channel_means(evidence.array("layers", "channel_variance"), channels)
        between = _channel_means(channel_means**2, channels) - mean**2
        statistics["activation_standard_deviation"] = np.sqrt(np.maximum(variance + between, 0.0))
        statistics["activation_mean"] = mean
    if evidence.tensors:
        norms = {tensor.name: tensor.norm for tensor in evidence.tensors if tensor.name.endswith("weight")}
        squares = [[(norms[name] or 0.0) ** 2 for name in call.tensors if name in norms] for call in evidence.calls]
        statistics["weight_norm"] = np.array([np.sqrt(sum(terms)) if terms else np.nan for terms in squares])
    for name in ("zero_share", "dead_units", "constant_units"):
        if evidence.has("layers", name):
            statistics[name] = evidence.array("layers", name).astype(np.float64)
    if "dead_units" in statistics:
        activation = np.array([call.kind == "activation" for call in evidence.calls])
        statistics["dead_units"] = np.where(activation, statistics["dead_units"], np.nan)
    if evidence.has("layers", "gram"):
        statistics["effective_dimension"] = _participation_ratio(
            evidence.array("layers", "gram").astype(np.float64), int(evidence.manifest.inputs["count"])
        )
    return statistics


def _channel_means(values: NDArray[Any], channels: NDArray[Any]) -> Column:
    """Mean of each call's channels; `values` joins them end to end."""
    starts = np.concatenate([[0], np.cumsum(channels)[:-1]])
    means = np.full(len(channels), np.nan)
    present = channels > 0
    if present.any():
        means[present] = np.add.reduceat(values.astype(np.float64), starts[present]) / channels[present]
    return means


def _participation_ratio(packed: Column, count: int) -> Column:
    """tr(K)^2 / tr(K^2) of symmetric matrices given by their upper triangles, (L, N(N+1)/2) -> (L,)."""
    rows, columns = np.triu_indices(count)
    trace = packed[:, rows == columns].sum(1)
    square = (packed**2 * np.where(rows == columns, 1.0, 2.0)).sum(1)
    ratio: Column = np.divide(trace**2, square, out=np.full(len(packed), np.nan), where=square > 0)
    return ratio


def audit_metrics(evidence: Evidence, step: int) -> Iterator[tuple[str, int, float]]:
    """The metrics of an audit: `interpret/by_layer/<statistic>` with step = position, and a few totals at `step`."""
    statistics = layer_statistics(evidence)
    for name, kinds in CHARTED.items():
        for call, value in zip(evidence.calls, statistics.get(name, ()), strict=False):
            if call.kind in kinds:
                yield f"interpret/by_layer/{name}", call.position, float(value)
    totals = {
        "parameters": evidence.manifest.model["parameters"],
        "multiply_adds": evidence.manifest.model["multiply_adds"],
    }
    if "dead_units" in statistics:
        totals["dead_units"] = np.nansum(statistics["dead_units"])
    if evidence.has("layers", "nonfinite"):
        totals["nonfinite_values"] = evidence.array("layers", "nonfinite").sum()
    accuracy = _accuracy(evidence)
    if accuracy is not None:
        totals["top1_accuracy"] = accuracy
    for name, value in totals.items():
        yield f"interpret/{name}", step, float(value)


def _accuracy(evidence: Evidence) -> float | None:
    if not (evidence.has("predictions", "logits") and evidence.has("predictions", "labels")):
        return None
    logits, labels = evidence.array("predictions", "logits"), evidence.array("predictions", "labels")
    known = labels >= 0
    return float((logits[known].argmax(1) == labels[known]).mean()) if known.any() else None


def layers_table(evidence: Evidence) -> dict[str, list[object]]:
    """A row per call, for MLflow's runs page, which compares runs by the second column and groups by the first."""
    table: dict[str, list[object]] = {"layer": [call.key for call in evidence.calls]}
    for name, values in layer_statistics(evidence).items():
        table[name] = [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
    return {
        **table,
        "position": [call.position for call in evidence.calls],
        "type": [call.type for call in evidence.calls],
        "kind": [call.kind for call in evidence.calls],
        "output_shape": ["x".join(map(str, call.output_shape[1:])) for call in evidence.calls],
        "parameters": [call.parameters for call in evidence.calls],
        "multiply_adds": [call.multiply_adds for call in evidence.calls],
    }


def curated_images(evidence: Evidence) -> dict[str, Path]:
    """A dozen of the previews by their `log_image` key: of each kind, a few convolutions spread over the depth."""
    images: dict[str, Path] = {}
    for kind in ("kernels", "activations", "maps"):
        slugs = [call.slug for call in evidence.calls if call.kind == "convolution"]
        files = [evidence.folder / "previews" / kind / f"{slug}.png" for slug in slugs]
        files = [file for file in files if file.is_file()]
        chosen = np.unique(np.linspace(0, len(files) - 1, min(CURATED, len(files))).round().astype(int))
        images |= {f"interpret/{kind}/{files[index].stem}": files[index] for index in chosen}
    return images


def log_evidence(
    evidence: Evidence | str | Path,
    run_id: str | None = None,
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    parent_run_id: str | None = None,
    step: int | None = None,
    force: bool = False,
) -> str:
    """Log the evidence of an audit to MLflow; :func:`publish` adds pictures and a report.

    The bundle lands under `interpret/` of the run, with tags, metrics per layer and `interpret/layers_table.json`.
    The same audit again is recognised: nothing is written, and the run that holds it is returned.

    Args:
        evidence: the audit, or the folder of its bundle.
        run_id: an existing run to write into. None makes a new run, a child of the checkpoint's source run if known.
        tracking_uri: None takes MLflow's own default.
        experiment: name; None takes the parent run's, else MLflow's own default.
        run_name: name of a new run; None takes the checkpoint's.
        parent_run_id: run under which a new one is shown; None takes the checkpoint's source run.
        step: the checkpoint's step, for totals; None takes the evidence's.
        force: make a new run even where the same audit is there already.

    Returns:
        Id of the run that holds the audit.

    Raises:
        TrackingError: MLflow cannot be reached, or the run is unknown or holds another audit.
    """
    evidence = as_evidence(evidence)
    step = _step(evidence, step)
    with _open_run(evidence, run_id, tracking_uri, experiment, run_name, parent_run_id, step, force) as run:
        if not run.recognised:
            _upload(evidence, run)
            _finish(evidence, run, step or 0)
    return run.run_id


def publish(
    evidence: Evidence | str | Path,
    run_id: str | None = None,
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    parent_run_id: str | None = None,
    step: int | None = None,
    force: bool = False,
    formats: Sequence[str] = ("html", "pdf"),
    options: ReportOptions | None = None,
    views: bool = True,
    progress: Progress | None = None,
) -> str:
    """Draw previews and the report of an audit, and log everything to MLflow.

    Beyond :func:`log_evidence`: `interpret/previews/`, `interpret/report/`, a dozen pictures among the run's charts,
    and a compact `interpret_report.html` at the top level, the one place where MLflow's compare-runs page shows it side
    by side. Where a step fails, the run is marked `interpret.status=failed` with the reason.

    Args:
        evidence: the audit, or the folder of its bundle; previews and report are written into it.
        run_id: see :func:`log_evidence`, as for the other arguments up to `force`.
        tracking_uri: None takes MLflow's own default.
        experiment: name; None takes the parent run's, else MLflow's own default.
        run_name: name of a new run; None takes the checkpoint's.
        parent_run_id: run under which a new one is shown; None takes the checkpoint's source run.
        step: the checkpoint's step, for totals and pictures; None takes the evidence's.
        force: make a new run even where the same audit is there already.
        formats: of the report, "html" and "pdf".
        options: how the report is made; its title is the run's name by default.
        views: False where :func:`write_views` has drawn them already.
        progress: called with (stage, done, total).

    Returns:
        Id of the run that holds the audit.

    Raises:
        TrackingError: MLflow cannot be reached, or the run is unknown or holds another audit.
        ReportError: the report cannot be drawn.
    """
    from interpret.reporting import ReportOptions

    evidence = as_evidence(evidence)
    notify = progress or (lambda stage, done, total: None)
    step = _step(evidence, step)
    with _open_run(evidence, run_id, tracking_uri, experiment, run_name, parent_run_id, step, force) as run:
        if not run.recognised:
            options = options or ReportOptions(title=run_name or audit_name(evidence))
            if views:
                write_views(evidence, formats, options, notify)
            notify("upload", 0, 1)
            _upload(evidence, run)
            _upload_compact_report(evidence, run, options)
            pictures = run.log_images(curated_images(evidence), step or 0)
            run.describe(_note(evidence, run, formats, pictures))
            _finish(evidence, run, step or 0)
            notify("upload", 1, 1)
    return run.run_id


def log_failure(
    error: BaseException,
    run_id: str | None = None,
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    parent_run_id: str | None = None,
    step: int | None = None,
    checkpoint_uri: str = "",
) -> str | None:
    """Mark a run as an audit that failed, with the reason, where there is no evidence to log.

    Args:
        error: what made the audit fail.
        run_id: an existing run, left alone if it holds another audit; None makes a new one.
        tracking_uri: see :func:`log_evidence`, as for the four that follow.
        experiment: of a new run.
        run_name: of a new run.
        parent_run_id: of a new run.
        step: of the training.
        checkpoint_uri: address of what was to be audited.

    Returns:
        Id of the run; None where MLflow cannot be reached.
    """
    from interpret import tracking

    if parent_run_id is None and run_id is None:
        with contextlib.suppress(InterpretError):
            parent_run_id = tracking.source_of(checkpoint_uri, tracking_uri=tracking_uri).run_id
    tags = {"interpret.checkpoint_uri": checkpoint_uri, "interpret.version": __version__}
    if step is not None:
        tags["interpret.step"] = str(step)
    name = run_name or checkpoint_name(checkpoint_uri) or None
    return tracking.log_failure(
        error, tags, tracking.Destination(tracking_uri, experiment, run_id, name, parent_run_id)
    )


def write_views(
    evidence: Evidence | str | Path,
    formats: Sequence[str] = ("html", "pdf"),
    options: ReportOptions | None = None,
    progress: Progress | None = None,
) -> None:
    """Draw `previews/` and `report/` into the bundle; no digest covers them."""
    from interpret import drawing, reporting

    evidence = as_evidence(evidence)
    notify = progress or (lambda stage, done, total: None)
    notify("previews", 0, 1)
    drawing.write_previews(evidence)
    notify("previews", 1, 1)
    notify("report", 0, 1)
    options = options or reporting.ReportOptions(title=audit_name(evidence))
    reporting.write_report(evidence, evidence.folder / "report", formats, options)
    notify("report", 1, 1)


def _open_run(
    evidence: Evidence,
    run_id: str | None,
    tracking_uri: str | None,
    experiment: str | None,
    run_name: str | None,
    parent_run_id: str | None,
    step: int | None,
    force: bool,
) -> AuditRun:
    from interpret import tracking

    manifest = evidence.manifest
    journal = _sha256(evidence.folder / "journal.json")
    uri = manifest.checkpoint["uri"] or ""
    source = tracking.source_of(uri, tracking_uri=tracking_uri)
    if parent_run_id is None and run_id is None:
        parent_run_id = source.run_id
    run = tracking.open_run(
        evidence_key(evidence),
        {
            "interpret.schema_version": str(manifest.schema_version),
            "interpret.state_sha256": manifest.checkpoint["state_sha256"],
            "interpret.checkpoint_uri": uri,
            "interpret.probe_sha256": manifest.inputs["probe_sha256"],
            "interpret.version": __version__,
            "interpret.manifest_sha256": evidence.digest,
            **({} if journal is None else {"interpret.journal_sha256": journal}),
            **({} if step is None else {"interpret.step": str(step)}),
        },
        tracking.Destination(tracking_uri, experiment, run_id, run_name or audit_name(evidence), parent_run_id, force),
        # A partial audit is done only for another partial one: the collector may have failed for want of memory.
        accepted={"complete", manifest.status},
        model_id=source.model_id,
    )
    if run.recognised:
        logger.info("run %s already holds this audit: nothing was written; force makes a new run", run.run_id)
    return run


def _step(evidence: Evidence, step: int | None) -> int | None:
    known: int | None = evidence.manifest.checkpoint["step"]
    return known if step is None else step


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def audit_name(evidence: Evidence) -> str:
    """A short name for an audit: its checkpoint's, else its model's and step."""
    uri, step = evidence.manifest.checkpoint["uri"] or "", evidence.manifest.checkpoint["step"]
    name = "" if uri.startswith("models:/m-") else checkpoint_name(uri)  # a logged model's id says nothing to people
    return name or str(evidence.manifest.model["name"]) + ("" if step is None else f" step {step}")


def checkpoint_name(uri: str) -> str:
    """A short name for an audit, from its checkpoint's address.

    >>> checkpoint_name("runs:/3f2a/weights/best.pt"), checkpoint_name("models:/net@champion")
    ('best', 'net@champion')
    >>> checkpoint_name("weights/model.safetensors.index.json")
    'model'
    """
    if uri.startswith(("models:/", "torchvision:")):
        return uri.partition(":")[2].strip("/")
    return PurePosixPath(uri.replace("\\", "/")).stem.removesuffix(".safetensors.index").removesuffix(".bin.index")


def _upload(evidence: Evidence, run: AuditRun) -> None:
    from interpret import tracking

    run.upload_folder(evidence.folder, tracking.BUNDLE, last="manifest.json")  # it says that all is there
    run.log_table(layers_table(evidence), f"{tracking.BUNDLE}/layers_table.json")


def _upload_compact_report(evidence: Evidence, run: AuditRun, options: ReportOptions) -> None:
    """The small report at the top level, which MLflow's compare-runs page shows beside those of other runs."""
    from interpret import reporting

    with tempfile.TemporaryDirectory() as folder:
        compact = dataclasses.replace(options, compact=True)
        written = reporting.write_report(evidence, folder, ["html"], compact)
        run.upload_file(written["html"].rename(Path(folder, "interpret_report.html")))


def _note(evidence: Evidence, run: AuditRun, formats: Sequence[str], pictures: Mapping[str, str]) -> str:
    """The run's description: what was audited, what stands out, a few pictures, and where to click."""
    from interpret.findings import findings_of

    manifest = evidence.manifest
    accuracy = _accuracy(evidence)
    facts = {
        "checkpoint": manifest.checkpoint["uri"] or "a module given in Python",
        "step": manifest.checkpoint["step"],
        "model": f"{manifest.model['name']}, {len(evidence.calls)} calls, {manifest.model['parameters']:,} parameters",
        "images": f"{manifest.inputs['count']}, of which {manifest.inputs['displayed']} are shown",
        "top-1 accuracy": None if accuracy is None else f"{accuracy:.1%}",
    }
    links = [_link(f"report.{name}", run.page(f"interpret/report/report.{name}")) for name in formats]
    links += [_link("summary", run.page("interpret_report.html")), _link("pictures", run.page("interpret/previews"))]
    findings = [finding for finding in findings_of(evidence) if finding.severity != "info"]
    more = len(findings) - NOTED
    return "\n\n".join(
        [
            *(_plain(finding.message, 400) for finding in findings[:NOTED]),
            *([] if findings else ["Nothing stands out."]),
            *([f"The report has {more} more finding{'s' if more > 1 else ''}."] if more > 0 else []),
            _table(("audit", ""), [(name, _plain(value)) for name, value in facts.items() if value is not None]),
            *_thumbnails(pictures, run),
            " · ".join(links),
            "The charts `interpret/by_layer/...` show a number per call; their steps are the calls in order of "
            "execution.",
        ]
    )


def _thumbnails(pictures: Mapping[str, str], run: AuditRun) -> Iterator[str]:
    """A row of small pictures: the first kernels, and activations and maps of the last layer that has them.

    Args:
        pictures: key, `interpret/<kind>/<slug>`, to the artifact with the picture.
        run: that holds them.
    """
    chosen: dict[str, str] = {}
    for key in pictures:
        kind = key.split("/")[1]
        if kind != "kernels" or kind not in chosen:
            chosen[kind] = key
    if chosen:
        head = [f"{kind} of {_plain(key.rpartition('/')[2])}" for kind, key in chosen.items()]
        yield _table(head, [[f"![{kind}]({run.thumbnail(pictures[key])})" for kind, key in chosen.items()]])


def _plain(value: object, limit: int = 160) -> str:
    """Text that Markdown prints as it is, in one line."""
    text = " ".join(str(value).split())
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    text = re.sub(r"([\\`*_{}\[\]#!~])", r"\\\1", text)
    return html.escape(text, quote=False).replace("|", "&#124;")


def _link(text: str, address: str) -> str:
    return f"[{_plain(text)}]({address})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _finish(evidence: Evidence, run: AuditRun, step: int) -> None:
    run.finish(evidence.manifest.status, audit_metrics(evidence, step))


def log_comparison(
    comparison: Comparison,
    files: Mapping[str, Path],
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
) -> str:
    """Log a comparison as an MLflow run of its own, whose description leads to the runs that it compares.

    The files land at the top level of the run. The same comparison again is recognised by the digests of its inputs,
    their labels and steps: nothing is written, and the run that holds it is returned.

    Args:
        comparison: what was compared.
        files: its report and comparison.json, as :func:`interpret.write_report` returns them.
        tracking_uri: None takes MLflow's own default.
        experiment: name; None takes that of the first run that lies in MLflow, else MLflow's own default.
        run_name: name of the new run; None takes the runs'.

    Returns:
        Id of the run that holds the comparison.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    from interpret import tracking

    inputs = [str(origin["run_id"]) for origin in comparison.origins.values() if origin.get("run_id")]
    if experiment is None and inputs:
        experiment = tracking.experiment_of(inputs[0], tracking_uri=tracking_uri)
    tags = {"interpret.kind": "comparison", "interpret.inputs": ",".join(inputs), "interpret.version": __version__}
    destination = tracking.Destination(tracking_uri, experiment, run_name=run_name or _comparison_name(comparison))
    with tracking.open_run(comparison_key(comparison), tags, destination, accepted={"complete"}) as run:
        if run.recognised:
            logger.info("run %s already holds this comparison: nothing was written", run.run_id)
        else:
            for file in files.values():
                run.upload_file(file)
            run.describe(_comparison_note(comparison, run, files))
            run.finish("complete", comparison_metrics(comparison))
    return run.run_id


def comparison_key(comparison: Comparison) -> str:
    """Identity of a comparison: sha256 over its inputs in their order and the tool's major.minor version."""
    identity = {
        "kind": "comparison",
        "inputs": [evidence.digest for evidence in comparison.evidence.values()],
        "labels": comparison.labels,
        "steps": [origin.get("step") for origin in comparison.origins.values()],
        "tool": __version__.split(".")[:2],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def comparison_metrics(comparison: Comparison) -> Iterator[tuple[str, int, float]]:
    """The metrics of a comparison: totals at step 0, and of each run a few numbers at its place behind the reference.

    `changed_calls` counts calls whose weights differ from the reference's, `diverging_calls` those whose output moved
    by more than rounding explains.
    """
    severities = Counter(finding.severity for finding in comparison.findings)
    yield "interpret/comparison/runs", 0, float(len(comparison.labels))
    for severity in ("critical", "warning"):
        yield f"interpret/comparison/{severity}_findings", 0, float(severities[severity])
    for place, label in enumerate(comparison.others, 1):
        measures = comparison.measures[label]
        changed = sum(pair.weights in ("changed", "reshaped") for pair in measures.calls)
        yield "interpret/comparison/changed_calls", place, float(changed)
        yield "interpret/comparison/diverging_calls", place, float(sum(pair.diverges for pair in measures.calls))
        if measures.predictions is not None:
            yield "interpret/comparison/top1_agreement", place, float(measures.predictions.top1_agreement)


def _comparison_name(comparison: Comparison) -> str:
    others = comparison.others
    return f"{comparison.reference} against {others[0] if len(others) == 1 else f'{len(others)} runs'}"


def _comparison_note(comparison: Comparison, run: AuditRun, files: Mapping[str, Path]) -> str:
    """The run's description: each run with its verdict and where it leads, and where the report is."""

    def entry(label: str) -> str:
        run_id = comparison.origins[label].get("run_id")
        return _link(label, f"#/runs/{quote(str(run_id), safe='')}") if run_id else _plain(label)

    rows = []
    for label in comparison.others:
        first, suspects = comparison.first_divergence[label], list(comparison.ranking[label])
        predictions = comparison.measures[label].predictions
        rows.append(
            (
                entry(label),
                comparison.verdict[label],
                _plain(suspects[0]) if suspects else "-",
                _plain(first) if first else "-",
                "-" if predictions is None else f"{predictions.top1_agreement:.0%}",
            )
        )
    severe = [finding for finding in comparison.findings if finding.severity == "critical"]
    head = ("run", "verdict", "most suspicious", "first divergence", "predictions kept")
    return "\n\n".join(
        [
            f"Audits held against {entry(comparison.reference)}.",
            _table(head, rows[:12]),
            *(["More runs are in the report."] if len(rows) > 12 else []),
            *(f"{_plain(finding.run)}: {_plain(finding.message, 300)}" for finding in severe[:3]),
            *([" · ".join(_link(file.name, run.page(file.name)) for file in files.values())] if files else []),
        ]
    )
