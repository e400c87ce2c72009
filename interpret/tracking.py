"""MLflow: find, download, upload. Knows nothing of what is inside a bundle.

No other module on the main path imports mlflow. Only `MlflowClient` is used: no active run is started, changed or
left behind. Every failure of MLflow becomes a `TrackingError` that names the store.
"""

from __future__ import annotations

import getpass
import json
import logging
import math
import os
import re
import ssl
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NamedTuple, Self

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from interpret.errors import TrackingError, did_you_mean

logger = logging.getLogger("interpret")

BUNDLE = "interpret"  # the artifact folder that holds the bundle
FINISHED = ("complete", "partial")  # values of the status tag of an audit that can be read
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pt2")
REMOTE = ("runs:/", "models:/", "mlflow-artifacts:/")  # beginnings of the addresses that MLflow resolves
BATCH = 900  # entities of one log_batch: MLflow takes 1000 in all, tags included
UPLOADS = 6  # over http, parallel single uploads are 2-3 times faster than log_artifacts, which is a plain loop there
PREFLIGHT_SECONDS = 4
PAGE = 1000  # runs or experiments of one answer
TAG_LENGTH = 5000  # MLflow takes 5000 characters on the oldest servers and cuts silently at 8000 on the newest


class FetchedCheckpoint(NamedTuple):
    """A checkpoint on this disk, its address, and the run that made it (None where no run is known).

    The address is the one that was asked for; where that may mean another file one day, the one it means today: the
    file's path in the run, the logged model's id, the version's number.
    """

    path: Path
    uri: str
    run_id: str | None


@dataclass(frozen=True, slots=True)
class LoggedAudit:
    """A finished audit in MLflow: what the store says of it, and the way to its files.

    Attributes:
        run_id: the run that holds it.
        run_name: the run's name.
        step: the checkpoint's step; None where unknown.
        artifact_uri: where the run's artifacts lie.
        tracking_uri: the store.
        digests: sha256 of manifest.json and of journal.json, which no manifest lists; empty for runs of older releases.
    """

    run_id: str
    run_name: str | None
    step: int | None
    artifact_uri: str
    tracking_uri: str
    digests: Mapping[str, str]

    @property
    def origin(self) -> dict[str, Any]:
        """`run_id`, `run_name` and `step`."""
        return {"run_id": self.run_id, "run_name": self.run_name, "step": self.step}

    @property
    def folder(self) -> Path | None:
        """The bundle, where it lies on this disk: it need not be downloaded."""
        place = local_folder(self.artifact_uri)
        return place / BUNDLE if place is not None and (place / BUNDLE / "manifest.json").is_file() else None

    def download(self, path: str, file: Path) -> None:
        """Write one file of the bundle to this disk, by one request.

        Raises:
            TrackingError: the store does not give it.
        """
        _check_inside(path)
        try:
            # MLflow's `download_artifacts` would first ask whether the path is a folder.
            artifacts: Any = get_artifact_repository(self.artifact_uri, tracking_uri=self.tracking_uri)
            artifacts._download_file(f"{BUNDLE}/{path}", str(file))
        except Exception as error:  # every kind of store has its own errors
            raise TrackingError(
                f"{BUNDLE}/{path} of run {self.run_id} cannot be downloaded from {self.tracking_uri}: {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an audit goes.

    Attributes:
        tracking_uri: None takes MLflow's own default.
        experiment: name; None takes the parent run's, else MLflow's own default.
        run_id: an existing run to write into; None makes a new one.
        run_name: name of a new run.
        parent_run_id: run under which a new one is shown.
        force: make a new run even where the same audit is there already.
    """

    tracking_uri: str | None = None
    experiment: str | None = None
    run_id: str | None = None
    run_name: str | None = None
    parent_run_id: str | None = None
    force: bool = False


def connect(tracking_uri: str | None = None, *, reading: bool = False) -> MlflowClient:
    """A client of the store, after checking that a server listens at all.

    Without this check MLflow's own retries keep a caller waiting for minutes.

    Args:
        tracking_uri: None takes MLflow's own default.
        reading: whether the store must be there already. MLflow itself makes an empty database where there is none.

    Raises:
        TrackingError: nothing listens at an http address, or the store cannot be opened.
    """
    uri = tracking_uri or mlflow.get_tracking_uri()
    if reading and not _may_exist(uri):
        raise TrackingError(f"there is no MLflow store at {uri}; name yours with --tracking-uri or MLFLOW_TRACKING_URI")
    if urllib.parse.urlsplit(uri).scheme in ("http", "https"):
        _check_listening(uri)
    with _explained(uri):
        return MlflowClient(tracking_uri=uri)


def _may_exist(uri: str) -> bool:
    """False for a database file that is not there."""
    path = uri.removeprefix("sqlite:///")
    return path == uri or Path(urllib.parse.unquote(path)).is_file()


def _check_listening(uri: str) -> None:
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PREFLIGHT_SECONDS).close()
    except urllib.error.HTTPError as answer:
        answer.close()  # any answer means that somebody listens; what it says is MLflow's to judge
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # somebody listens; MLflow has its own settings for certificates
            raise TrackingError(
                f"no MLflow server answers at {uri} ({error.reason}); start one with `mlflow server`, correct "
                "--tracking-uri or MLFLOW_TRACKING_URI, or leave both out to log into the current folder"
            ) from error
    except TimeoutError:
        logger.warning("the MLflow server at %s is slow: no answer to /health in %d s", uri, PREFLIGHT_SECONDS)
    except ValueError as error:
        raise TrackingError(f"tracking URI {uri!r} is not an address: {error}") from error


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into TrackingError."""
    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"MLflow ({uri}): {error.message}") from error


