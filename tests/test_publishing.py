from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from bundles import bundle, changed_call, network, probe, scaled
from interpret import publishing, reporting
from interpret.errors import ReportError, TrackingError
from interpret.evidence import Evidence

# mlflow 3.17 with SQLAlchemy 2.1 (November 2026): mlflow's own queries use a loader that SQLAlchemy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store: str) -> MlflowClient:
    return MlflowClient(tracking_uri=store)


@pytest.fixture
def place(client: MlflowClient, store: str, tmp_path: Path) -> dict[str, Any]:
    client.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    return {"tracking_uri": store, "experiment": tmp_path.name}


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    return bundle(network(), tmp_path / "bundle", labels=[index % 10 for index in range(16)])


def call_of(evidence: Evidence, statistic: str, key: str) -> float:
    return float(publishing.layer_statistics(evidence)[statistic][evidence.call[key].position])


# ------------------------------------------------------------------------------------------------------------- identity


def test_the_key_is_the_same_for_the_same_audit_only(evidence: Evidence) -> None:
    key = publishing.evidence_key(evidence)
    assert key == publishing.evidence_key(bundle(network()))
    louder = bundle(scaled(network(), "layer1.bn.weight", 1.01))
    others = [louder, bundle(network(), images=probe(16, seed=1)), bundle(network(), methods=["grad-cam"])]
    others += [bundle(network(), targets=np.full((4, 1), 3)), bundle(network(), displayed=2)]
    assert len({key, *(publishing.evidence_key(other) for other in others)}) == len(others) + 1


def test_the_key_knows_the_tools_minor_version_but_not_its_patches_nor_the_file() -> None:
    def of(version: str, uri: str = "a.pt", words: str = "predicted") -> str:
        def edit(content: dict[str, Any]) -> None:
            content["manifest"]["tool"]["version"] = version
            content["manifest"]["checkpoint"]["uri"] = uri
            content["manifest"]["settings"]["targets"] = words

        return publishing.evidence_key(bundle(network(), edit=edit))

    assert of("1.2.3") == of("1.2.9", "b.pt", "those of audit 0123") != of("1.3.3")


def test_callable_targets_are_known_by_their_maps() -> None:
    def of(scale: float, words: str = "callable f") -> str:
        def edit(content: dict[str, Any]) -> None:
            content["maps"]["targets"][:] = -1
            content["maps"]["grad-cam/conv1"] *= scale
            content["manifest"]["settings"]["targets"] = words

        return publishing.evidence_key(bundle(network(), edit=edit))

    assert of(1) == of(1) != of(2)


def test_without_maps_the_words_of_the_targets_count() -> None:
    def of(words: str) -> str:
        def edit(content: dict[str, Any]) -> None:
            del content["maps"]
            content["manifest"]["settings"]["targets"] = words

        return publishing.evidence_key(bundle(network(), edit=edit))

    assert of("predicted") == of("predicted") != of("class 1")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("weights/best.pt", "best"),
        ("C:\\weights\\best.pt", "best"),
        ("runs:/0123/checkpoints/epoch_3.ckpt", "epoch_3"),
        ("models:/net/3", "net/3"),
        ("models:/net@champion", "net@champion"),
        ("torchvision:ResNet18_Weights.IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"),
        ("", ""),
    ],
)
def test_an_audit_is_named_after_its_checkpoint(uri: str, name: str) -> None:
    assert publishing.checkpoint_name(uri) == name


def test_an_audit_of_a_module_is_named_after_its_class(client: MlflowClient, place: dict[str, Any]) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["manifest"]["checkpoint"]["uri"] = None

    run = client.get_run(publishing.log_evidence(bundle(network(), edit=edit), **place))
    assert (run.info.run_name, run.data.tags["interpret.checkpoint_uri"]) == ("TinyNet", "")


# -------------------------------------------------------------------------------------------------------------- numbers


def test_weight_norms_are_those_of_the_weights(evidence: Evidence) -> None:
    weights = network()
    for key in ("conv1", "layer2.bn", "fc"):
        expected = float(np.linalg.norm(weights[f"{key}.weight"].astype(np.float64)))
        assert call_of(evidence, "weight_norm", key) == pytest.approx(expected, rel=1e-6)
    assert np.isnan(call_of(evidence, "weight_norm", "relu"))


def test_moments_over_channels_are_those_of_all_values() -> None:
    activations = np.random.default_rng(0).normal(3, 2, (16, 8, 5, 5))  # (N, C, H, W)
    activations *= np.arange(1, 9)[:, None, None]

    def edit(content: dict[str, Any]) -> None:
        layers = content["layers"]
        layers["channel_mean"][:8] = activations.mean((0, 2, 3))
        layers["channel_variance"][:8] = activations.var((0, 2, 3))

    evidence = bundle(network(), edit=edit)
    first = evidence.calls[0].key
    assert evidence.array("layers", "channels")[0] == 8
    assert call_of(evidence, "activation_mean", first) == pytest.approx(activations.mean(), rel=1e-6)
    assert call_of(evidence, "activation_standard_deviation", first) == pytest.approx(activations.std(), rel=1e-6)


