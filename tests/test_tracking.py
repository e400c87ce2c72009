from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import FileInfo, LoggedModelOutput, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.checkpoint_utils import MlflowModelCheckpointCallbackBase
from PIL import Image

from interpret import tracking
from interpret.errors import TrackingError
from interpret.tracking import Destination, open_run
from servers import free_port, mlflow_server

# mlflow 3.17 with SQLAlchemy 2.1 (November 2026): mlflow's own queries use a loader that SQLAlchemy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store: str) -> MlflowClient:
    return MlflowClient(tracking_uri=store)


@pytest.fixture
def experiment(client: MlflowClient, tmp_path: Path) -> str:
    client.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    return tmp_path.name


@pytest.fixture
def destination(store: str, experiment: str) -> Destination:
    return Destination(tracking_uri=store, experiment=experiment)


@pytest.fixture
def training_run(client: MlflowClient, experiment: str) -> str:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.create_run(found.experiment_id, run_name="training").info.run_id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle = tmp_path / "bundle"
    (bundle / "previews" / "maps").mkdir(parents=True)
    (bundle / "manifest.json").write_text("{}")
    (bundle / "layers.npz").write_bytes(b"layers")
    Image.new("RGB", (4, 4), "red").save(bundle / "previews" / "maps" / "000-conv.png")
    return bundle


def replaced(destination: Destination, **changes: object) -> Destination:
    return dataclasses.replace(destination, **changes)  # type: ignore[arg-type]


def log(destination: Destination, folder: Path, key: str = "key", status: str = "complete") -> str:
    with open_run(key, {"interpret.state_sha256": f"state of {key}"}, destination) as run:
        if not run.recognised:
            run.upload_folder(folder, "interpret")
            run.log_table({"layer": ["conv", "fc"], "zero_share": [0.5, None]}, "interpret/layers_table.json")
            run.log_images({"interpret/maps/000-conv": folder / "previews" / "maps" / "000-conv.png"}, step=3)
            run.finish(status, [("interpret/by_layer/zero_share", 0, 0.5), ("interpret/by_layer/zero_share", 1, 0.25)])
    return run.run_id


def tags(client: MlflowClient, run_id: str) -> dict[str, str]:
    return dict(client.get_run(run_id).data.tags)


# -------------------------------------------------------------------------------------------------------------- upload


def test_a_run_holds_bundle_table_metrics_images_and_tags(
    client: MlflowClient, destination: Destination, folder: Path
) -> None:
    run_id = log(replaced(destination, run_name="best"), folder)
    run = client.get_run(run_id)
    assert run.info.run_name == "best"
    assert run.info.status == "FINISHED"
    assert run.data.tags["interpret.status"] == "complete"
    assert run.data.tags["interpret.key"] == "key"
    assert run.data.tags["interpret.state_sha256"] == "state of key"
    points = client.get_metric_history(run_id, "interpret/by_layer/zero_share")
    assert sorted((point.step, point.value) for point in points) == [(0, 0.5), (1, 0.25)]
    paths = {item.path for item in client.list_artifacts(run_id, "interpret")}
    assert paths == {f"interpret/{name}" for name in ("manifest.json", "layers.npz", "previews", "layers_table.json")}
    images = [item.path for item in client.list_artifacts(run_id, "images")]
    assert any(path.startswith("images/interpret~maps~000-conv+step+3") for path in images)