class AuditRun:
    """The MLflow run that receives one audit; a context manager that sets its status last.

    Leaving the block by an exception marks the audit as failed, with the reason; leaving it without `finish` as well.

    Attributes:
        run_id: the run.
        recognised: the same audit is there already, complete: nothing needs to be written.
    """

    def __init__(self, client: MlflowClient, run: Run, *, owned: bool, recognised: bool) -> None:
        self.run_id: str = run.info.run_id
        self.recognised = recognised
        self._client = client
        self._run = run
        self._owned = owned
        self._tables: list[str] = []
        self._note = ""
        self._finished = recognised

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._finished:
            return
        reason = f"{type(error).__name__}: {error}" if error else "the audit was not finished"
        try:
            self._client.log_batch(
                self.run_id,
                tags=[RunTag("interpret.failure", reason[:TAG_LENGTH]), RunTag("interpret.status", "failed")],
            )
            if self._owned:
                stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
                self._client.set_terminated(self.run_id, "KILLED" if stopped else "FAILED")
        except MlflowException as second:
            # The first error is the one to report; the status tag then stays at `running`, which readers refuse too.
            logger.warning("run %s could not be marked as failed: %s", self.run_id, second.message)

    @property
    def location(self) -> str:
        """Where the run's artifacts lie."""
        return str(self._run.info.artifact_uri)

    def page(self, artifact_path: str) -> str:
        """Address of an artifact's page in MLflow, the same on every host."""
        info = self._run.info
        return f"#/experiments/{info.experiment_id}/runs/{info.run_id}/artifacts/{urllib.parse.quote(artifact_path)}"

    def describe(self, markdown: str) -> None:
        """Give a new run a description; the description of a run that somebody else made is left alone."""
        self._note = markdown if self._owned else ""

    def upload_folder(self, folder: Path, artifact_path: str) -> None:
        """Upload everything below a folder."""
        with self._reported():
            if _scheme(self.location) not in ("http", "https", "mlflow-artifacts"):
                self._client.log_artifacts(self.run_id, str(folder), artifact_path)
                return
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            with ThreadPoolExecutor(UPLOADS) as pool:
                for _ in pool.map(lambda path: self._upload(path, folder, artifact_path), files):
                    pass

    def _upload(self, path: Path, folder: Path, artifact_path: str) -> None:
        below = PurePosixPath(artifact_path) / path.relative_to(folder).parent.as_posix()
        self._client.log_artifact(self.run_id, str(path), str(below))

    def upload_file(self, path: Path, artifact_path: str | None = None) -> None:
        """Upload one file into an artifact folder; None is the top level."""
        with self._reported():
            self._client.log_artifact(self.run_id, str(path), artifact_path)

    def log_table(self, table: Mapping[str, Sequence[object]], artifact_file: str) -> None:
        """Write a table (column name -> cells) that MLflow's runs page can pivot.

        The file and the tag are those of `MlflowClient.log_table`, which would append the rows again on a second try.
        """
        rows = [list(cells) for cells in zip(*table.values(), strict=True)]
        with self._reported():
            self._client.log_dict(self.run_id, {"columns": list(table), "data": rows}, artifact_file)
        self._tables.append(artifact_file)

    def log_images(self, images: Mapping[str, Path], step: int) -> None:
        """Show a few pictures among the run's charts; each costs as much as twenty plain uploads."""
        with self._reported():
            # A second try must not add a second picture to the same step; MLflow writes a key's "/" as "~".
            there = () if self._owned else [item.path for item in self._client.list_artifacts(self.run_id, "images")]
            for key, path in images.items():
                if not any(name.startswith(f"images/{key.replace('/', '~')}+") for name in there):
                    self._client.log_image(self.run_id, mlflow.Image(str(path)), key=key, step=step)

    def finish(self, status: str, metrics: Iterable[tuple[str, int, float]] = ()) -> None:
        """Write the metrics, as (name, step, value), and last of all the status.

        Values that are not finite never become metrics: MLflow returns infinity as 1.797e308.
        """
        now = int(time.time() * 1000)
        written = set() if self._owned else self._written_points()
        named = ((metric_name(name), step, float(value)) for name, step, value in metrics)
        points = [
            Metric(name, value, now, step)
            for name, step, value in named
            if math.isfinite(value) and (name, step) not in written
        ]
        note = {"mlflow.note.content": self._note[:TAG_LENGTH]} if self._note else {}
        last = {**self._table_tag(), **note, "interpret.status": status}
        with self._reported():
            while len(points) > BATCH:
                self._client.log_batch(self.run_id, metrics=points[:BATCH])
                points = points[BATCH:]
            self._client.log_batch(self.run_id, metrics=points, tags=[RunTag(*tag) for tag in last.items()])
            if self._owned:
                self._client.set_terminated(self.run_id)
        self._finished = True

    def _written_points(self) -> set[tuple[str, int]]:
        """Points that an interrupted try left behind: MLflow would keep both."""
        names = [name for name in self._run.data.metrics if name.startswith(f"{BUNDLE}/")]
        with self._reported():
            return {
                (name, point.step) for name in names for point in self._client.get_metric_history(self.run_id, name)
            }

    def _table_tag(self) -> dict[str, str]:
        if not self._tables:
            return {}
        entries = json.loads(self._run.data.tags.get("mlflow.loggedArtifacts", "[]"))
        entries += [entry for path in self._tables if (entry := {"path": path, "type": "table"}) not in entries]
        return {"mlflow.loggedArtifacts": json.dumps(entries)}

    @contextmanager
    def _reported(self) -> Iterator[None]:
        with _explained(self._client.tracking_uri):
            yield


