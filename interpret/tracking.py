"""MLflow: find, download, upload. Knows nothing of what is inside a bundle.

No other module on the main path imports mlflow. Only `MlflowClient` is used: no active run is started, changed or
left behind. Every failure of MLflow becomes a `TrackingError` that names the store.
"""

from __future__ import annotations

import fnmatch
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NamedTuple, Self

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModel, LoggedModelInput, LoggedModelOutput, Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from interpret.errors import InterpretError, TrackingError, did_you_mean

logger = logging.getLogger("interpret")

BUNDLE = "interpret"  # the artifact folder that holds the bundle
FINISHED = ("complete", "partial")  # values of the status tag of an audit that can be read
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pt2")
REMOTE = ("runs:/", "models:/", "mlflow-artifacts:/")  # beginnings of the addresses that MLflow resolves
_PRODUCTS = (BUNDLE, "images")  # artifact folders with what an audit wrote
BATCH = 900  # entities of one log_batch: MLflow takes 1000 in all, tags included
UPLOADS = 6  # over http, parallel single uploads are 2-3 times faster than log_artifacts, which is a plain loop there
OURS = {"mlflow.source.name": "interpret", "mlflow.source.type": "LOCAL"}  # tags of the runs that are made here
FAILURE_TAG = "interpret.failure"
PREFLIGHT_SECONDS = 4
BROKEN_ANSWER_SECONDS = (1, 4)  # before the second and the third try
PAGE = 1000  # runs or experiments of one answer
TAG_LENGTH = 5000  # MLflow takes 5000 characters on the oldest servers and cuts silently at 8000 on the newest


NOTE_TAG = "mlflow.note.content"
NOTE_BEGIN, NOTE_END = "<!-- interpret -->", "<!-- /interpret -->"  # what is between them is ours; nobody sees them


class FetchedCheckpoint(NamedTuple):
    """A checkpoint on this disk, its address, the run that made it, and its training step (None where unknown).

    The address is the one that was asked for; where that may mean another file one day, the one it means today: the
    file's path in the run, the logged model's id, the version's number.
    """

    path: Path
    uri: str
    run_id: str | None
    step: int | None = None


class Source(NamedTuple):
    """What an address belongs to: the run that made the checkpoint, and the logged model that it is; None for none."""

    run_id: str | None
    model_id: str | None


class _Place(NamedTuple):
    """Where a checkpoint lies: a root that MLflow lists and downloads, a path below it that may be empty or a folder.

    The address is the root's, as it will be valid tomorrow.
    """

    root: str
    path: str
    address: str
    run_id: str | None = None
    model_id: str | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class LoggedAudit:
    """A finished audit in MLflow: what the store says of it, and the way to its files.

    Attributes:
        run_id: the run that holds it.
        experiment_id: the experiment that the run belongs to.
        run_name: the run's name.
        step: the checkpoint's step; None where unknown.
        artifact_uri: where the run's artifacts lie.
        tracking_uri: the store.
        digests: sha256 of manifest.json and of journal.json, which no manifest lists; empty for runs of older releases.
    """

    run_id: str
    experiment_id: str
    run_name: str | None
    step: int | None
    artifact_uri: str
    tracking_uri: str
    digests: Mapping[str, str]

    @property
    def origin(self) -> dict[str, Any]:
        """`run_id`, `experiment_id`, `run_name` and `step`."""
        return {name: getattr(self, name) for name in ("run_id", "experiment_id", "run_name", "step")}

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
    """Turn the errors of MLflow and of its stores into TrackingError."""
    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"MLflow ({uri}): {error.message}") from error
    except InterpretError:
        raise
    except Exception as error:
        if type(error).__module__ == "builtins":  # a mistake in the code; S3, Azure and others have their own errors
            raise
        raise TrackingError(f"MLflow ({uri}), its store: {error}") from error