def test_the_effective_dimension_is_the_participation_ratio_of_the_eigenvalues(evidence: Evidence) -> None:
    for key in ("conv1", "layer3.relu", "fc"):
        gram = evidence.gram(key)
        assert gram is not None
        eigenvalues = np.linalg.eigvalsh(gram)
        expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
        assert call_of(evidence, "effective_dimension", key) == pytest.approx(expected, rel=1e-5)


def test_the_effective_dimension_by_hand() -> None:
    packed = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])  # [[1, 0], [0, 1]], [[1, 1], [1, 1]], zero
    assert publishing._participation_ratio(packed, 2).tolist()[:2] == [2.0, 1.0]
    assert np.isnan(publishing._participation_ratio(packed, 2)[2])


def test_dead_units_count_at_activations_only(evidence: Evidence) -> None:
    assert np.isnan(call_of(evidence, "dead_units", "conv1"))
    assert (
        call_of(evidence, "dead_units", "relu")
        == evidence.array("layers", "dead_units")[evidence.call["relu"].position]
    )


def test_one_calls_nan_does_not_spread() -> None:
    def edit(content: dict[str, Any]) -> None:
        content["layers"]["channel_mean"][8:16] = np.nan

    evidence = bundle(network(), edit=edit)
    assert np.isnan(publishing.layer_statistics(evidence)["activation_mean"]).tolist() == [
        call.position == 1 for call in evidence.calls
    ]


def test_metrics_are_one_line_per_statistic_and_a_few_totals(evidence: Evidence) -> None:
    metrics = list(publishing.audit_metrics(evidence, step=7))
    dead = {step: value for name, step, value in metrics if name == "interpret/by_layer/dead_units"}
    activations = [call.position for call in evidence.calls if call.kind == "activation"]
    assert dead == {position: evidence.array("layers", "dead_units")[position] for position in activations}
    assert {name.rpartition("/")[2] for name, _, _ in metrics if "by_layer" in name} == set(publishing.CHARTED)
    totals = {name: (step, value) for name, step, value in metrics if "by_layer" not in name}
    assert totals["interpret/parameters"] == (7, sum(array.size for array in network().values() if array.ndim) - 2 * 60)
    logits, labels = evidence.array("predictions", "logits"), evidence.array("predictions", "labels")
    assert totals["interpret/top1_accuracy"] == (7, float((logits.argmax(1) == labels).mean()))


def test_a_bundle_with_failed_collectors_gives_what_it_has() -> None:
    def edit(content: dict[str, Any]) -> None:
        for kind in ("weights", "layers", "predictions", "maps"):
            del content[kind]

    evidence = bundle(network(), edit=edit)
    assert publishing.layer_statistics(evidence) == {}
    assert {name for name, _, _ in publishing.audit_metrics(evidence, 0)} == {
        "interpret/parameters",
        "interpret/multiply_adds",
    }
    assert list(publishing.layers_table(evidence))[:2] == ["layer", "position"]


def test_the_table_has_a_row_per_call(evidence: Evidence) -> None:
    table = publishing.layers_table(evidence)
    assert table["layer"] == [call.key for call in evidence.calls]
    assert {len(column) for column in table.values()} == {len(evidence.calls)}
    assert table["output_shape"][0] == "8x16x16"
    assert table["weight_norm"][evidence.call["relu"].position] is None
    json.dumps(table, allow_nan=False)


# --------------------------------------------------------------------------------------------------------------- MLflow


def test_evidence_is_logged_once(evidence: Evidence, client: MlflowClient, place: dict[str, Any], caplog: Any) -> None:
    caplog.set_level("INFO", "interpret")
    run_id = publishing.log_evidence(evidence, step=3, **place)
    assert publishing.log_evidence(evidence.folder, **place) == run_id
    assert "already" in caplog.text
    run = client.get_run(run_id)
    assert run.info.run_name == "TinyNet"
    expected = {
        "interpret.schema_version": str(evidence.manifest.schema_version),
        "interpret.status": "complete",
        "interpret.state_sha256": evidence.manifest.checkpoint["state_sha256"],
        "interpret.checkpoint_uri": "TinyNet.safetensors",
        "interpret.probe_sha256": evidence.manifest.inputs["probe_sha256"],
        "interpret.key": publishing.evidence_key(evidence),
        "interpret.version": publishing.__version__,
    }
    assert {name: run.data.tags.get(name) for name in expected} == expected
    history = client.get_metric_history(run_id, "interpret/by_layer/zero_share")
    shares = evidence.array("layers", "zero_share")
    expected_shares = {call.position: shares[call.position] for call in evidence.calls if call.kind == "activation"}
    assert {point.step: point.value for point in history} == pytest.approx(expected_shares)
    uploaded = {item.path for item in client.list_artifacts(run_id, "interpret")}
    assert {f"interpret/{path}" for path in (*evidence.manifest.files, "manifest.json", "journal.json")} <= uploaded
    assert publishing.log_evidence(evidence, force=True, **place) != run_id