def open_run(
    key: str, tags: Mapping[str, str], destination: Destination, accepted: Collection[str | None] = FINISHED
) -> AuditRun:
    """The run for an audit: the one that holds it already, the one that was asked for, or a new one.

    Args:
        key: identity of the audit; the same key means the same audit.
        tags: tags that the run carries from its start.
        destination: where to look and where to write.
        accepted: status values with which an audit of the same key counts as done.

    Raises:
        TrackingError: the store cannot be reached, or the run that was asked for is unknown or holds another audit.
    """
    client = connect(destination.tracking_uri)
    with _explained(client.tracking_uri):
        started = {**tags, "interpret.key": key, "interpret.status": "running"}
        parent_run_id = destination.parent_run_id
        if destination.run_id is not None:
            run = client.get_run(destination.run_id)
            held = run.data.tags.get("interpret.key")
            if held == key and run.data.tags.get("interpret.status") in accepted and not destination.force:
                return AuditRun(client, run, owned=False, recognised=True)
            if held is None or (held == key and not destination.force):
                client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in started.items()])
                return AuditRun(client, run, owned=False, recognised=False)
            if not destination.force:
                raise TrackingError(
                    f"run {destination.run_id!r} already holds another audit "
                    f"(of {run.data.tags.get('interpret.checkpoint_uri') or 'a module given in Python'}); give another "
                    "run, leave --run-id out for a new run, or pass --force for a new run below this one"
                )
            parent_run_id = run.info.run_id
        parent = None if parent_run_id is None else client.get_run(parent_run_id)
        experiment_id = _experiment_id(client, destination.experiment, parent)
        if not destination.force:
            for run in client.search_runs([experiment_id], f"tags.`interpret.key` = '{key}'"):
                if run.data.tags.get("interpret.status") in accepted:
                    return AuditRun(client, run, owned=False, recognised=True)
        started |= {"mlflow.source.name": "interpret", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
        if parent_run_id is not None:
            started["mlflow.parentRunId"] = parent_run_id
        run = client.create_run(experiment_id, tags=started, run_name=destination.run_name)
    return AuditRun(client, run, owned=True, recognised=False)


def _experiment_id(client: MlflowClient, name: str | None, parent: Run | None) -> str:
    """Id of the experiment; a name that is new makes one.

    `mlflow.set_experiment` puts its choice into the environment, so what the caller chose there is followed.
    """
    if name is None and parent is not None:
        return str(parent.info.experiment_id)
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(client.create_experiment(name))
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} was deleted; restore it (`mlflow experiments restore`) or give another name"
        )
    return str(experiment.experiment_id)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