def _persistently(request: Callable[[], object]) -> None:
    """Make a request that may be made twice, again where its answer breaks off.

    MLflow itself tries again where no answer comes, but not where half of one does: a server that is killed and started
    again leaves that behind for those who were reading.
    """
    for seconds in BROKEN_ANSWER_SECONDS:
        try:
            request()
        except Exception as error:
            if "ChunkedEncodingError" not in (type(error).__name__, type(error.__context__).__name__):
                raise
            time.sleep(seconds)
        else:
            return
    request()


class AuditRun:
    """The MLflow run that receives one audit; a context manager that sets its status last.

    Leaving the block by an exception marks the audit as failed, with the reason; leaving it without `finish` as well.
    The run may be one that an earlier try left behind: whatever is written twice is there once.

    Attributes:
        run_id: the run.
        recognised: the same audit is there already, complete: nothing needs to be written.
    """

    def __init__(
        self,
        client: MlflowClient,
        run: Run,
        *,
        new: bool = False,
        recognised: bool = False,
        model_id: str | None = None,
    ) -> None:
        self.run_id: str = run.info.run_id
        self.recognised = recognised
        self._client = client
        self._run = run
        self._new = new
        self._owned = _is_ours(run)
        self._model_id = model_id
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
                tags=[RunTag(FAILURE_TAG, reason[:TAG_LENGTH]), RunTag("interpret.status", "failed")],
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

    def thumbnail(self, artifact_path: str) -> str:
        """Address of an artifact as a picture in a description."""
        return f"get-artifact?path={urllib.parse.quote(artifact_path, safe='')}&run_uuid={self.run_id}"

    def describe(self, markdown: str) -> None:
        """Give the run a description; what somebody else wrote into it stays, and ours is replaced."""
        self._note = f"{NOTE_BEGIN}\n\n{markdown}\n\n{NOTE_END}"

    def upload_folder(self, folder: Path, artifact_path: str, last: str | None = None) -> None:
        """Upload everything below a folder; over http the file named `last` when all the others are there."""
        with self._reported():
            if _scheme(self.location) not in ("http", "https", "mlflow-artifacts"):
                self._client.log_artifacts(self.run_id, str(folder), artifact_path)
                return
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            held = [path for path in files if path == folder / str(last)]
            with ThreadPoolExecutor(UPLOADS) as pool:
                for _ in pool.map(
                    lambda path: self._upload(path, folder, artifact_path), [path for path in files if path not in held]
                ):
                    pass
            for path in held:
                self._upload(path, folder, artifact_path)

    def _upload(self, path: Path, folder: Path, artifact_path: str) -> None:
        below = PurePosixPath(artifact_path) / path.relative_to(folder).parent.as_posix()
        _persistently(lambda: self._client.log_artifact(self.run_id, str(path), str(below)))

    def upload_file(self, path: Path, artifact_path: str | None = None) -> None:
        """Upload one file into an artifact folder; None is the top level."""
        with self._reported():
            _persistently(lambda: self._client.log_artifact(self.run_id, str(path), artifact_path))

    def log_table(self, table: Mapping[str, Sequence[object]], artifact_file: str) -> None:
        """Write a table (column name -> cells) that MLflow's runs page can pivot.

        The file and the tag are those of `MlflowClient.log_table`, which would append the rows again on a second try.
        """
        rows = [list(cells) for cells in zip(*table.values(), strict=True)]
        content = {"columns": list(table), "data": rows}
        with self._reported():
            _persistently(lambda: self._client.log_dict(self.run_id, content, artifact_file))
        self._tables.append(artifact_file)

    def log_images(self, images: Mapping[str, Path], step: int) -> dict[str, str]:
        """Show a few pictures among the run's charts; each costs as much as twenty plain uploads.

        Returns:
            Key to artifact path of the copy that MLflow keeps beside the picture, reduced to 256 pixels.
        """
        with self._reported():
            # A second try must not add a second picture to the same step.
            there = {} if self._new else self._logged_images(images)
            for key, path in images.items():
                if not there.get(key):
                    self._client.log_image(self.run_id, mlflow.Image(str(path)), key=key, step=step)
            logged = self._logged_images(images)
        return {key: path for key, paths in logged.items() for path in paths if path.endswith("+compressed.webp")}

    def _logged_images(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """The artifacts of each key; MLflow writes its "/" as "~"."""
        paths = [item.path for item in self._client.list_artifacts(self.run_id, "images")]
        names = {key: f"images/{key.replace('/', '~')}+" for key in keys}
        return {key: [path for path in paths if path.startswith(name)] for key, name in names.items()}

    def finish(self, status: str, metrics: Iterable[tuple[str, int, float]] = ()) -> None:
        """Write the metrics, as (name, step, value), and last of all the status.

        Values that are not finite never become metrics: MLflow returns infinity as 1.797e308. All points bear the time
        at which the run was made: a point that a broken connection or another try writes again is the same point to
        MLflow's database.
        """
        written = set() if self._new else self._written_points()
        named = ((metric_name(name), step, float(value)) for name, step, value in metrics)
        points = [
            Metric(name, value, self._run.info.start_time, step, model_id=self._model_id)
            for name, step, value in named
            if math.isfinite(value) and (name, step) not in written
        ]
        with self._reported():
            last = {**self._table_tag(), **self._note_tag(), "interpret.status": status}
            if self._model_id is not None:
                models = [LoggedModelInput(self._model_id)]
                _persistently(lambda: self._client.log_inputs(self.run_id, models=models))
            while len(points) > BATCH:
                batch, points = points[:BATCH], points[BATCH:]
                _persistently(partial(self._client.log_batch, self.run_id, metrics=batch))
            tags = [RunTag(*tag) for tag in last.items()]
            if self._owned:
                _persistently(lambda: self._client.set_terminated(self.run_id))
            _persistently(lambda: self._client.log_batch(self.run_id, metrics=points, tags=tags))
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

    def _note_tag(self) -> dict[str, str]:
        if not self._note:
            return {}
        there = self._client.get_run(self.run_id).data.tags.get(NOTE_TAG, "")  # somebody may have written since
        note = merged_note(there, self._note)
        if len(note) > TAG_LENGTH:
            logger.warning("run %s has a description so long that nothing can be added to it", self.run_id)
            return {}
        return {NOTE_TAG: note}

    @contextmanager
    def _reported(self) -> Iterator[None]:
        with _explained(self._client.tracking_uri):
            yield


def open_run(
    key: str,
    tags: Mapping[str, str],
    destination: Destination,
    accepted: Collection[str | None] = FINISHED,
    model_id: str | None = None,
) -> AuditRun:
    """The run for an audit: the one that holds it already or was to hold it, the one that was asked for, or a new one.

    Args:
        key: identity of the audit; the same key means the same audit.
        tags: tags that the run carries from its start.
        destination: where to look and where to write.
        accepted: status values with which an audit of the same key counts as done.
        model_id: the logged model that was audited; its page shows the metrics too.

    Raises:
        TrackingError: the store cannot be reached, or the run that was asked for is unknown or holds another audit.
    """
    client = connect(destination.tracking_uri)
    with _explained(client.tracking_uri):
        started = {**tags, "interpret.key": key, "interpret.status": "running"}
        if model_id is not None:
            started["interpret.model_id"] = model_id
        parent_run_id = destination.parent_run_id
        if destination.run_id is not None:
            run = client.get_run(destination.run_id)
            held = run.data.tags.get("interpret.key") or None
            if held == key and run.data.tags.get("interpret.status") in accepted and not destination.force:
                return AuditRun(client, run, recognised=True)
            if held is None or (held == key and not destination.force):
                return _resumed(client, run, started, model_id)
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
            same = list(client.search_runs([experiment_id], f"tags.`interpret.key` = '{key}'"))
            for run in same:
                if run.data.tags.get("interpret.status") in accepted:
                    return AuditRun(client, run, recognised=True)
            for run in same:
                if _is_ours(run) and run.data.tags.get("interpret.status") not in FINISHED:
                    logger.info("run %s holds the beginning of this audit: it is completed", run.info.run_id)
                    return _resumed(client, run, started, model_id)
        started |= {**OURS, "mlflow.user": _user()}
        if parent_run_id is not None:
            started["mlflow.parentRunId"] = parent_run_id
        run = client.create_run(experiment_id, tags=started, run_name=destination.run_name)
    return AuditRun(client, run, new=True, model_id=model_id)


def _is_ours(run: Run) -> bool:
    """Whether the run was made for an audit or a comparison, rather than by a training."""
    return OURS.items() <= run.data.tags.items()


def _resumed(client: MlflowClient, run: Run, tags: Mapping[str, str], model_id: str | None) -> AuditRun:
    """A run that is there already, as if it had just been started."""
    client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in tags.items()])
    if FAILURE_TAG in run.data.tags:
        client.delete_tag(run.info.run_id, FAILURE_TAG)
    if _is_ours(run) and run.info.status != "RUNNING":
        client.update_run(run.info.run_id, "RUNNING")
    return AuditRun(client, run, model_id=model_id)


