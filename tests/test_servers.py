"""One audit against the servers that teams run: other databases, other artifact stores, with passwords, or gone."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mlflow import MlflowClient

from bundles import bundle, network
from interpret import cli, sources
from interpret.errors import TrackingError
from interpret.evidence import Evidence
from interpret.publishing import audit_metrics, evidence_key, layers_table, log_evidence, publish, write_views
from servers import BUCKET, MlflowServer, free_port, mlflow_server, postgresql, s3_server

pytestmark = [
    # mlflow 3.17 with SQLAlchemy 2.1 (November 2026): mlflow's own queries use a loader that SQLAlchemy deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]

STEP = 7
ADMIN, USER, READER = (
    ("admin", "the-admins-password"),
    ("auditor", "the-auditors-password"),
    ("reader", "the-readers-p"),
)


@pytest.fixture(scope="session")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    labels = [index % 10 for index in range(16)]
    evidence = bundle(network(widths=(8, 12)), tmp_path_factory.mktemp("audit") / "bundle", labels=labels)
    write_views(evidence, ("html",))
    return evidence


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path / "cache"))


# ---------------------------------------------------------------------------------------------------------- the servers


class Place:
    """A store, the beginning of the addresses of its artifacts, and what a client needs in its environment."""

    def __init__(self, uri: str, artifacts: str, **environment: str) -> None:
        self.uri, self.artifacts, self.environment = uri, artifacts, environment


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with mlflow_server(tmp_path_factory.mktemp("sqlite")) as uri:
        yield Place(uri, "mlflow-artifacts:/")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with postgresql() as store, mlflow_server(tmp_path_factory.mktemp("postgresql"), store=store) as uri:
        yield Place(uri, "mlflow-artifacts:/")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture(scope="session")
def s3_by_server(s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The server alone knows the bucket's secrets."""
    folder = tmp_path_factory.mktemp("by_server")
    with mlflow_server(folder, artifacts=f"s3://{BUCKET}/by-server", environment=s3) as uri:
        yield Place(uri, "mlflow-artifacts:/")