def metric_name(name: str) -> str:
    """The name with every character replaced that MLflow refuses, at most 250 characters.

    >>> metric_name("interpret/by_layer/layer[0]")
    'interpret/by_layer/layer_0_'
    """
    return re.sub(r"[^\w./ :-]", "_", name)[:250]


def artifact_location(run_id: str, *, tracking_uri: str | None = None) -> str:
    """URI of a run's artifacts.

    Raises:
        TrackingError: the run is unknown.
    """
    client = connect(tracking_uri)
    with _explained(client.tracking_uri):
        return str(client.get_run(run_id).info.artifact_uri)


def local_folder(location: str) -> Path | None:
    """The folder that an artifact URI names on this disk; None where it lies elsewhere.

    >>> local_folder("file:///tmp/a%20b"), local_folder("s3://bucket/a")
    (PosixPath('/tmp/a b'), None)
    """
    parts = urllib.parse.urlsplit(location)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return None if parts.scheme else Path(location)


def source_run(uri: str, *, tracking_uri: str | None = None) -> str | None:
    """Id of the run that an address belongs to; None where it belongs to none, or to none that this store knows.

    Args:
        uri: `runs:/...`, `models:/...` or `mlflow-artifacts:/...`; any other address belongs to no run.
        tracking_uri: None takes MLflow's own default.
    """
    if not uri.startswith(REMOTE) or not _may_exist(tracking_uri or mlflow.get_tracking_uri()):
        return None
    client = connect(tracking_uri)
    with _explained(client.tracking_uri):
        return _source_run(client, uri)