def log_failure(error: BaseException, tags: Mapping[str, str], destination: Destination) -> str | None:
    """Id of a run that says that an audit failed and why; None where MLflow cannot be reached.

    Args:
        error: what made the audit fail.
        tags: tags that the run carries.
        destination: where to write; `run_id` is marked itself if it holds no audit, else a new run is made.
    """
    run_id = None
    destination = destination if destination.run_id else replace(destination, force=True)
    with suppress(Exception, KeyboardInterrupt), open_run("", tags, destination) as run:
        run_id = run.run_id
        raise error
    return run_id


def merged_note(note: str, ours: str) -> str:
    """A run's description with our part, between its marks, replaced or added.

    >>> merged_note("Trained by Li.", f"{NOTE_BEGIN} new {NOTE_END}").splitlines()[0]
    'Trained by Li.'
    """
    before, begin, rest = note.partition(NOTE_BEGIN)
    _, end, after = rest.partition(NOTE_END)
    if begin and end:
        return f"{before}{ours}{after}"
    return f"{note.rstrip()}\n\n{ours}" if note.strip() else ours


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
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:  # somebody else was faster, or the answer to our own request was lost
            experiment = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
                raise
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


def source_of(uri: str, *, tracking_uri: str | None = None) -> Source:
    """The run and the logged model that an address belongs to; none where this store knows none.

    Args:
        uri: `runs:/...`, `models:/...` or `mlflow-artifacts:/...`; any other address belongs to no run.
        tracking_uri: None takes MLflow's own default.
    """
    if not uri.startswith(REMOTE) or not _may_exist(tracking_uri or mlflow.get_tracking_uri()):
        return Source(None, None)
    client = connect(tracking_uri)
    with _explained(client.tracking_uri):
        return _source(client, uri)