def test_the_table_is_the_one_that_log_table_writes(
    client: MlflowClient, store: str, destination: Destination, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # load_table looks for runs in the global store
    run_id = log(destination, folder)
    experiment_id = client.get_run(run_id).info.experiment_id
    table = client.load_table(experiment_id, "interpret/layers_table.json", run_ids=[run_id])
    assert table["layer"].tolist() == ["conv", "fc"]
    assert table["zero_share"][0] == 0.5
    assert table["zero_share"].isna()[1]
    client.log_table(run_id, {"a": [1]}, "other.json")
    assert tags(client, run_id)["mlflow.loggedArtifacts"] == (
        '[{"path": "interpret/layers_table.json", "type": "table"}, {"path": "other.json", "type": "table"}]'
    )


def test_values_that_are_not_finite_never_become_metrics(client: MlflowClient, destination: Destination) -> None:
    with open_run("key", {}, destination) as run:
        values = (1.0, float("nan"), float("inf"), -float("inf"), 2.0)
        run.finish("complete", [("interpret/by_layer/x", step, value) for step, value in enumerate(values)])
    points = client.get_metric_history(run.run_id, "interpret/by_layer/x")
    assert sorted((point.step, point.value) for point in points) == [(0, 1.0), (4, 2.0)]


def test_more_metrics_than_one_batch_all_arrive(client: MlflowClient, destination: Destination) -> None:
    with open_run("key", {}, destination) as run:
        run.finish("complete", [("interpret/by_layer/x", step, step) for step in range(2 * tracking.BATCH + 7)])
    assert len(client.get_metric_history(run.run_id, "interpret/by_layer/x")) == 2 * tracking.BATCH + 7
    assert tags(client, run.run_id)["interpret.status"] == "complete"


@pytest.mark.parametrize("name", ["interpret/by_layer/a[0]", "interpret/b(c)", "x" * 400, "interpret/ü 1:2"])
def test_metric_names_are_taken_by_mlflow(client: MlflowClient, destination: Destination, name: str) -> None:
    with open_run("key", {}, replaced(destination, force=True)) as run:
        run.finish("complete", [(name, 0, 1.0)])
    assert client.get_run(run.run_id).data.metrics == {tracking.metric_name(name): 1.0}


def test_the_active_run_and_the_global_store_of_the_caller_stay(
    store: str, destination: Destination, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    before = mlflow.get_tracking_uri()
    with mlflow.start_run() as active:
        run_id = log(destination, folder)
        current = mlflow.active_run()
        assert current is not None
        assert current.info.run_id == active.info.run_id != run_id
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before


# ------------------------------------------------------------------------------------------------------- the right run


def test_the_same_audit_is_recognised_and_another_is_not(destination: Destination, folder: Path) -> None:
    first = log(destination, folder)
    with open_run("key", {}, destination) as again:
        assert again.recognised
    assert again.run_id == first
    assert log(destination, folder, key="other") != first


def test_force_makes_a_new_run(client: MlflowClient, destination: Destination, folder: Path) -> None:
    first = log(destination, folder)
    second = log(replaced(destination, force=True), folder)
    assert second != first
    assert tags(client, second)["interpret.status"] == "complete"


def test_a_failed_audit_is_resumed(client: MlflowClient, destination: Destination, folder: Path) -> None:
    with pytest.raises(RuntimeError, match="out of colours"), open_run("key", {}, destination) as run:
        raise RuntimeError("out of colours")
    assert tags(client, run.run_id)["interpret.status"] == "failed"
    assert tags(client, run.run_id)["interpret.failure"] == "RuntimeError: out of colours"
    assert client.get_run(run.run_id).info.status == "FAILED"
    assert log(destination, folder) == run.run_id
    assert tags(client, run.run_id)["interpret.status"] == "complete"
    assert "interpret.failure" not in tags(client, run.run_id)
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_what_a_killed_process_left_is_completed_and_nothing_is_there_twice(
    client: MlflowClient, destination: Destination, folder: Path
) -> None:
    points = [("interpret/by_layer/norm", step, float(step)) for step in range(3)]
    killed = open_run("key", {}, destination)
    killed.log_images({"interpret/kernels/000-conv": folder / "previews" / "maps" / "000-conv.png"}, step=0)
    for name, step, value in points[:2]:  # of another moment: what an older release wrote
        client.log_metric(killed.run_id, name, value, timestamp=1, step=step)
    with open_run("key", {}, destination) as again:
        assert (again.run_id, again.recognised) == (killed.run_id, False)
        again.log_images({"interpret/kernels/000-conv": folder / "previews" / "maps" / "000-conv.png"}, step=0)
        again.finish("complete", points)
    assert [point.step for point in client.get_metric_history(again.run_id, points[0][0])] == [0, 1, 2]
    pictures = [item.path for item in client.list_artifacts(again.run_id, "images") if item.path.endswith(".png")]
    assert len(pictures) == 1


def test_a_metric_that_a_broken_connection_repeats_is_there_once(
    client: MlflowClient, destination: Destination
) -> None:
    points = [("interpret/by_layer/norm", step, float(step)) for step in range(3)]
    with open_run("key", {}, destination) as run:
        run.finish("complete", points)
        run.finish("complete", points)
    assert len(client.get_metric_history(run.run_id, points[0][0])) == 3


def test_a_run_that_a_training_made_is_not_taken_for_an_unfinished_audit(
    client: MlflowClient, destination: Destination, folder: Path, training_run: str
) -> None:
    client.log_batch(training_run, tags=[RunTag("interpret.key", "key"), RunTag("interpret.status", "failed")])
    assert log(replaced(destination, parent_run_id=training_run), folder) != training_run


def test_a_failure_without_evidence_leaves_its_reason(
    client: MlflowClient, destination: Destination, folder: Path, training_run: str
) -> None:
    error = ValueError("the network does not take such images")
    run_id = tracking.log_failure(error, {"interpret.checkpoint_uri": "net.pt"}, destination)
    assert run_id is not None
    assert tags(client, run_id)["interpret.failure"] == f"ValueError: {error}"
    assert client.get_run(run_id).info.status == "FAILED"
    given = replaced(destination, run_id=training_run)
    assert tracking.log_failure(error, {}, given) == training_run
    assert tags(client, training_run)["interpret.status"] == "failed"
    assert client.get_run(training_run).info.status == "RUNNING"  # the training's own state is not ours to set
    assert log(given, folder) == training_run
    assert tags(client, training_run)["interpret.status"] == "complete"
    assert tracking.log_failure(error, {}, given) is None  # it holds an audit now
    assert tags(client, training_run)["interpret.status"] == "complete"


def test_a_failure_that_cannot_be_logged_is_left_at_that() -> None:
    nowhere = Destination(tracking_uri=f"http://127.0.0.1:{free_port()}")
    assert tracking.log_failure(ValueError("x"), {}, nowhere) is None


# -------------------------------------------------------------------------------------------------------- descriptions


def note_of(client: MlflowClient, run_id: str) -> str:
    return tags(client, run_id)["mlflow.note.content"]


def test_a_note_of_somebody_else_stays_and_ours_is_replaced(client: MlflowClient, destination: Destination) -> None:
    with open_run("key", {}, destination) as run:
        client.set_tag(run.run_id, "mlflow.note.content", "Trained by Li.")  # while the audit runs
        run.describe("first")
        run.finish("complete")
    assert note_of(client, run.run_id) == "Trained by Li.\n\n<!-- interpret -->\n\nfirst\n\n<!-- /interpret -->"
    client.set_tag(run.run_id, "mlflow.note.content", f"{note_of(client, run.run_id)}\n\nLooks good.")
    again = tracking.AuditRun(client, client.get_run(run.run_id))
    again.describe("second")
    again.finish("complete")
    assert note_of(client, run.run_id) == (
        "Trained by Li.\n\n<!-- interpret -->\n\nsecond\n\n<!-- /interpret -->\n\nLooks good."
    )


def test_a_note_that_fills_the_field_is_not_cut(
    client: MlflowClient, destination: Destination, caplog: pytest.LogCaptureFixture
) -> None:
    mine = "x" * 4990
    with open_run("key", {}, destination) as run:
        client.set_tag(run.run_id, "mlflow.note.content", mine)
        run.describe("ours")
        run.finish("complete")
    assert note_of(client, run.run_id) == mine
    assert "a description so long that nothing can be added" in caplog.text


def test_an_interrupted_audit_is_marked(client: MlflowClient, destination: Destination) -> None:
    with pytest.raises(KeyboardInterrupt), open_run("key", {}, destination) as run:
        raise KeyboardInterrupt
    assert tags(client, run.run_id)["interpret.status"] == "failed"
    assert client.get_run(run.run_id).info.status == "KILLED"


def test_the_first_error_wins_when_marking_fails_too(
    client: MlflowClient, destination: Destination, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("server gone")

    run = open_run("key", {}, destination)
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    with pytest.raises(RuntimeError, match="first"), run:
        raise RuntimeError("first")
    assert "server gone" in caplog.text
    assert tags(client, run.run_id)["interpret.status"] == "running"


def test_a_partial_audit_is_done_only_for_another_partial_one(destination: Destination, folder: Path) -> None:
    first = log(destination, folder, status="partial")
    with open_run("key", {}, destination, accepted={"complete", "partial"}) as run:
        assert run.recognised
    assert run.run_id == first
    with open_run("key", {}, destination, accepted={"complete"}) as run:
        assert not run.recognised
        run.finish("complete")


def test_a_given_run_is_taken_and_left_running(
    client: MlflowClient, destination: Destination, training_run: str, folder: Path
) -> None:
    taken = replaced(destination, run_id=training_run)
    assert log(taken, folder) == training_run
    assert client.get_run(training_run).info.status == "RUNNING"
    assert log(taken, folder) == training_run
    assert len(client.get_metric_history(training_run, "interpret/by_layer/zero_share")) == 2


def test_a_given_run_with_another_audit_is_refused_unless_forced(
    client: MlflowClient, destination: Destination, training_run: str, folder: Path
) -> None:
    taken = replaced(destination, run_id=training_run)
    log(taken, folder)
    with pytest.raises(TrackingError, match=f"{training_run}.*already holds another audit"):
        log(taken, folder, key="other")
    forced = log(replaced(taken, force=True), folder, key="other")
    assert forced != training_run
    assert tags(client, forced)["mlflow.parentRunId"] == training_run
    assert tags(client, training_run)["interpret.key"] == "key"


def test_a_second_try_in_the_same_run_writes_nothing_twice(
    client: MlflowClient, destination: Destination, training_run: str, folder: Path
) -> None:
    taken = replaced(destination, run_id=training_run)
    log(taken, folder)
    client.set_tag(training_run, "interpret.status", "running")  # as if the first try had been killed at the very end
    assert log(taken, folder) == training_run
    assert len(client.get_metric_history(training_run, "interpret/by_layer/zero_share")) == 2
    assert len(client.list_artifacts(training_run, "images")) == 2  # the picture and its thumbnail
    assert tags(client, training_run)["mlflow.loggedArtifacts"].count("layers_table") == 1


def test_a_new_run_is_a_child_in_its_parents_experiment(
    client: MlflowClient, store: str, training_run: str, folder: Path
) -> None:
    run_id = log(Destination(tracking_uri=store, parent_run_id=training_run), folder, key=training_run)
    run = client.get_run(run_id)
    assert run.data.tags["mlflow.parentRunId"] == training_run
    assert run.info.experiment_id == client.get_run(training_run).info.experiment_id


def test_the_experiment_follows_the_environment(
    client: MlflowClient, store: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", found.experiment_id)
    with open_run("by id", {}, Destination(tracking_uri=store)) as run:
        run.finish("complete")
    assert client.get_run(run.run_id).info.experiment_id == found.experiment_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    with open_run("by name", {}, Destination(tracking_uri=store)) as run:
        run.finish("complete")
    assert client.get_run(run.run_id).info.experiment_id == found.experiment_id


def test_a_new_experiment_is_made_and_a_deleted_one_named(client: MlflowClient, store: str, tmp_path: Path) -> None:
    with open_run("key", {}, Destination(tracking_uri=store, experiment=f"new {tmp_path.name}")) as run:
        run.finish("complete")
    made = client.get_experiment_by_name(f"new {tmp_path.name}")
    assert made is not None
    client.delete_experiment(made.experiment_id)
    with pytest.raises(TrackingError, match="was deleted"):
        open_run("key", {}, Destination(tracking_uri=store, experiment=f"new {tmp_path.name}"))


def test_an_unknown_run_is_named(destination: Destination) -> None:
    with pytest.raises(TrackingError, match="0000"):
        open_run("key", {}, replaced(destination, run_id="0000"))


# ---------------------------------------------------------------------------------------------------- finding evidence


def test_evidence_comes_back_without_its_derived_views(
    store: str, destination: Destination, folder: Path, tmp_path: Path
) -> None:
    run_id = log(destination, folder)
    for number, name in enumerate((run_id, f"runs:/{run_id}")):
        fetched = tracking.fetch_evidence(name, tmp_path / f"fetched{number}", tracking_uri=store)
        assert {path.name for path in fetched.iterdir()} == {"manifest.json", "layers.npz", "layers_table.json"}
        assert (fetched / "layers.npz").read_bytes() == b"layers"


def test_a_folder_is_returned_as_it_is(folder: Path, tmp_path: Path) -> None:
    assert tracking.fetch_evidence(folder, tmp_path / "unused") == folder
    assert not (tmp_path / "unused").exists()


def test_a_used_destination_is_refused(store: str, destination: Destination, folder: Path) -> None:
    run_id = log(destination, folder)
    with pytest.raises(TrackingError, match="not empty"):
        tracking.fetch_evidence(run_id, folder, tracking_uri=store)


def test_a_training_run_leads_to_its_audit(
    client: MlflowClient, store: str, destination: Destination, training_run: str, folder: Path
) -> None:
    with pytest.raises(TrackingError, match="no finished audit"):
        tracking.resolve_run(training_run, tracking_uri=store)
    child = replaced(destination, parent_run_id=training_run)
    first = log(child, folder)
    assert tracking.resolve_run(f"runs:/{training_run}", tracking_uri=store) == first
    newest = log(replaced(child, force=True), folder)
    assert tracking.resolve_run(training_run, tracking_uri=store) == newest
    other = log(child, folder, key="other weights")
    with pytest.raises(TrackingError, match=f"several checkpoints.*{other}"):
        tracking.resolve_run(training_run, tracking_uri=store)
    client.set_tag(first, "interpret.checkpoint_uri", f"runs:/{training_run}/epoch_1.pt")
    assert tracking.resolve_run(f"runs:/{training_run}/epoch_1.pt", tracking_uri=store) == first


def test_an_unfinished_audit_is_refused(store: str, destination: Destination) -> None:
    with pytest.raises(RuntimeError), open_run("key", {}, destination) as run:
        raise RuntimeError
    with pytest.raises(TrackingError, match="marked 'failed'"):
        tracking.resolve_run(run.run_id, tracking_uri=store)


def test_reading_makes_no_database(tmp_path: Path) -> None:
    empty = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for address in ("0123456789abcdef", "models:/net/1"):
        with pytest.raises(TrackingError, match=f"no MLflow store at {empty}"):
            tracking.fetch_evidence(address, tmp_path / "evidence", tracking_uri=empty)
    with pytest.raises(TrackingError, match="no MLflow store"):
        tracking.fetch_checkpoint("runs:/0123", tmp_path / "checkpoint", tracking_uri=empty)
    assert tracking.source_of("runs:/0123", tracking_uri=empty) == (None, None)
    with pytest.raises(TrackingError, match="neither a folder with an evidence bundle nor the id"):
        tracking.fetch_evidence("no/such/folder", tmp_path / "evidence", tracking_uri=empty)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", ["0123456789abcdef", "runs:/0123456789abcdef", "models:/m-0123", "models:/none/1"])
def test_unknown_runs_are_named(store: str, run: str, experiment: str) -> None:
    with pytest.raises(TrackingError, match=run):
        tracking.resolve_run(run, tracking_uri=store)


def test_what_mlflow_says_of_a_run(store: str, client: MlflowClient, training_run: str) -> None:
    experiment_id = client.get_run(training_run).info.experiment_id
    origin = {"run_id": training_run, "experiment_id": experiment_id, "run_name": "training", "step": None}
    assert tracking.run_origin(training_run, tracking_uri=store) == origin
    client.set_tag(training_run, "interpret.step", "7")
    assert tracking.run_origin(training_run, tracking_uri=store) == {**origin, "step": 7}
    location = tracking.artifact_location(training_run, tracking_uri=store)
    assert tracking.local_folder(location) is not None
    assert tracking.local_folder("mlflow-artifacts:/0/1/artifacts") is None
    assert tracking.local_folder("/plain/path") == Path("/plain/path")


@pytest.mark.parametrize("path", ["interpret/../../evil", "interpret/..\\evil"])
def test_a_hostile_listing_writes_nothing_outside(
    store: str, destination: Destination, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    run_id = log(destination, folder)
    monkeypatch.setattr(MlflowClient, "list_artifacts", lambda *_: [FileInfo(path, False, 1)])
    with pytest.raises(TrackingError, match="refused"):
        tracking.fetch_evidence(run_id, tmp_path / "fetched", tracking_uri=store)
    assert list((tmp_path / "fetched").iterdir()) == []


# ------------------------------------------------------------------------------------------------- finding checkpoints


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    path.write_bytes(b"weights")
    return path


def put(client: MlflowClient, run_id: str, tmp_path: Path, *paths: str) -> None:
    for path in paths:
        file = tmp_path / "put" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
        client.log_artifact(run_id, str(file), str(Path(path).parent) if "/" in path else None)


def fetch(uri: str, tmp_path: Path, store: str) -> tracking.FetchedCheckpoint:
    return tracking.fetch_checkpoint(uri, tmp_path / "fetched", tracking_uri=store)


def test_a_file_stays_where_it_is(checkpoint: Path, tmp_path: Path) -> None:
    assert tracking.fetch_checkpoint(str(checkpoint), tmp_path / "unused") == (checkpoint, str(checkpoint), None, None)


def test_a_path_in_a_run(client: MlflowClient, store: str, training_run: str, tmp_path: Path) -> None:
    put(client, training_run, tmp_path, "weights/a.pt", "weights/b.pt")
    found = fetch(f"runs:/{training_run}/weights/b.pt", tmp_path, store)
    assert found.path.read_text() == "weights/b.pt"
    assert found.uri == f"runs:/{training_run}/weights/b.pt"
    assert found.run_id == training_run
    with pytest.raises(TrackingError, match=r"several checkpoints; name one of weights/a\.pt, weights/b\.pt"):
        fetch(f"runs:/{training_run}/weights", tmp_path, store)


def test_the_newest_of_a_series(client: MlflowClient, store: str, training_run: str, tmp_path: Path) -> None:
    put(client, training_run, tmp_path, "checkpoints/epoch_9.pt", "checkpoints/epoch_10.pt", "other.pt", "notes.txt")
    found = fetch(f"runs:/{training_run}", tmp_path, store)
    assert found.path.read_text() == "checkpoints/epoch_10.pt"
    assert found.uri == f"runs:/{training_run}/checkpoints/epoch_10.pt"


def test_what_the_checkpoint_callback_called_the_latest(
    client: MlflowClient, store: str, training_run: str, tmp_path: Path
) -> None:
    put(client, training_run, tmp_path, "checkpoints/epoch_1/checkpoint.pth", "checkpoints/epoch_2/checkpoint.pth")
    client.set_tag(training_run, "mlflow.latest_checkpoint_artifact", "checkpoints/epoch_1/checkpoint.pth")
    assert fetch(f"runs:/{training_run}", tmp_path, store).path.read_text() == "checkpoints/epoch_1/checkpoint.pth"


def test_any_weight_file_if_there_is_only_one(
    client: MlflowClient, store: str, training_run: str, tmp_path: Path
) -> None:
    put(client, training_run, tmp_path, "deep/down/net.safetensors", "interpret/weights.pt", "metrics.json")
    assert fetch(f"runs:/{training_run}", tmp_path, store).path.read_text() == "deep/down/net.safetensors"
    put(client, training_run, tmp_path, "last.safetensors")
    with pytest.raises(TrackingError, match=r"deep/down/net\.safetensors, last\.safetensors"):
        fetch(f"runs:/{training_run}", tmp_path, store)


def test_a_run_without_a_checkpoint(client: MlflowClient, store: str, training_run: str, tmp_path: Path) -> None:
    put(client, training_run, tmp_path, "notes/a.txt")
    with pytest.raises(TrackingError, match=f"{training_run}.*holds no checkpoint"):
        fetch(f"runs:/{training_run}", tmp_path, store)
    with pytest.raises(TrackingError, match=r"holds no checkpoint.*only notes/a\.txt"):
        fetch(f"runs:/{training_run}/notes", tmp_path, store)
    with pytest.raises(TrackingError, match=r"nothing\.pt"):
        fetch(f"runs:/{training_run}/nothing.pt", tmp_path, store)
    with pytest.raises(TrackingError, match="names no run"):
        fetch("runs:/", tmp_path, store)


def test_a_registered_model_by_version_and_alias(
    client: MlflowClient, store: str, training_run: str, tmp_path: Path
) -> None:
    put(client, training_run, tmp_path, "export/data/net.safetensors", "export/data/net.pt", "export/MLmodel")
    name = f"net-{tmp_path.name}"
    client.create_registered_model(name)
    version = client.create_model_version(name, f"runs:/{training_run}/export", run_id=training_run)
    client.set_registered_model_alias(name, "champion", str(version.version))
    for uri in (f"models:/{name}/{version.version}", f"models:/{name}@champion"):
        found = fetch(uri, tmp_path, store)
        assert found.path.read_text() == "export/data/net.safetensors"
        assert (found.uri, found.run_id) == (uri, training_run)
        assert tracking.source_of(uri, tracking_uri=store) == (training_run, None)
    with pytest.raises(TrackingError, match="no version number or alias"):
        fetch(f"models:/{name}/Production", tmp_path, store)


def test_a_registered_model_that_is_one_file(
    client: MlflowClient, store: str, training_run: str, tmp_path: Path
) -> None:
    put(client, training_run, tmp_path, "export/net.pt")
    name = f"file-{tmp_path.name}"
    client.create_registered_model(name)
    client.create_model_version(name, f"runs:/{training_run}/export/net.pt", run_id=training_run)
    assert fetch(f"models:/{name}/1", tmp_path, store).path.read_text() == "export/net.pt"


def test_a_logged_model_by_its_id_and_as_the_newest_of_its_run(
    client: MlflowClient, store: str, training_run: str, tmp_path: Path
) -> None:
    experiment_id = client.get_run(training_run).info.experiment_id
    for step, name in ((5, "five"), (7, "seven"), (6, "six")):
        model = client.create_logged_model(experiment_id, name=name, source_run_id=training_run)
        local = tmp_path / name
        (local / "data").mkdir(parents=True)
        (local / "data" / "model.pth").write_text(name)
        client.log_model_artifacts(model.model_id, str(local))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(training_run, [LoggedModelOutput(model.model_id, step)])
        found = fetch(f"models:/{model.model_id}", tmp_path, store)
        assert (found.path.read_text(), found.run_id, found.step) == (name, training_run, step)
        assert tracking.source_of(f"models:/{model.model_id}", tracking_uri=store) == (training_run, model.model_id)
    put(client, training_run, tmp_path, "checkpoints/epoch_1.pt")
    assert fetch(f"runs:/{training_run}", tmp_path, store).path.read_text() == "seven"


def logged_model(client: MlflowClient, run_id: str, tmp_path: Path, name: str, step: int, file: str) -> str:
    """Id of a model of the run with one file, which holds its path."""
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, name=name, source_run_id=run_id)
    local = tmp_path / model.model_id / file
    local.parent.mkdir(parents=True)
    local.write_text(f"{name} {step} {file}")
    client.log_model_artifacts(model.model_id, str(tmp_path / model.model_id))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    return str(model.model_id)


def test_metrics_are_linked_to_the_logged_model(
    client: MlflowClient, destination: Destination, training_run: str, tmp_path: Path
) -> None:
    model_id = logged_model(client, training_run, tmp_path, "model", 1, "data/model.pth")
    for _ in range(2):  # a killed try, and the next one
        run = open_run("key", {}, destination, model_id=model_id)
        run.finish("running", [("interpret/top1_accuracy", 1, 0.5)])
    run.finish("complete", [("interpret/top1_accuracy", 1, 0.5)])
    (metric,) = client.get_logged_model(model_id).metrics
    assert (metric.key, metric.value, metric.run_id) == ("interpret/top1_accuracy", 0.5, run.run_id)
    assert [model.model_id for model in client.get_run(run.run_id).inputs.model_inputs] == [model_id]
    assert tags(client, run.run_id)["interpret.model_id"] == model_id
    assert len(client.get_metric_history(run.run_id, "interpret/top1_accuracy")) == 1


def test_all_checkpoints_of_a_run(client: MlflowClient, store: str, training_run: str, tmp_path: Path) -> None:
    def listed(pattern: str) -> list[str]:
        found = tracking.list_checkpoints(f"runs:/{training_run}/{pattern}", tracking_uri=store)
        return [address.removeprefix(f"runs:/{training_run}/") for address in found]

    with pytest.raises(TrackingError, match="matches no checkpoint"):
        listed("*")
    put(client, training_run, tmp_path, "checkpoints/epoch_9.pt", "checkpoints/epoch_10.pt", "checkpoints/last.pt")
    put(client, training_run, tmp_path, "swa/epoch_1.pt", "interpret/epoch_3.pt", "swa/notes_1.txt")
    assert listed("*") == ["checkpoints/epoch_9.pt", "checkpoints/epoch_10.pt"]
    assert listed("swa/*") == ["swa/epoch_1.pt"]
    assert listed("checkpoints/last*") == ["checkpoints/last.pt"]
    with pytest.raises(TrackingError, match=r"several series; name one, as checkpoints/epoch_#\.pt or swa/epoch_#\.pt"):
        listed("**")
    with pytest.raises(TrackingError, match="matches no checkpoint"):
        listed("nothing*")
    old = logged_model(client, training_run, tmp_path, "model", 20, "data/model.pth")
    new = logged_model(client, training_run, tmp_path, "model", 100, "data/model.pth")
    again = logged_model(client, training_run, tmp_path, "model", 20, "data/model.pth")
    assert old not in listed("*")
    assert listed("*") == [f"models:/{again}", f"models:/{new}"]


def test_a_step_that_no_logged_model_has_is_none(
    client: MlflowClient, store: str, training_run: str, tmp_path: Path
) -> None:
    model_id = logged_model(client, training_run, tmp_path, "model", 0, "data/model.pth")  # MLflow's default is 0
    assert fetch(f"models:/{model_id}", tmp_path, store).step is None
    logged_model(client, training_run, tmp_path, "model", 5, "data/model.pth")
    assert fetch(f"models:/{model_id}", tmp_path, store).step == 0
    assert fetch(f"runs:/{training_run}", tmp_path, store).step == 5


def test_a_logged_model_by_its_name_in_the_run(
    client: MlflowClient, store: str, training_run: str, tmp_path: Path
) -> None:
    logged_model(client, training_run, tmp_path, "model", 1, "data/model.pth")
    newest = logged_model(client, training_run, tmp_path, "model", 2, "data/model.pt2")
    other = logged_model(client, training_run, tmp_path, "other", 3, "data/model.pt2")
    for path, model_id, content in (
        ("model", newest, "model 2 data/model.pt2"),
        ("model/data", newest, "model 2 data/model.pt2"),
        ("model/data/model.pt2", newest, "model 2 data/model.pt2"),
        ("other", other, "other 3 data/model.pt2"),
    ):
        found = fetch(f"runs:/{training_run}/{path}", tmp_path, store)
        assert (found.path.read_text(), found.uri) == (content, f"models:/{model_id}")
        assert found.run_id == training_run
    put(client, training_run, tmp_path, "model/own.pt")  # a folder of the run itself goes before
    assert fetch(f"runs:/{training_run}/model", tmp_path, store).uri == f"runs:/{training_run}/model/own.pt"


def test_logged_models_of_the_same_step(client: MlflowClient, store: str, training_run: str, tmp_path: Path) -> None:
    logged_model(client, training_run, tmp_path, "net", 0, "data/first.pth")
    again = logged_model(client, training_run, tmp_path, "net", 0, "data/second.pth")
    assert fetch(f"runs:/{training_run}", tmp_path, store).uri == f"models:/{again}"
    decoder = logged_model(client, training_run, tmp_path, "decoder", 0, "data/model.pth")
    with pytest.raises(TrackingError, match=rf"several models at its last step, 0; .*{again} \(net\), .*{decoder}"):
        fetch(f"runs:/{training_run}", tmp_path, store)
    assert fetch(f"runs:/{training_run}/decoder", tmp_path, store).uri == f"models:/{decoder}"


def test_the_order_in_which_a_runs_checkpoints_count(
    client: MlflowClient, store: str, training_run: str, tmp_path: Path
) -> None:
    for path in ("elsewhere/a.pt", "model/data/model.pth", "checkpoints/epoch_1/checkpoint.pth"):
        put(client, training_run, tmp_path, path)
        assert fetch(f"runs:/{training_run}", tmp_path, store).uri == f"runs:/{training_run}/{path}"
    put(client, training_run, tmp_path, "named/latest.pt")
    client.set_tag(training_run, "mlflow.latest_checkpoint_artifact", "named/latest.pt")
    assert fetch(f"runs:/{training_run}", tmp_path, store).uri == f"runs:/{training_run}/named/latest.pt"
    model_id = logged_model(client, training_run, tmp_path, "net", 0, "data/model.pth")
    assert fetch(f"runs:/{training_run}", tmp_path, store).uri == f"models:/{model_id}"
    assert fetch(f"runs:/{training_run}/elsewhere/a.pt", tmp_path, store).path.read_text() == "elsewhere/a.pt"


@pytest.mark.parametrize("names", [{"save_best_only": False}, {"save_best_only": True}, {"save_freq": 1}])
def test_what_mlflows_checkpoint_callback_leaves(
    store: str, client: MlflowClient, experiment: str, tmp_path: Path, names: dict[str, object]
) -> None:
    class Callback(MlflowModelCheckpointCallbackBase):
        def save_checkpoint(self, filepath: str) -> None:
            Path(filepath).write_text(f"epoch {self.epoch}")

    settings = {"save_best_only": False, "save_freq": "epoch", "monitor": "loss", "mode": "min"} | names
    mlflow.set_tracking_uri(store)
    try:
        with mlflow.start_run(experiment_id=client.get_experiment_by_name(experiment).experiment_id) as run:
            callback = Callback(checkpoint_file_suffix=".pth", save_weights_only=True, **settings)
            for epoch in range(9, 12):
                callback.epoch = epoch
                callback.check_and_save_checkpoint_if_needed(epoch, epoch, {"loss": 1 / epoch})
    finally:
        mlflow.set_tracking_uri(None)  # MLflow's own default; what it says now would no longer follow the environment
    assert fetch(f"runs:/{run.info.run_id}", tmp_path, store).path.read_text() == "epoch 11"
    if not settings["save_best_only"]:
        client.delete_tag(run.info.run_id, "mlflow.latest_checkpoint_artifact")
        assert fetch(f"runs:/{run.info.run_id}", tmp_path, store).path.read_text() == "epoch 11"


def test_what_lightnings_logger_leaves(client: MlflowClient, store: str, training_run: str, tmp_path: Path) -> None:
    for name in ("epoch=9-step=20", "epoch=10-step=22"):
        put(client, training_run, tmp_path, f"{name}/{name}.ckpt", f"{name}/metadata.yaml", f"{name}/aliases.txt")
    assert fetch(f"runs:/{training_run}", tmp_path, store).path.read_text().endswith("epoch=10-step=22.ckpt")
    put(client, training_run, tmp_path, "last/last.ckpt", "last/metadata.yaml")
    assert fetch(f"runs:/{training_run}", tmp_path, store).path.read_text() == "last/last.ckpt"
    put(client, training_run, tmp_path, "teacher/weights.ckpt")  # of another place: which is meant is not known
    with pytest.raises(TrackingError, match=r"name one of .*last/last\.ckpt, teacher/weights\.ckpt"):
        fetch(f"runs:/{training_run}", tmp_path, store)


def test_the_last_beside_the_best(client: MlflowClient, store: str, training_run: str, tmp_path: Path) -> None:
    put(client, training_run, tmp_path, "checkpoints/best.pt", "checkpoints/last.pt")
    assert fetch(f"runs:/{training_run}", tmp_path, store).uri == f"runs:/{training_run}/checkpoints/last.pt"


def test_addresses_without_a_run_in_this_store(store: str, experiment: str) -> None:
    for address in ("weights/net.pt", "runs:/0123456789abcdef/net.pt", "models:/m-0123456789abcdef"):
        assert tracking.source_of(address, tracking_uri=store) == (None, None)


# ------------------------------------------------------------------------------------------------------------- servers


def test_where_nothing_listens_one_message_comes_at_once() -> None:
    started = time.monotonic()
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TrackingError, match=f"no MLflow server answers at {uri}"):
        tracking.fetch_evidence("0123", "unused", tracking_uri=uri)
    assert time.monotonic() - started < 5


def test_an_address_that_is_none() -> None:
    with pytest.raises(TrackingError, match=r"not an address|no MLflow server"):
        tracking.connect("http://")
    with pytest.raises(TrackingError, match="nowhere:/"):
        tracking.connect("nowhere://somewhere")


def test_a_slow_server_is_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tracking, "PREFLIGHT_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        tracking.connect(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "is slow" in caplog.text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


def test_a_server_holds_the_same_run(server: str, folder: Path, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=server)
    destination = Destination(tracking_uri=server, experiment="over http")
    run_id = log(destination, folder)
    assert log(destination, folder) == run_id
    assert tags(client, run_id)["interpret.status"] == "complete"
    fetched = tracking.fetch_evidence(run_id, tmp_path / "fetched", tracking_uri=server)
    assert (fetched / "layers.npz").read_bytes() == b"layers"
    assert {item.path for item in client.list_artifacts(run_id, "interpret/previews/maps")} == {
        "interpret/previews/maps/000-conv.png"
    }
    put(client, run_id, tmp_path, "checkpoints/net.pt")
    location = tracking.artifact_location(run_id, tracking_uri=server)
    assert location.startswith("mlflow-artifacts:/")
    found = tracking.fetch_checkpoint(f"{location}/checkpoints/net.pt", tmp_path / "c", tracking_uri=server)
    assert (found.path.read_text(), found.run_id) == ("checkpoints/net.pt", run_id)
    found = tracking.fetch_checkpoint(f"runs:/{run_id}", tmp_path / "d", tracking_uri=server)
    assert found.uri == f"runs:/{run_id}/checkpoints/net.pt"