def _source_run(client: MlflowClient, uri: str) -> str | None:
    try:
        if uri.startswith("models:/"):
            return _find_model(client, uri)[1]
        if uri.startswith("mlflow-artifacts:/"):
            return _run_in_path(client, uri)
        return str(client.get_run(_split_run_uri(uri)[0]).info.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def find_audits(
    runs: Iterable[str], *, experiments: Sequence[str] = (), tracking_uri: str | None = None
) -> list[LoggedAudit]:
    """The audits that are meant, in the order given.

    Args:
        runs: for each a run id; a run's name, unique in the experiments; `runs:/ID`; or `models:/...`, which means its
            source run. Where a run holds no audit itself, its child runs are searched: the newest audit counts, if all
            are of the same weights.
        experiments: names of the experiments in which names are looked up; all by default.
        tracking_uri: None takes MLflow's own default.

    Raises:
        TrackingError: no such run or experiment, several runs of a name, no finished audit there, or several of
            different weights.
    """
    client: MlflowClient | None = None
    found = []
    for run in runs:
        if client is None:
            client = _connect_to_look_up(run, tracking_uri)
        with _explained(f"{client.tracking_uri}, while looking for run {run!r}"):
            found.append(_logged_audit(client, _audit_of(client, run, experiments)))
    return found


def search_audits(
    matching: str | None = None, *, experiments: Sequence[str] = (), tracking_uri: str | None = None
) -> list[LoggedAudit]:
    """The finished audits that a search finds, by step, then by their start.

    A run that matches and holds no audit itself stands for those of its child runs. Costs three requests and one more
    for each thousand runs, however many audits there are.

    Args:
        matching: a filter as MLflow's runs page takes it, such as "tags.x = 'y'"; None takes all.
        experiments: names of the experiments; all by default.
        tracking_uri: None takes MLflow's own default.

    Raises:
        TrackingError: no such experiment, a filter that MLflow does not understand, or no audit that matches.
    """
    client = connect(tracking_uri, reading=True)
    with _explained(client.tracking_uri):
        places = _experiment_ids(client, experiments)
        matches = list(_search(client, places, matching or ""))
        audits = {run.info.run_id: run for run in matches if _holds_audit(run)}
        parents = {run.info.run_id for run in matches} - set(audits)
        if parents:
            for run in _search(client, places, "tags.`interpret.status` != 'running'"):
                if _holds_audit(run) and run.data.tags.get("mlflow.parentRunId") in parents:
                    audits[run.info.run_id] = run
    if not audits:
        where = f"in {', '.join(map(repr, experiments)) or 'any experiment'} of {client.tracking_uri}"
        what = f" matches {matching!r}" if matching else ""
        others = f"; {len(matches)} other runs are there, without an audit" if matches else ""
        raise TrackingError(f"no finished audit {where}{what}{others}; make one with `interpret audit`")
    ordered = sorted(audits.values(), key=lambda run: run.info.start_time)
    found = [_logged_audit(client, run) for run in ordered]
    return sorted(found, key=lambda audit: math.inf if audit.step is None else audit.step)


def _connect_to_look_up(run: str, tracking_uri: str | None) -> MlflowClient:
    """A client; where a mistyped folder meets no store, the message speaks of the folder too."""
    uri = tracking_uri or mlflow.get_tracking_uri()
    if not (_may_exist(uri) or run.startswith(("runs:/", "models:/")) or _may_be_id(run)):
        raise TrackingError(
            f"{run!r} is neither a folder with an evidence bundle nor the id or name of a run: there is no MLflow "
            f"store at {uri}; correct the folder, or name the store with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return connect(tracking_uri, reading=True)


def _audit_of(client: MlflowClient, run: str, experiments: Sequence[str]) -> Run:
    """The run that holds the audit that `run` means."""
    record = _run_of(client, run, experiments)
    if _holds_audit(record):
        return record
    audits = [
        child
        for child in client.search_runs(
            [record.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{record.info.run_id}'",
            order_by=["attributes.start_time DESC"],
        )
        if _holds_audit(child)
    ]
    audits = [audit for audit in audits if audit.data.tags.get("interpret.checkpoint_uri") == run] or audits
    if not audits:
        status = record.data.tags.get("interpret.status")
        why = f" (its audit is marked {status!r})" if status else ""
        if _is_comparison(record):
            why = f" (it is a comparison of {record.data.tags.get('interpret.inputs') or 'other audits'})"
        raise TrackingError(f"run {run!r} holds no finished audit{why}; make one with `interpret audit`")
    if len({audit.data.tags.get("interpret.state_sha256") for audit in audits}) > 1:
        known = ", ".join(
            f"{audit.info.run_id} ({audit.data.tags.get('interpret.checkpoint_uri')})" for audit in audits
        )
        raise TrackingError(f"run {run!r} has audits of several checkpoints; give the id of one of them: {known}")
    return audits[0]


def _run_of(client: MlflowClient, run: str, experiments: Sequence[str]) -> Run:
    """The run of an address, an id or a name."""
    if run.startswith(("runs:/", "models:/")):
        run_id = _source_run(client, run)
        if run_id is None:
            raise TrackingError(
                f"{run!r} leads to no run in {client.tracking_uri}; give the id of the run with the audit"
            )
        return client.get_run(run_id)
    if _may_be_id(run):
        try:
            return client.get_run(run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    quote = '"' if "'" in run else "'"
    places = _experiment_ids(client, experiments)
    named = list(_search(client, places, f"attributes.run_name = {quote}{run}{quote}"))
    named = [found for found in named if _holds_audit(found)] or named
    if not named:
        where = f"{', '.join(map(repr, experiments))} of {client.tracking_uri}" if experiments else client.tracking_uri
        raise TrackingError(
            f"{run!r} is neither a folder with an evidence bundle nor the id or name of a run in {where}"
        )
    if len(named) > 1:
        names = {place.experiment_id: place.name for place in _all_experiments(client)}
        candidates = "; ".join(
            f"{found.info.run_id} (experiment {names.get(found.info.experiment_id, found.info.experiment_id)!r}, "
            f"started {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(found.info.start_time / 1000))} UTC)"
            for found in named[:20]
        )
        raise TrackingError(f"{len(named)} runs are named {run!r}; give the id of one of them: {candidates}")
    return named[0]


def _may_be_id(run: str) -> bool:
    return re.fullmatch(r"\w[\w-]*", run) is not None


def _all_experiments(client: MlflowClient) -> list[Experiment]:
    found: list[Experiment] = []
    token: str | None = ""
    while token is not None:
        page = client.search_experiments(max_results=PAGE, page_token=token or None)
        found += page
        token = page.token or None
    return found


def _experiment_ids(client: MlflowClient, names: Sequence[str]) -> list[str]:
    """Ids of the named experiments, or of all that were not deleted."""
    known = {experiment.name: str(experiment.experiment_id) for experiment in _all_experiments(client)}
    for name in names:
        if name not in known:
            raise TrackingError(f"there is no experiment {name!r} in {client.tracking_uri}{did_you_mean(name, known)}")
    return [known[name] for name in names or known]


def _search(client: MlflowClient, experiment_ids: list[str], matching: str) -> Iterator[Run]:
    token: str | None = ""
    while token is not None:
        page = client.search_runs(experiment_ids, matching, max_results=PAGE, page_token=token or None)
        yield from page
        token = page.token or None


def _holds_audit(run: Run) -> bool:
    return run.data.tags.get("interpret.status") in FINISHED and not _is_comparison(run)


def _is_comparison(run: Run) -> bool:
    return run.data.tags.get("interpret.kind") == "comparison"


def _logged_audit(client: MlflowClient, run: Run) -> LoggedAudit:
    tags = run.data.tags
    step = tags.get("interpret.step", "")
    digests = {f"{name}.json": tags.get(f"interpret.{name}_sha256", "") for name in ("manifest", "journal")}
    return LoggedAudit(
        run_id=str(run.info.run_id),
        run_name=run.info.run_name,
        step=int(step) if step.isdecimal() else None,
        artifact_uri=str(run.info.artifact_uri),
        tracking_uri=client.tracking_uri,
        digests={path: digest for path, digest in digests.items() if digest},
    )


def resolve_run(run: str, *, experiments: Sequence[str] = (), tracking_uri: str | None = None) -> str:
    """Id of the run that holds the audit that `run` means, as :func:`find_audits` takes it.

    Raises:
        TrackingError: no such run, no finished audit there, or several of different weights.
    """
    (audit,) = find_audits([run], experiments=experiments, tracking_uri=tracking_uri)
    return audit.run_id


def run_origin(run_id: str, *, tracking_uri: str | None = None) -> dict[str, Any]:
    """What MLflow says of an audited run: `run_id`, `run_name` and the checkpoint's `step`, None where unknown."""
    client = connect(tracking_uri)
    with _explained(client.tracking_uri):
        return _logged_audit(client, client.get_run(run_id)).origin


def experiment_of(run_id: str, *, tracking_uri: str | None = None) -> str:
    """Name of the experiment that a run belongs to.

    Raises:
        TrackingError: the run is unknown.
    """
    client = connect(tracking_uri)
    with _explained(client.tracking_uri):
        return str(client.get_experiment(client.get_run(run_id).info.experiment_id).name)


def make_experiment(name: str, artifact_location: str, *, tracking_uri: str | None = None) -> str:
    """Id of the experiment; where it is new, its artifacts are to lie at the location."""
    client = connect(tracking_uri)
    with _explained(client.tracking_uri):
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id if found else client.create_experiment(name, artifact_location))


def fetch_evidence(run: str | Path, destination: str | Path, *, tracking_uri: str | None = None) -> Path:
    """The folder with the evidence of a run, downloaded into `destination`.

    Args:
        run: anything that :func:`resolve_run` takes; or a folder that holds a bundle, which is returned as it is.
        destination: an empty or absent folder. Previews and reports are not downloaded: they can be made again.
        tracking_uri: None takes MLflow's own default.

    Raises:
        TrackingError: no such run or no finished audit there, or the destination holds something.
    """
    if Path(run).is_dir():
        return Path(run)
    destination = Path(destination)
    if destination.exists() and any(destination.iterdir()):
        raise TrackingError(f"{destination} is not empty; give a new or empty folder for the evidence")
    run_id = resolve_run(str(run), tracking_uri=tracking_uri)
    client = connect(tracking_uri)
    destination.mkdir(parents=True, exist_ok=True)
    with _explained(client.tracking_uri), tempfile.TemporaryDirectory(dir=destination, prefix=".part-") as part:
        paths = [item.path for item in client.list_artifacts(run_id, BUNDLE) if not item.is_dir]
        with ThreadPoolExecutor(UPLOADS) as pool:
            files = list(pool.map(lambda path: _download(client, run_id, path, Path(part)), paths))
        for file in sorted(files, key=lambda file: file.name == "manifest.json"):  # last: it says that all is there
            file.replace(destination / file.name)
    return destination


def _download(client: MlflowClient, run_id: str, path: str, folder: Path) -> Path:
    """Download one artifact; what a server lists is not trusted to stay inside the folder."""
    _check_inside(path)
    file = Path(client.download_artifacts(run_id, path, str(folder)))
    if not file.resolve().is_relative_to(folder.resolve()) or file.is_symlink():
        raise TrackingError(f"artifact {path!r} of run {run_id} would be written outside {folder}; it was refused")
    return file


def _check_inside(path: str) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
        raise TrackingError(f"artifact path {path!r} leads out of its folder; it was refused")


def fetch_checkpoint(uri: str, destination: str | Path, *, tracking_uri: str | None = None) -> FetchedCheckpoint:
    """The checkpoint that an address names, on this disk.

    Args:
        uri: a file; `runs:/ID/PATH`, of a file, a folder or a logged model; `runs:/ID`, the run's newest checkpoint: of
            its logged models the one with the highest step, else what MLflow's checkpoint callback called the latest,
            else the files below `checkpoints/`, else below `model/`, else any weight file; `models:/NAME/VERSION`,
            `models:/NAME/latest`, `models:/NAME@ALIAS`, `models:/MODEL_ID`; `mlflow-artifacts:/...`.
        destination: folder for the download; a file is returned where it lies.
        tracking_uri: None takes MLflow's own default.

    Raises:
        TrackingError: the store does not hold it, or several files could be meant (the message lists them).
    """
    if not uri.startswith(REMOTE):
        return FetchedCheckpoint(Path(uri), uri, None)
    client = connect(tracking_uri, reading=True)
    folder = Path(destination)
    with _explained(f"{client.tracking_uri}, while fetching {uri!r}"):
        run_id: str | None
        root, path, known = uri, "", uri
        if uri.startswith("runs:/"):
            run_id, path = _split_run_uri(uri)
            root, path, known = _find_in_run(client, run_id, path)
        elif uri.startswith("models:/"):
            root, run_id, known = _find_model(client, uri)
        else:
            run_id = _run_in_path(client, uri)
        if not path.endswith(WEIGHT_FILES):
            files = list(_walk(client, root, path))
            path = _choose(files, uri) if files else path  # nothing below it: the address is the file's own
        _check_inside(path)
        found = f"{root.rstrip('/')}/{path}" if path else root
        folder.mkdir(parents=True, exist_ok=True)
        file = mlflow.artifacts.download_artifacts(
            artifact_uri=found, dst_path=str(folder), tracking_uri=client.tracking_uri
        )
    if not Path(file).resolve().is_relative_to(folder.resolve()):
        raise TrackingError(f"{found!r} would be written outside {folder}; it was refused")
    return FetchedCheckpoint(Path(file), f"{known}/{path}" if known == f"runs:/{run_id}" else known, run_id)


def _split_run_uri(uri: str) -> tuple[str, str]:
    run_id, _, path = uri.removeprefix("runs:/").strip("/").partition("/")
    if not run_id:
        raise TrackingError(f"{uri!r} names no run; write runs:/RUN_ID or runs:/RUN_ID/PATH")
    return run_id, path


def _find_model(client: MlflowClient, uri: str) -> tuple[str, str | None, str]:
    """Where a registered or logged model's files lie, its source run, and its lasting address."""
    name = urllib.parse.unquote(uri.removeprefix("models:/").strip("/"))
    if name.startswith("m-") and "/" not in name and "@" not in name:
        model = client.get_logged_model(name)
        return str(model.artifact_location), model.source_run_id, uri
    if "@" not in name:
        name, _, number = name.rpartition("/") if "/" in name else (name, "", "")
        if number == "latest":
            number = _latest_version(client, name)
            uri = f"models:/{name}/{number}"
        if not number.isdigit():
            raise TrackingError(
                f"{uri!r} has no version number or alias; write models:/{name}/3, models:/{name}/latest or "
                f"models:/{name}@best"
            )
        version = client.get_model_version(name, number)
    else:
        version = client.get_model_version_by_alias(*name.rsplit("@", 1))
    location = client.get_model_version_download_uri(version.name, str(version.version))
    return str(location), version.run_id or None, uri


def _latest_version(client: MlflowClient, name: str) -> str:
    mark = '"' if "'" in name else "'"
    versions = client.search_model_versions(
        f"name = {mark}{name}{mark}", max_results=1, order_by=["version_number DESC"]
    )
    if not versions:
        raise TrackingError(f"there is no version of a registered model {name!r} in {client.tracking_uri}")
    return str(versions[0].version)


def _find_in_run(client: MlflowClient, run_id: str, path: str) -> tuple[str, str, str]:
    """Where a path of a run lies, or its newest checkpoint where the path is empty: root, path, the root's address.

    An empty path leaves the choice to what lies below the root.
    """
    run = client.get_run(run_id)
    root, address, below = str(run.info.artifact_uri), f"runs:/{run_id}", ""
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    if path:
        name, _, below = path.partition("/")
        own = mlflow.artifacts.list_artifacts(artifact_uri=root, tracking_uri=client.tracking_uri) if outputs else []
        if any(PurePosixPath(item.path).name == name for item in own):
            return root, path, address
        outputs = [output for output in outputs if client.get_logged_model(output.model_id).name == name]
    if outputs:
        last = max(output.step or 0 for output in outputs)
        models = [client.get_logged_model(output.model_id) for output in outputs if (output.step or 0) == last]
        models.sort(key=lambda model: model.creation_timestamp)
        if len({model.name for model in models}) > 1:
            listed = ", ".join(f"models:/{model.model_id} ({model.name})" for model in models[:20])
            raise TrackingError(f"run {run_id!r} logged several models at its last step, {last}; name one: {listed}")
        newest = models[-1]
        return str(newest.artifact_location), below, f"models:/{newest.model_id}"
    if path:
        return root, path, address
    if latest := run.data.tags.get("mlflow.latest_checkpoint_artifact"):
        return root, latest, address
    for folder in ("checkpoints", "model", ""):
        files = list(_walk(client, root, folder, skip=(BUNDLE, "images")))
        if any(file.endswith(WEIGHT_FILES) for file in files):
            return root, _choose(files, address), address
    known = f", only {', '.join(sorted(files)[:9])}" if files else ""
    raise TrackingError(f"run {run_id!r} holds no checkpoint ({', '.join(WEIGHT_FILES)}) among its artifacts{known}")


def _walk(client: MlflowClient, root: str, path: str, skip: Collection[str] = ()) -> Iterator[str]:
    """Paths, relative to the root, of all files below a path; none where the path itself is a file."""
    address = f"{root.rstrip('/')}/{path}" if path else root
    for item in mlflow.artifacts.list_artifacts(artifact_uri=address, tracking_uri=client.tracking_uri):
        name = PurePosixPath(item.path).name  # some stores give paths relative to the root, some to the address
        below = f"{path}/{name}" if path else name
        _check_inside(below)
        if not item.is_dir:
            yield below
        elif below not in skip:
            yield from _walk(client, root, below)


def _choose(files: Sequence[str], where: str) -> str:
    """The one checkpoint among the files.

    Files whose paths differ only in their numbers (epoch_9.pt, epoch_10.pt) are one series: its last is the newest. So
    is, among files of one place, the one called last, as Lightning and others do.
    """
    weights = [path for path in files if path.endswith(WEIGHT_FILES)]
    candidates = [path for path in weights if path.endswith(".safetensors")] or weights
    if not candidates:
        known = ", ".join(sorted(files)[:9])
        raise TrackingError(f"{where!r} holds no checkpoint ({', '.join(WEIGHT_FILES)}), only {known}")
    named = [path for path in candidates if PurePosixPath(path).stem == "last"]
    if len(named) == 1 and len({_place(path) for path in candidates}) == 1:
        return named[0]
    if len({re.sub(r"\d+", "0", path) for path in candidates}) > 1:
        raise TrackingError(f"{where!r} holds several checkpoints; name one of {', '.join(sorted(candidates)[:20])}")
    return max(candidates, key=lambda path: [int(number) for number in re.findall(r"\d+", path)])


def _place(path: str) -> PurePosixPath:
    """The folder of a file; Lightning's logger puts each into a folder of the file's own name."""
    file = PurePosixPath(path)
    return file.parent.parent if file.parent.name == file.stem else file.parent


def _run_in_path(client: MlflowClient, uri: str) -> str | None:
    """The run whose artifact folder an `mlflow-artifacts:/EXPERIMENT/RUN/artifacts/...` address lies in."""
    parts = PurePosixPath(urllib.parse.urlsplit(uri).path).parts
    if "artifacts" not in parts[2:]:
        return None
    try:
        return str(client.get_run(parts[parts.index("artifacts", 2) - 1]).info.run_id)
    except MlflowException:  # a logged model's folder looks alike
        return None


def _scheme(uri: str) -> str:
    return urllib.parse.urlsplit(uri).scheme
