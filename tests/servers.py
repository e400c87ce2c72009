"""Real servers, for tests of what goes over http: MLflow, and behind it PostgreSQL and S3.

    with mlflow_server(folder) as uri:                        # sqlite, artifacts in folder/a
        log_evidence(bundle, tracking_uri=uri)

    with MlflowServer(folder, artifacts="s3://bucket") as server:
        server.kill()                                         # as a power cut would
        server.start()                                        # the same address and stores; wait() until it answers

An MLflow server takes a quarter of a minute to load, twice in a row: its command loads everything, then starts another
Python that does. Here both happen in a fork of one process per test session that has loaded it before.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["mlflow.cli", "mlflow.server.fastapi_app", "interpret.tracking", "interpret.reporting"])
BUCKET = "audits"
S3_SECRETS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


class MlflowServer:
    """The command `mlflow server` in a process group of its own; a context manager that starts and stops it.

    Args:
        folder: of its log, and of its database and artifacts where no others are given.
        store: address of the database.
        artifacts: where the server puts the artifacts that clients hand it.
        options: more options of the command.
        environment: more of its environment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: str | None = None,
        artifacts: str | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        self._arguments += ["--backend-store-uri", store or f"sqlite:///{folder / 'mlflow.db'}"]
        self._arguments += ["--artifacts-destination", artifacts or str(folder / "a"), *options]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "OMP_NUM_THREADS": "1"}
        self._environment = {**os.environ, **quiet, **(environment or {})}

    def start(self) -> None:
        arguments = (self._arguments, self._folder, self._environment)
        self._process = FORKS.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()

    def wait(self) -> None:
        """Return when it answers."""
        wait_for(f"{self.uri}/health", self._process.is_alive, self._folder / "log")

    def kill(self) -> None:
        """End it at once, without a chance to finish anything."""
        os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.join()

    def stop(self) -> None:
        self._process.terminate()
        self._process.join(30)
        assert self._process.exitcode is not None, f"the server does not stop: {self._folder / 'log'}"

    def __enter__(self) -> Self:
        self.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _serve(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    with Path("log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    import mlflow.cli
    import mlflow.server
    import uvicorn

    def run_here(command: list[str], extra_env: Mapping[str, str], **_: object) -> None:
        os.environ.update(extra_env)
        uvicorn.main(command[command.index("uvicorn") + 1 :])

    vars(mlflow.server)["_exec_cmd"] = run_here  # it would start another Python, which would load everything again
    mlflow.cli.cli(["server", *arguments])


def wait_for(address: str, alive: Callable[[], bool], log: Path) -> None:
    """Return when something answers at the address, which must be within a minute."""
    for _ in range(1200):
        assert alive(), log.read_text()
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"no answer from {address}: {log.read_text()}")


@contextmanager
def mlflow_server(folder: Path, **options: Any) -> Iterator[str]:
    """The address of a server with its database, its log and its artifacts (in `folder/a`) in the folder."""
    with MlflowServer(folder, **options) as server:
        yield server.uri


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty PostgreSQL database of Debian's package, run by a user without rights.

    Where it is missing, tests are skipped, but neither in CI nor for root, who can install it.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not programs:
        reason = "PostgreSQL is missing: apt-get install postgresql"
        (pytest.fail if os.environ.get("CI") or os.geteuid() == 0 else pytest.skip)(reason)
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # not below pytest's, which is closed to other users
    port = free_port()

    def run(program: str, *arguments: str) -> None:
        command = [programs[-1] / program, "-D", folder / "data", *arguments]
        with (folder / "output").open("ab") as output:
            user = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
            done = subprocess.run(command, cwd=folder, stdout=output, stderr=output, **user)  # type: ignore[call-overload]
        assert done.returncode == 0, (folder / "output").read_text()

    try:
        if root:
            shutil.chown(folder, "postgres", "postgres")
        run("initdb", "--auth=trust", "--username=tester", "--encoding=UTF8", "--no-sync")
        run("pg_ctl", "start", "--wait", "-l", f"{folder}/log", "-o", f"-h 127.0.0.1 -p {port} -k {folder} -F")
        try:
            yield f"postgresql+psycopg2://tester@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "stop", "--mode=immediate")
    finally:
        shutil.rmtree(folder)


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment with which MLflow finds an S3 server with one bucket, `BUCKET`; its log lies in the folder."""
    import boto3

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(f"{address}/moto-api/", lambda: process.poll() is None, folder / "log")
        client = boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id=S3_SECRETS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=S3_SECRETS["AWS_SECRET_ACCESS_KEY"],
            region_name=S3_SECRETS["AWS_DEFAULT_REGION"],
        )
        client.create_bucket(Bucket=BUCKET)
        yield {**S3_SECRETS, "MLFLOW_S3_ENDPOINT_URL": address}
    finally:
        process.terminate()
        process.wait(30)