def _source(client: MlflowClient, uri: str) -> Source:
    try:
        if uri.startswith("models:/"):
            place = _find_model(client, uri)
            return Source(place.run_id, place.model_id)
        if uri.startswith("mlflow-artifacts:/"):
            return Source(_run_in_path(client, uri), None)
        return Source(str(client.get_run(_split_run_uri(uri)[0]).info.run_id), None)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return Source(None, None)


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
        run_id = _source(client, run).run_id
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
    places = _experiment_ids(client, experiments)
    likely = run.replace("'", "_")  # any character: MLflow's filters have no way to write a quote within quotes
    named = [
        found for found in _search(client, places, f"attributes.run_name LIKE '{likely}'") if found.info.run_name == run
    ]
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
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", run) is not None


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
        experiment_id=str(run.info.experiment_id),
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
    """What MLflow says of an audited run: `run_id`, `experiment_id`, `run_name`, the checkpoint's `step` or None."""
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
        if uri.startswith("runs:/"):
            place = _find_in_run(client, *_split_run_uri(uri))
        elif uri.startswith("models:/"):
            place = _find_model(client, uri)
        else:
            place = _Place(uri, "", uri, _run_in_path(client, uri))
        path = place.path
        if not path.endswith(WEIGHT_FILES):
            files = list(_walk(client, place.root, path))
            path = _choose(files, uri) if files else path  # nothing below it: the address is the file's own
        _check_inside(path)
        found = f"{place.root.rstrip('/')}/{path}" if path else place.root
        folder.mkdir(parents=True, exist_ok=True)
        file = mlflow.artifacts.download_artifacts(
            artifact_uri=found, dst_path=str(folder), tracking_uri=client.tracking_uri
        )
    if not Path(file).resolve().is_relative_to(folder.resolve()):
        raise TrackingError(f"{found!r} would be written outside {folder}; it was refused")
    address = f"{place.address}/{path}" if place.address.startswith("runs:/") else place.address
    return FetchedCheckpoint(Path(file), address, place.run_id, place.step)