def test_a_run_that_holds_another_audit_is_refused(evidence: Evidence, place: dict[str, Any]) -> None:
    run_id = publishing.log_evidence(evidence, **place)
    other = bundle(scaled(network(), "layer1.bn.weight", 1.01))
    with pytest.raises(TrackingError, match="already holds another audit"):
        publishing.log_evidence(other, run_id, **place)


def test_the_audit_of_a_runs_checkpoint_is_its_child(client: MlflowClient, place: dict[str, Any]) -> None:
    experiment = client.get_experiment_by_name(place["experiment"])
    assert experiment is not None
    training = client.create_run(experiment.experiment_id).info.run_id

    def edit(content: dict[str, Any]) -> None:
        content["manifest"]["checkpoint"]["uri"] = f"runs:/{training}/net.pt"

    evidence = bundle(network(), edit=edit)
    run_id = publishing.log_evidence(evidence, tracking_uri=place["tracking_uri"])
    run = client.get_run(run_id)
    assert run.data.tags["mlflow.parentRunId"] == training
    assert run.info.experiment_id == experiment.experiment_id
    taken = publishing.log_evidence(evidence, training, tracking_uri=place["tracking_uri"])
    assert taken == training


def test_without_a_tracking_uri_mlflow_logs_into_the_current_folder(
    evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    run_id = publishing.log_evidence(evidence)
    assert {path.name for path in Path.cwd().iterdir()} == {"mlflow.db", "mlruns"}
    assert next(Path("mlruns").rglob(f"{run_id}/artifacts/interpret/manifest.json"))


def test_a_call_of_another_shape_changes_the_table_only(place: dict[str, Any]) -> None:
    def edit(content: dict[str, Any]) -> None:
        calls = content["manifest"]["calls"]
        calls[0] = changed_call(calls[0], key="weird[0]/name", name="weird[0]/name")

    evidence = bundle(network(), edit=edit)
    assert publishing.layers_table(evidence)["layer"][0] == "weird[0]/name"
    publishing.log_evidence(evidence, **place)


def test_publishing_adds_pictures_and_reports(evidence: Evidence, client: MlflowClient, place: dict[str, Any]) -> None:
    stages: list[str] = []
    run_id = publishing.publish(
        evidence,
        formats=["html"],
        run_name="the [odd](x) one",
        progress=lambda stage, *_: stages.append(stage),
        **place,
    )
    assert list(dict.fromkeys(stages)) == ["previews", "report", "upload"]
    assert {item.path for item in client.list_artifacts(run_id)} == {"interpret", "interpret_report.html", "images"}
    assert [item.path for item in client.list_artifacts(run_id, "interpret/report")] == ["interpret/report/report.html"]
    images = {Path(item.path).name.partition("+")[0] for item in client.list_artifacts(run_id, "images")}
    assert images == {key.replace("/", "~") for key in publishing.curated_images(evidence)}
    assert 0 < len(images) <= 12
    compact = Path(client.download_artifacts(run_id, "interpret_report.html"))
    assert compact.stat().st_size < 5_000_000
    assert "the [odd](x) one" in compact.read_text("utf-8")
    assert publishing.publish(evidence, **place) == run_id


def test_a_failed_report_marks_the_run(
    evidence: Evidence, client: MlflowClient, place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ReportError("no ink")

    monkeypatch.setattr(reporting, "write_report", fail)
    with pytest.raises(ReportError, match="no ink"):
        publishing.publish(evidence, **place)
    experiment = client.get_experiment_by_name(place["experiment"])
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["interpret.status"] == "failed"
    assert run.data.tags["interpret.failure"] == "ReportError: no ink"
    assert run.info.status == "FAILED"


def test_the_description_of_a_hostile_checkpoint_stays_text(client: MlflowClient, place: dict[str, Any]) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["manifest"]["checkpoint"]["uri"] = "a`](javascript:alert(1))\n# b.pt"

    run = client.get_run(publishing.publish(bundle(network(), edit=edit), formats=["html"], **place))
    assert "| checkpoint | a\\`\\](javascript:alert(1)) \\# b.pt |" in run.data.tags["mlflow.note.content"]


def test_a_run_of_somebody_else_keeps_what_it_says(
    evidence: Evidence, client: MlflowClient, place: dict[str, Any]
) -> None:
    experiment = client.get_experiment_by_name(place["experiment"])
    assert experiment is not None
    training = client.create_run(experiment.experiment_id, tags={"mlflow.note.content": "mine"}).info.run_id
    assert publishing.publish(evidence, training, formats=["html"], **place) == training
    note = client.get_run(training).data.tags["mlflow.note.content"]
    assert note.startswith("mine\n\n<!-- interpret -->")
    assert "| checkpoint |" in note
