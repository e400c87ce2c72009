"""Uploads that a power cut interrupts, at either end: nothing is lost, nothing is there twice."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any

import pytest
import urllib3.connectionpool
from mlflow import MlflowClient
from urllib3.exceptions import ProtocolError

from bundles import bundle, network
from interpret import publishing, sources, tracking
from interpret.errors import TrackingError
from interpret.evidence import Evidence, read_evidence
from servers import FORKS, MlflowServer

pytestmark = [
    # mlflow 3.17 with SQLAlchemy 2.1 (November 2026): mlflow's own queries use a loader that SQLAlchemy deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]

POINTS = tuple(range(10))  # of an upload, from its first request to its last
BATCH = 2  # so that an upload of few metrics can be interrupted between their batches
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "9",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}

Send = Callable[..., Any]


class Requests:
    """Counts the requests of this process, and lets something happen once: at one of them, or at the last of an upload.

    The last is known by what it writes: there is one more where a connection was left open for too long.
    """

    def __init__(self, at: int | None = None, happen: Callable[[Callable[[], Any]], Any] | None = None) -> None:
        self.count, self._at, self._happen = 0, at, happen
        self._lock = threading.Lock()

    def send(self, original: Send) -> Send:
        def counted(*arguments: Any, **options: Any) -> Any:
            body = str(options.get("body"))
            last = "interpret.status" in body and '"complete"' in body
            with self._lock:
                self.count += 1
                due = last if self._at is None else self.count == self._at
                happen = self._happen if due else None
                self._happen = None if due else self._happen
            request = lambda: original(*arguments, **options)  # noqa: E731
            return request() if happen is None else happen(request)

        return counted


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Requests], None]:
    pool = urllib3.connectionpool.HTTPConnectionPool
    original = pool._make_request
    return lambda requests: monkeypatch.setattr(pool, "_make_request", requests.send(original))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    evidence = bundle(network(widths=(4,)), tmp_path_factory.mktemp("audit") / "bundle")
    publishing.write_views(evidence, ("html",))
    return evidence


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in PATIENCE.items():
            environment.setenv(name, value)
        with MlflowServer(tmp_path_factory.mktemp("server")) as server:
            yield server


@pytest.fixture(scope="module")
def length(server: MlflowServer, audit: Evidence) -> int:
    """How many requests an upload takes that nobody interrupts."""
    pool = urllib3.connectionpool.HTTPConnectionPool
    for experiment in ("first", "second"):  # the first asks the server for its version and the like
        requests = Requests()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool, "_make_request", requests.send(pool._make_request))
            publish(audit, server.uri, experiment)
    assert requests.count > 3 * len(POINTS)
    return requests.count


def publish(audit: Evidence, uri: str, experiment: str) -> str:
    where: dict[str, Any] = {"tracking_uri": uri, "experiment": experiment}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "BATCH", BATCH)
        return publishing.publish(audit, **where, step=3, formats=("html",), views=False)


def place_of(point: int, length: int) -> int | None:
    """The request of a point, counted from 1; None is the last."""
    return None if point == POINTS[-1] else 1 + round(point * (length - 1) / POINTS[-1])


def assert_one_whole_audit(uri: str, experiment: str, run_id: str, audit: Evidence, folder: Path) -> None:
    client = MlflowClient(tracking_uri=uri)
    place = client.get_experiment_by_name(experiment)
    assert place is not None
    found = client.search_runs([place.experiment_id], f"tags.`interpret.key` = '{publishing.evidence_key(audit)}'")
    complete = [run for run in found if run.data.tags["interpret.status"] == "complete"]
    assert [run.info.run_id for run in complete] == [run_id]
    assert complete[0].info.status == "FINISHED"

    fetched = Path(client.download_artifacts(run_id, "interpret", str(folder)))
    files = {file.relative_to(audit.folder) for file in audit.folder.rglob("*") if file.is_file()}
    assert {file.relative_to(fetched) for file in fetched.rglob("*") if file.is_file()} - files == {
        Path("layers_table.json")
    }
    for file in files:
        assert sha256(fetched / file) == sha256(audit.folder / file), file
    read_evidence(fetched).verify()

    expected = defaultdict(list)
    for name, step, value in publishing.audit_metrics(audit, 3):
        if math.isfinite(value):
            expected[name].append((step, value))
    points = {name: client.get_metric_history(run_id, name) for name in expected}
    assert {name: sorted((point.step, point.value) for point in found) for name, found in points.items()} == {
        name: sorted(found) for name, found in expected.items()
    }
    pictures = [item.path for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png")]
    assert set(Counter(path.partition("+")[0] for path in pictures).values()) == {1}
    assert len(pictures) == len(publishing.curated_images(audit))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("point", POINTS)
def test_a_server_killed_during_an_upload_and_started_again_has_all_of_it_once(
    server: MlflowServer,
    audit: Evidence,
    length: int,
    watched: Callable[[Requests], None],
    tmp_path: Path,
    point: int,
) -> None:
    kills = []

    def killed(request: Callable[[], Any]) -> Any:
        kills.append(point)
        if point % 2:
            request()  # the server did what was asked, but its answer is lost
        server.kill()
        server.start()
        raise ProtocolError("Connection aborted.", RemoteDisconnected("the server was killed"))

    watched(Requests(place_of(point, length), killed))
    run_id = publish(audit, server.uri, f"server {point}")
    assert kills == [point]
    assert_one_whole_audit(server.uri, f"server {point}", run_id, audit, tmp_path)


@pytest.mark.parametrize("point", POINTS)
def test_after_a_client_was_killed_the_next_audit_completes_its_run(
    server: MlflowServer, audit: Evidence, length: int, tmp_path: Path, point: int
) -> None:
    experiment, at = f"client {point}", place_of(point, length)
    process = FORKS.Process(target=_publish_until, args=(audit.folder, server.uri, experiment, at))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL

    client = MlflowClient(tracking_uri=server.uri)
    place = client.get_experiment_by_name(experiment)
    left = [] if place is None else client.search_runs([place.experiment_id])
    assert len(left) == (point > 0)  # the run is made by one of the first requests
    for run in left:
        with pytest.raises(TrackingError, match="holds no finished audit"):  # its status is what is set last
            sources.fetch_runs([run.info.run_id], tmp_path / "half", tracking_uri=server.uri)
    run_id = publish(audit, server.uri, experiment)
    assert [run.info.run_id for run in left] in ([], [run_id])
    assert_one_whole_audit(server.uri, experiment, run_id, audit, tmp_path)


def _publish_until(folder: Path, uri: str, experiment: str, at: int | None) -> None:
    pool = urllib3.connectionpool.HTTPConnectionPool
    requests = Requests(at, lambda request: os.kill(os.getpid(), signal.SIGKILL))
    setattr(pool, "_make_request", requests.send(pool._make_request))  # noqa: B010
    publish(read_evidence(folder), uri, experiment)