def list_checkpoints(uri: str, *, tracking_uri: str | None = None) -> list[str]:
    """Addresses of all checkpoints that a pattern means, in the order of a training.

    Args:
        uri: `runs:/ID/*`, all checkpoints of a run: its logged models, by step; else the weight files of the place
            where :func:`fetch_checkpoint` looks, of which those that differ in their numbers alone are one series, by
            number. `runs:/ID/PATTERN`: the weight files whose paths match, a * for any characters.
        tracking_uri: None takes MLflow's own default.

    Raises:
        TrackingError: the run is unknown, nothing matches, or several series do (the message lists them).
    """
    client = connect(tracking_uri, reading=True)
    run_id, pattern = _split_run_uri(uri)
    with _explained(f"{client.tracking_uri}, while listing {uri!r}"):
        run = client.get_run(run_id)
        root = str(run.info.artifact_uri)
        if pattern == "*":
            if models := _logged_models(client, run):
                return [f"models:/{model.model_id}" for _, model in models]
            files, _ = _weight_files(client, root)
        else:
            files = [path for path in _walk(client, root, "", _PRODUCTS) if path.endswith(WEIGHT_FILES)]
            files = [path for path in files if fnmatch.fnmatchcase(path, pattern)]
        series = [path for path in files if re.search(r"\d", path)] or files
        kinds = {re.sub(r"\d+", "#", path) for path in series}
        if not series:
            raise TrackingError(f"{uri!r} matches no checkpoint ({', '.join(WEIGHT_FILES)})")
        if len(kinds) > 1:
            raise TrackingError(f"{uri!r} matches several series; name one, as {' or '.join(sorted(kinds)[:9])}")
    return [f"runs:/{run_id}/{path}" for path in sorted(series, key=_numbers)]


def _numbers(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]


def _split_run_uri(uri: str) -> tuple[str, str]:
    run_id, _, path = uri.removeprefix("runs:/").strip("/").partition("/")
    if not run_id:
        raise TrackingError(f"{uri!r} names no run; write runs:/RUN_ID or runs:/RUN_ID/PATH")
    return run_id, path


def _find_model(client: MlflowClient, uri: str) -> _Place:
    """Where a registered or logged model's files lie."""
    name = urllib.parse.unquote(uri.removeprefix("models:/").strip("/"))
    if name.startswith("m-") and "/" not in name and "@" not in name:
        return _place_of(client, client.get_logged_model(name), uri)
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
    source = str(version.source)
    if source.startswith("models:/m-"):
        place = _place_of(client, client.get_logged_model(source.removeprefix("models:/")), uri)
        return place._replace(run_id=version.run_id or place.run_id)
    location = client.get_model_version_download_uri(version.name, str(version.version))
    return _Place(str(location), "", uri, version.run_id or None)