@pytest.fixture(scope="session")
def s3_by_client(s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The server knows the bucket's name, the client its secrets."""
    root = f"s3://{BUCKET}/by-client"
    options = ("--default-artifact-root", root, "--no-serve-artifacts")
    with mlflow_server(tmp_path_factory.mktemp("by_client"), options=options) as uri:
        yield Place(uri, root, **s3)


@pytest.fixture(scope="session")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server with an account for each of `USER` and `READER`, who may read what others make."""
    folder = tmp_path_factory.mktemp("passwords")
    settings = {
        "database_uri": f"sqlite:///{folder / 'passwords.db'}",
        "default_permission": "READ",
        "admin_username": ADMIN[0],
        "admin_password": ADMIN[1],
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": "600",  # checking a password takes a third of a second, and each request brings one
    }
    (folder / "auth.ini").write_text("\n".join(["[mlflow]", *(f"{key} = {value}" for key, value in settings.items())]))
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of no other session",
    }
    with mlflow_server(folder, options=("--app-name", "basic-auth"), environment=environment) as uri:
        for name, password in (USER, READER):
            account = {"username": name, "password": password}
            made = requests.post(f"{uri}/api/2.0/mlflow/users/create", json=account, auth=ADMIN, timeout=30)
            made.raise_for_status()
        yield Place(uri, "mlflow-artifacts:/", **account_of(USER))


def account_of(user: tuple[str, str]) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": user[0], "MLFLOW_TRACKING_PASSWORD": user[1]}


@pytest.fixture(scope="session", params=["sqlite", "postgres", "s3_by_server", "s3_by_client", "passwords"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    place: Place = request.getfixturevalue(request.param)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in place.environment.items():
            environment.setenv(name, value)
        yield place


@pytest.fixture(scope="session")
def run_id(place: Place, audit: Evidence) -> str:
    return published(audit, place.uri)


def published(audit: Evidence, uri: str) -> str:
    return publish(audit, tracking_uri=uri, experiment="audits", step=STEP, formats=("html",), views=False)


# --------------------------------------------------------------------------------------------- an audit on each of them


def test_the_same_audit_again_is_recognised(place: Place, run_id: str, audit: Evidence) -> None:
    client = MlflowClient(tracking_uri=place.uri)
    assert published(audit, place.uri) == log_evidence(audit, tracking_uri=place.uri, experiment="audits") == run_id
    run = client.get_run(run_id)
    assert [found.info.run_id for found in client.search_runs([run.info.experiment_id])] == [run_id]
    assert run.info.artifact_uri.startswith(place.artifacts)


def test_it_is_read_back_as_it_was(place: Place, run_id: str, audit: Evidence, tmp_path: Path) -> None:
    (fetched,), (origin,) = sources.fetch_runs([run_id], tmp_path / "fetched", tracking_uri=place.uri)
    assert fetched.digest == audit.digest
    assert (origin["run_id"], origin["run_name"], origin["step"]) == (run_id, "TinyNet", STEP)
    assert set(fetched.manifest.files) == {path.name for path in audit.folder.iterdir() if path.is_file()} - {
        "manifest.json",
        "journal.json",
    }
    for kind in ("weights", "layers", "maps", "predictions"):
        for name in audit.keys(kind):
            np.testing.assert_array_equal(fetched.array(kind, name), audit.array(kind, name))
    client = MlflowClient(tracking_uri=place.uri)
    for file in (path for path in audit.folder.rglob("*") if path.is_file()):  # previews and the report among them
        path = f"interpret/{file.relative_to(audit.folder).as_posix()}"
        assert sha256(Path(client.download_artifacts(run_id, path, str(tmp_path)))) == sha256(file), path


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_every_metric_is_there_once(place: Place, run_id: str, audit: Evidence) -> None:
    expected = defaultdict(list)
    for name, step, value in audit_metrics(audit, STEP):
        if math.isfinite(value):
            expected[name].append((step, value))
    client = MlflowClient(tracking_uri=place.uri)
    histories = {name: client.get_metric_history(run_id, name) for name in client.get_run(run_id).data.metrics}
    points = {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}
    assert points == {name: sorted(points) for name, points in expected.items()}


def test_tags_table_description_and_pictures_are_there(
    place: Place, run_id: str, audit: Evidence, tmp_path: Path
) -> None:
    client = MlflowClient(tracking_uri=place.uri)
    run = client.get_run(run_id)
    tags = run.data.tags
    assert (run.info.status, tags["interpret.status"]) == ("FINISHED", "complete")
    assert tags["interpret.key"] == evidence_key(audit)
    assert tags["interpret.manifest_sha256"] == audit.digest
    assert tags["interpret.step"] == str(STEP)
    assert "TinyNet.safetensors" in tags["mlflow.note.content"]
    path = "interpret/layers_table.json"
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": path, "type": "table"}]
    table = json.loads(Path(client.download_artifacts(run_id, path, str(tmp_path))).read_text())
    expected = layers_table(audit)
    assert table["columns"] == list(expected)
    assert table["data"] == [list(cells) for cells in zip(*expected.values(), strict=True)]
    assert {item.path for item in client.list_artifacts(run_id)} == {"interpret", "interpret_report.html", "images"}
    images = {item.path.partition("+")[0] for item in client.list_artifacts(run_id, "images")}
    kinds = ("kernels", "activations", "maps")
    assert images == {f"images/interpret~{kind}~{slug}" for kind in kinds for slug in ("000-conv1", "003-layer1.conv")}


# ---------------------------------------------------------------------------------------------------- those that refuse


def test_a_wrong_password_is_one_clear_error(
    passwords: Place, audit: Evidence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in account_of((USER[0], "not-the-password")).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrackingError, match=f"{passwords.uri}.*(401|not authenticated)") as caught:
        published(audit, passwords.uri)
    assert "not-the-password" not in str(caught.value)
    assert_one_line_of_error(["show", "0123", "--tracking-uri", passwords.uri], "not authenticated", capsys)


def test_who_may_only_read_reads_and_is_told_where_writing_is_refused(
    passwords: Place, audit: Evidence, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in passwords.environment.items():
        monkeypatch.setenv(name, value)
    run = published(audit, passwords.uri)
    for name, value in account_of(READER).items():
        monkeypatch.setenv(name, value)
    (fetched,), _ = sources.fetch_runs([run], tmp_path / "fetched", tracking_uri=passwords.uri)
    assert (fetched.array("predictions", "logits") == audit.array("predictions", "logits")).all()
    assert published(audit, passwords.uri) == run
    with pytest.raises(TrackingError, match=f"{passwords.uri}.*(403|Permission denied)"):
        log_evidence(audit, tracking_uri=passwords.uri, experiment="audits", force=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "net.safetensors", "--model", "torchvision:resnet18", "--images", "."],
        ["report", "0123", "4567", "-o", "report"],
        ["show", "0123"],
        ["report", "--filter", "tags.x = 'y'", "-o", "report"],
    ],
)
def test_where_nothing_listens_every_command_says_so_at_once(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    assert_one_line_of_error([*arguments, "--tracking-uri", address], f"no MLflow server answers at {address}", capsys)


def test_where_nothing_listens_python_says_so_at_once(audit: Evidence) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    actions: list[Any] = [published, lambda audit, uri: log_evidence(audit, tracking_uri=uri)]
    for act in actions:
        start = time.monotonic()
        with pytest.raises(TrackingError, match=f"no MLflow server answers at {address}"):
            act(audit, address)
        assert time.monotonic() - start < 5


def assert_one_line_of_error(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert cli.main(arguments) == 2
    assert time.monotonic() - start < 5
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]  # before it, stages of the work
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in captured.err


def test_a_bucket_that_is_gone_is_one_clear_error(
    s3: dict[str, str], audit: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    direct = ("--default-artifact-root", "s3://nowhere", "--no-serve-artifacts")
    for options in ({"options": direct}, {"artifacts": "s3://nowhere", "environment": s3}):
        folder = tmp_path / str(len(options))
        folder.mkdir()
        with MlflowServer(folder, **options) as server:  # type: ignore[arg-type]
            with pytest.raises(TrackingError, match=server.uri):
                log_evidence(audit, tracking_uri=server.uri)
            (run,) = MlflowClient(tracking_uri=server.uri).search_runs(["0"])
            assert run.data.tags["interpret.status"] == "failed"