def _place_of(client: MlflowClient, model: LoggedModel, address: str) -> _Place:
    """Where a logged model's files lie, and the step at which its run logged it."""
    step = None
    if model.source_run_id:
        with suppress(MlflowException):  # the run was deleted, the model was not
            step = _step(client.get_run(model.source_run_id), model)
    return _Place(str(model.artifact_location), "", address, model.source_run_id or None, model.model_id, step)


def _step(run: Run, model: LoggedModel) -> int | None:
    """The step at which a run logged a model; None where that is 0 for all its models, as MLflow has it by default."""
    steps = {output.model_id: output.step or 0 for output in _outputs(run)}
    return steps.get(model.model_id) if any(steps.values()) else None


def _outputs(run: Run) -> list[LoggedModelOutput]:
    return list(run.outputs.model_outputs) if run.outputs is not None else []


def _logged_models(client: MlflowClient, run: Run, name: str | None = None) -> list[tuple[int, LoggedModel]]:
    """A run's logged models with their steps, in this order, the one logged last of a name and a step alone.

    Raises:
        TrackingError: there are several of different names at the last step, and no name was given.
    """
    found = [(output.step or 0, client.get_logged_model(output.model_id)) for output in _outputs(run)]
    found = [(step, model) for step, model in found if name in (None, model.name)]
    found.sort(key=lambda entry: (entry[0], entry[1].creation_timestamp))
    at_last = [model for step, model in found if step == found[-1][0]]
    if len({model.name for model in at_last}) > 1:
        listed = ", ".join(f"models:/{model.model_id} ({model.name})" for model in at_last[:20])
        raise TrackingError(
            f"run {run.info.run_id!r} logged several models at its last step, {found[-1][0]}; name one: {listed}"
        )
    newest = {step: model for step, model in found if model.name == found[-1][1].name}
    return list(newest.items())


def _latest_version(client: MlflowClient, name: str) -> str:
    mark = '"' if "'" in name else "'"
    versions = client.search_model_versions(
        f"name = {mark}{name}{mark}", max_results=1, order_by=["version_number DESC"]
    )
    if not versions:
        raise TrackingError(f"there is no version of a registered model {name!r} in {client.tracking_uri}")
    return str(versions[0].version)


def _find_in_run(client: MlflowClient, run_id: str, path: str) -> _Place:
    """Where a path of a run lies, or its newest checkpoint where the path is empty.

    An empty path of the place leaves the choice to what lies below the root.
    """
    run = client.get_run(run_id)
    root, address = str(run.info.artifact_uri), f"runs:/{run_id}"
    below = ""
    if path and _outputs(run):
        name, _, below = path.partition("/")
        own = mlflow.artifacts.list_artifacts(artifact_uri=root, tracking_uri=client.tracking_uri)
        models = [] if any(PurePosixPath(item.path).name == name for item in own) else _logged_models(client, run, name)
    else:
        models = [] if path else _logged_models(client, run)
    if models:
        _, newest = models[-1]
        return _place_of(client, newest, f"models:/{newest.model_id}")._replace(path=below)
    if not path:
        path = run.data.tags.get("mlflow.latest_checkpoint_artifact", "")
    if not path:
        weights, others = _weight_files(client, root)
        if not weights:
            known = f", only {', '.join(sorted(others)[:9])}" if others else ""
            raise TrackingError(
                f"run {run_id!r} holds no checkpoint ({', '.join(WEIGHT_FILES)}) among its artifacts{known}"
            )
        path = _choose(weights, address)
    return _Place(root, path, address, run_id)


def _weight_files(client: MlflowClient, root: str) -> tuple[list[str], list[str]]:
    """A run's files with weights, of the first place that has any, and the files of the last place looked at."""
    files: list[str] = []
    for folder in ("checkpoints", "model", ""):
        files = list(_walk(client, root, folder, skip=_PRODUCTS))
        if weights := [path for path in files if path.endswith(WEIGHT_FILES)]:
            return weights, files
    return [], files


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
    return max(candidates, key=_numbers)


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
