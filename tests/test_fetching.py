"""Reading audits back from MLflow: which runs are meant, how few requests it takes, what is kept."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from bundles import bundle, network, scaled, zeroed_filters
from interpret import cli, publishing, sources, tracking
from interpret.comparison import compare
from interpret.errors import EvidenceError, TrackingError
from interpret.evidence import Evidence
from interpret.publishing import log_evidence
from servers import mlflow_server

# mlflow 3.17 with SQLAlchemy 2.1 (November 2026): mlflow's own queries use a loader that SQLAlchemy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

RUNS = 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Bundles of one network with a weight that grows."""
    folder = tmp_path_factory.mktemp("bundles")
    for number in range(RUNS):
        bundle(
            scaled(network(), "layer2.conv.weight", 1 + number / 100),
            folder / f"{number:02d}",
        )
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(server_folder: Path) -> Iterator[str]:
    with mlflow_server(server_folder) as uri:
        yield uri


@pytest.fixture(scope="module")
def sweep(server: str, folders: list[Path]) -> list[str]:
    """Ids of audits of the bundles by their step, which is not the order in which they were logged; half are tagged."""
    client = MlflowClient(tracking_uri=server)
    ids = {}
    for number in (*range(1, RUNS, 2), *range(0, RUNS, 2)):
        where = {
            "tracking_uri": server,
            "experiment": "sweep",
            "run_name": f"run {number:02d}",
            "step": number,
        }
        ids[number] = log_evidence(folders[number], **where)
        client.set_tag(ids[number], "x", "y")
        if number % 2:
            client.set_tag(ids[number], "odd", "yes")
    client.create_run(
        client.get_run(ids[0]).info.experiment_id,
        tags={"x": "y"},
        run_name="not audited",
    )
    return [ids[number] for number in range(RUNS)]


class Requests:
    """What was asked of the server: artifacts by run and file, and everything else."""

    def __init__(self) -> None:
        self.downloads: list[str] = []
        self.others: list[str] = []

    def add(self, method: str, url: str) -> None:
        if method == "GET" and "/mlflow-artifacts/artifacts/" in url and "?" not in url:
            self.downloads.append(url.partition("/mlflow-artifacts/artifacts/")[2])
        else:
            self.others.append(f"{method} {url}")

    def files(self) -> set[str]:
        return {path.rpartition("/")[2] for path in self.downloads}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Requests:
    counted = Requests()
    send = requests.adapters.HTTPAdapter.send

    def counting(self: object, request: requests.PreparedRequest, *args: object, **kwargs: object) -> object:
        counted.add(str(request.method), str(request.url))
        return send(self, request, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", counting)
    return counted


def report(*arguments: str | Path) -> int:
    return cli.main(["report", *map(str, arguments), "--format", "html"])


# ------------------------------------------------------------------------------------------------------------- requests


def test_twenty_runs_of_a_search_are_compared_with_few_requests_and_a_second_time_without_downloads(
    sweep: list[str], server: str, folders: list[Path], asked: Requests, tmp_path: Path
) -> None:
    search = (
        "--experiment",
        "sweep",
        "--filter",
        "tags.x = 'y'",
        "--tracking-uri",
        server,
    )
    assert report(*search, "-o", tmp_path / "first") == 0
    # experiments, runs that match, and the audits below the one that holds none; a process asks once for the version
    assert len([url for url in asked.others if not url.endswith("/server-info")]) == 3
    assert len(asked.others) <= 4
    assert len(asked.downloads) == len(set(asked.downloads))
    assert Counter(path.rpartition("/")[2] for path in asked.downloads)["manifest.json"] == RUNS
    assert "layers_table.json" not in asked.files()
    assert not [path for path in asked.downloads if "/previews/" in path or "/report/" in path]

    once = len(asked.downloads)
    assert report(*search, "-o", tmp_path / "second") == 0
    assert len(asked.downloads) == once
    assert len(asked.others) <= 7
    first, second = ((tmp_path / name / "report.html").read_bytes() for name in ("first", "second"))
    assert first == second

    written = json.loads((tmp_path / "first" / "comparison.json").read_text())
    assert [run["run_id"] for run in written["runs"]] == sweep
    assert [run["step"] for run in written["runs"]] == list(range(RUNS))
    origins = [{"run_id": run, "run_name": f"run {step:02d}", "step": step} for step, run in enumerate(sweep)]
    assert written == json.loads(json.dumps(compare(*folders, origins=origins).to_dict()))


def test_only_what_is_read_is_downloaded(sweep: list[str], server: str, asked: Requests, tmp_path: Path) -> None:
    (evidence,), _ = sources.fetch_runs(sweep[:1], tmp_path / "fetched", tracking_uri=server)
    assert asked.files() == {"manifest.json"}
    assert evidence.journal["created_utc"]
    evidence.array("layers", "zero_share")
    evidence.array("layers", "dead_units")
    assert evidence.tensors
    assert sorted(path.rpartition("/")[2] for path in asked.downloads) == [
        "journal.json", "layers.npz", "manifest.json", "weights.json",
    ]  # fmt: skip
    evidence.verify()
    assert asked.files() == {"manifest.json", "journal.json", *evidence.manifest.files}


def test_a_policy_needs_no_pictures(sweep: list[str], server: str, asked: Requests, tmp_path: Path) -> None:
    cli.main(["check", *sweep[:2], "--tracking-uri", server])
    assert {"activations.npz", "inputs.npz", "summary.txt"}.isdisjoint(asked.files())
    assert {"weights.npz", "layers.npz", "predictions.npz"} <= asked.files()
    assert len(asked.others) == 2  # one for each run


def test_a_file_that_two_runs_share_is_downloaded_once(
    sweep: list[str], server: str, asked: Requests, tmp_path: Path
) -> None:
    evidence, _ = sources.fetch_runs(sweep[:2], tmp_path / "fetched", tracking_uri=server)
    assert len({one.manifest.files["inputs.npz"] for one in evidence}) == 1
    assert (evidence[0].array("inputs", "images") == evidence[1].array("inputs", "images")).all()
    assert sum(path.endswith("inputs.npz") for path in asked.downloads) == 1


def test_without_a_cache_nothing_stays_but_the_report(
    sweep: list[str],
    server: str,
    asked: Requests,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPRET_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for count in (1, 2):
        assert report(sweep[0], "--tracking-uri", server, "-o", tmp_path / "report") == 0
        assert Counter(path.rpartition("/")[2] for path in asked.downloads)["layers.npz"] == count
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_runs_of_older_releases_have_no_digest_of_their_manifest(
    server: str, asked: Requests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking_uri=server)
    old = bundle(scaled(network(), "conv1.weight", 1.5), tmp_path / "old")
    run = log_evidence(old, tracking_uri=server, experiment="old")
    for name in ("manifest", "journal"):
        client.delete_tag(run, f"interpret.{name}_sha256")
    asked.downloads.clear()
    for number in (1, 2):
        (evidence,), _ = sources.fetch_runs([run], tmp_path / f"fetched{number}", tracking_uri=server)
        assert evidence.digest == old.digest
        assert evidence.journal == old.journal
        evidence.array("layers", "gram")
    assert Counter(path.rpartition("/")[2] for path in asked.downloads) == {
        "manifest.json": 2, "journal.json": 2, "layers.npz": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["manifest.json", "journal.json", "layers.npz"])
def test_what_was_changed_on_the_server_is_refused(
    server: str, server_folder: Path, tmp_path: Path, cache: Path, name: str
) -> None:
    evidence = bundle(scaled(network(), "conv1.weight", 1.25), tmp_path / "bundle")
    run = log_evidence(evidence, tracking_uri=server, experiment=f"changed {name}")
    (file,) = (server_folder / "a").rglob(f"{run}/artifacts/interpret/{name}")
    file.write_bytes(file.read_bytes() + b" ")

    def read() -> None:
        number = len(list(tmp_path.iterdir()))
        (fetched,), _ = sources.fetch_runs([run], tmp_path / str(number), tracking_uri=server)
        assert fetched.journal
        fetched.array("layers", "gram")

    with pytest.raises(EvidenceError, match=f"{name} of run {run} was changed after the audit"):
        read()
    file.unlink()
    with pytest.raises(TrackingError, match=f"interpret/{name} of run {run} cannot be downloaded from {server}"):
        read()


# -------------------------------------------------------------------------------------------------------- names, search


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, which take MLflow seconds to make."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def client(store: str, tmp_path: Path) -> MlflowClient:
    client = MlflowClient(tracking_uri=store)
    for name in ("first", "second"):
        client.create_experiment(name, artifact_location=(tmp_path / "artifacts" / name).as_uri())
    return client


def audit(
    store: str,
    name: str,
    experiment: str = "first",
    factor: float = 1.0,
    **options: object,
) -> str:
    """The run of an audit; a factor for each, or the audit is recognised."""
    evidence = bundle(scaled(network(), "conv1.weight", factor))
    run: str = log_evidence(
        evidence,
        tracking_uri=store,
        experiment=experiment,
        run_name=name,
        **options,  # type: ignore[arg-type]
    )
    return run


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("name", ["best", "best-2", "lr 0.1/seed 3", "it's", "0123456789abcdef"])
def test_a_name_that_is_unique(store: str, name: str) -> None:
    run = audit(store, name)
    audit(store, "another", factor=2)
    assert tracking.resolve_run(name, tracking_uri=store) == run
    assert tracking.resolve_run(name, experiments=["first"], tracking_uri=store) == run
    with pytest.raises(
        TrackingError,
        match="nor the id or name of a run in 'second' of sqlite",
    ):
        tracking.resolve_run(name, experiments=["second"], tracking_uri=store)


@pytest.mark.usefixtures("client")
def test_a_name_of_several_runs(store: str) -> None:
    first, second = audit(store, "best"), audit(store, "best", "second", factor=2)
    with pytest.raises(TrackingError, match="2 runs are named 'best'; give the id of one of them") as raised:
        tracking.resolve_run("best", tracking_uri=store)
    for run, experiment in ((first, "first"), (second, "second")):
        assert f"{run} (experiment '{experiment}', started 20" in str(raised.value)
    assert tracking.resolve_run("best", experiments=["second"], tracking_uri=store) == second


def test_a_name_of_a_training_run_leads_to_its_audit(store: str, client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("first")
    assert experiment is not None
    training = client.create_run(experiment.experiment_id, run_name="training").info.run_id
    run = audit(store, "epoch_7", parent_run_id=training)
    assert tracking.resolve_run("training", tracking_uri=store) == run
    named_alike = audit(store, "training", factor=2, parent_run_id=training)
    assert tracking.resolve_run("training", tracking_uri=store) == named_alike


@pytest.mark.usefixtures("client")
def test_unknown_names_and_experiments(store: str) -> None:
    audit(store, "best")
    with pytest.raises(TrackingError, match="'bets' is neither"):
        tracking.resolve_run("bets", tracking_uri=store)
    for find in (lambda: tracking.resolve_run("best", experiments=["frist"], tracking_uri=store),
                 lambda: tracking.search_audits(experiments=["frist"], tracking_uri=store)):  # fmt: skip
        with pytest.raises(TrackingError, match=r"no experiment 'frist' in sqlite.*did you mean 'first'"):
            find()


def test_a_search_takes_finished_audits_by_step_then_start(store: str, client: MlflowClient) -> None:
    late = audit(store, "c", factor=1, step=20)
    without = [audit(store, name, factor=factor) for name, factor in (("d", 2), ("e", 3))]
    early = audit(store, "a", factor=4, step=3)
    broken = audit(store, "broken", factor=5, step=1)
    client.set_tag(broken, "interpret.status", "failed")
    elsewhere = audit(store, "elsewhere", "second", factor=6, step=0)

    def found(*experiments: str, matching: str | None = None) -> list[str]:
        audits = tracking.search_audits(matching, experiments=experiments, tracking_uri=store)
        return [item.run_id for item in audits]

    assert found("first") == [early, late, *without]
    assert found() == found("first", "second") == [elsewhere, early, late, *without]
    assert found("first", matching="attributes.run_name = 'd'") == without[:1]


def test_runs_that_match_stand_for_their_audits(store: str, client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("first")
    assert experiment is not None
    parents = [client.create_run(experiment.experiment_id, tags={"lr": lr}).info.run_id for lr in ("0.1", "0.1", "1")]
    audits = [audit(store, "x", factor=2 + n, step=n, parent_run_id=parent) for n, parent in enumerate(parents)]
    found = tracking.search_audits("tags.lr = '0.1'", experiments=["first"], tracking_uri=store)
    assert [item.run_id for item in found] == audits[:2]


def test_more_runs_than_one_answer_holds(store: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PAGE", 2)
    runs = [audit(store, "x", factor=1 + n, step=n) for n in range(5)]
    assert [item.run_id for item in tracking.search_audits(tracking_uri=store)] == runs
    assert len(tracking._all_experiments(client)) == 3


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("matching", "message"),
    [
        (
            "tags.x = 'z'",
            "no finished audit in 'first' of sqlite.* matches .*tags.x = 'z'",
        ),
        ("tagz.x = 'y'", "Invalid entity type 'tagz'"),
        ("nonsense", "Invalid"),
    ],
)
def test_a_search_that_finds_nothing_or_is_none(
    store: str,
    matching: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    audit(store, "best")
    with pytest.raises(TrackingError, match=message):
        tracking.search_audits(matching, experiments=["first"], tracking_uri=store)
    where = ("--experiment", "first", "--tracking-uri", store)
    assert report("--filter", matching, *where, "-o", tmp_path / "report") == 2
    assert capsys.readouterr().err.count("Error:") == 1


@pytest.mark.usefixtures("client")
def test_artifacts_on_this_disk_are_read_where_they_lie(store: str, cache: Path, tmp_path: Path) -> None:
    audit(store, "best")
    (evidence,), (origin,) = sources.fetch_runs(["best"], tmp_path / "unused", tracking_uri=store)
    evidence.verify()
    assert evidence.folder.is_relative_to(tmp_path / "artifacts")
    assert origin["run_name"] == "best"
    assert not cache.exists()
    assert not (tmp_path / "unused").exists()


@pytest.mark.usefixtures("client")
def test_names_and_searches_on_the_command_line(store: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runs = [audit(store, f"run {n}", factor=1 + n, step=n) for n in range(3)]
    place = ("--tracking-uri", store)
    assert cli.main(["show", "run 1", "--experiment", "first", *place]) == 0
    assert runs[1] in capsys.readouterr().out

    def compared() -> list[str]:
        written = json.loads((tmp_path / "report" / "comparison.json").read_text())
        return [run["run_id"] for run in written["runs"]]

    assert report("run 2", "run 0", *place, "-o", tmp_path / "report") == 0
    assert compared() == [runs[2], runs[0]]
    assert (
        report(
            "--experiment",
            "first",
            "--reference",
            "run 1",
            *place,
            "-o",
            tmp_path / "report",
        )
        == 0
    )
    assert compared() == [runs[1], runs[0], runs[2]]
    capsys.readouterr()
    assert cli.main(["check", "--filter", "attributes.run_name LIKE 'run%'", "--json", *place]) in (0, 1)
    assert {"run 1", "run 2"} <= {row["run"] for row in json.loads(capsys.readouterr().out)["rules"]}
    for arguments, message in (
        (["run 0", "--filter", "tags.x = 'y'"], "leave out either"),
        ([], "name a RUN, or search"),
        (["--experiment", "first", "--labels", "a,b"], "2 names for 3 runs"),
        (["--experiment", "first", "--steps", "1,2"], "2 steps for 3 runs"),
        (["run 0", "--log"], "--log logs a comparison"),
    ):
        assert report(*arguments, *place, "-o", tmp_path / "report") == 2
        assert message in " ".join(capsys.readouterr().err.split())


# ------------------------------------------------------------------------------------------------------- comparison run


@pytest.fixture
def pair(store: str, client: MlflowClient) -> list[str]:
    damaged = bundle(zeroed_filters(network(), "layer2.conv.weight"))
    name = "the [odd](x) `one`\n# 2"
    return [
        audit(store, "sound", "second"),
        log_evidence(damaged, tracking_uri=store, experiment="second", run_name=name),
    ]


def test_a_comparison_is_a_run_of_its_own(
    store: str,
    client: MlflowClient,
    pair: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    arguments = [*pair, "--log", "--tracking-uri", store, "-o", tmp_path / "report"]
    assert report(*arguments, "--json") == 0
    run_id = json.loads(capsys.readouterr().out)["run_id"]
    run = client.get_run(run_id)
    assert run.info.experiment_id == client.get_run(pair[0]).info.experiment_id
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert tags["interpret.kind"] == "comparison"
    assert tags["interpret.inputs"] == ",".join(pair)
    assert tags["interpret.status"] == "complete"
    note = tags["mlflow.note.content"]
    assert f"[sound](#/runs/{pair[0]})" in note
    assert rf"| [the \[odd\](x) \`one\` \# 2](#/runs/{pair[1]}) | localized |" in note
    assert f"/runs/{run_id}/artifacts/report.html" in note
    assert {item.path for item in client.list_artifacts(run_id)} == {
        "report.html",
        "comparison.json",
    }
    fetched = Path(client.download_artifacts(run_id, "comparison.json")).read_bytes()
    assert fetched == (tmp_path / "report" / "comparison.json").read_bytes()

    written = json.loads(fetched)
    label = written["runs"][1]["label"]
    entries = [layer["runs"][label] for layer in written["layers"]]
    severities = Counter(finding["severity"] for finding in written["findings"])
    assert run.data.metrics == {
        "interpret/comparison/runs": 2,
        "interpret/comparison/critical_findings": severities["critical"],
        "interpret/comparison/warning_findings": severities["warning"],
        "interpret/comparison/changed_calls": 1,
        "interpret/comparison/diverging_calls": sum(entry["diverges"] for entry in entries),
        "interpret/comparison/top1_agreement": written["predictions"][label]["top1_agreement"],
    }
    assert sum(entry["weights"] == "changed" for entry in entries) == 1

    assert report(*arguments) == 0
    assert f"run     {run_id}\n" in capsys.readouterr().out
    assert report(*arguments, "--labels", "a,b", "--experiment", "first", "--title", "Mine") == 0
    other = capsys.readouterr().out.split()[-1]
    assert other != run_id
    assert client.get_run(other).info.run_name == "Mine"
    assert client.get_run(other).info.experiment_id != run.info.experiment_id


def test_a_comparison_is_no_audit(store: str, pair: list[str], client: MlflowClient, tmp_path: Path) -> None:
    assert report(*pair, "--log", "--tracking-uri", store, "-o", tmp_path / "report") == 0
    found = tracking.search_audits(experiments=["second"], tracking_uri=store)
    assert sorted(item.run_id for item in found) == sorted(pair)
    (run,) = client.search_runs(
        [client.get_run(pair[0]).info.experiment_id],
        "tags.`interpret.kind` = 'comparison'",
    )
    with pytest.raises(
        TrackingError,
        match=f"holds no finished audit .it is a comparison of {pair[0]},{pair[1]}",
    ):
        tracking.resolve_run(run.info.run_id, tracking_uri=store)


def test_a_comparison_is_known_by_its_inputs_in_their_order() -> None:
    def key(*runs: Evidence, **options: object) -> str:
        return publishing.comparison_key(compare(*runs, **options))  # type: ignore[arg-type]

    a, b = bundle(network()), bundle(scaled(network(), "conv1.weight", 2))
    labels = ["a", "b"]
    same = key(a, b, labels=labels)
    assert same == key(a, bundle(scaled(network(), "conv1.weight", 2)), labels=labels)
    steps = [{"step": 1}, {"step": 2}]
    assert (
        len(
            {
                same,
                key(b, a, labels=labels),
                key(a, b),
                key(a, b, labels=labels, origins=steps),
            }
        )
        == 4
    )


def test_folders_are_compared_into_a_run_too(store: str, client: MlflowClient, folders: list[Path]) -> None:
    comparison = compare(*folders[:2])
    run_id = publishing.log_comparison(comparison, {}, tracking_uri=store, experiment="first")
    run = client.get_run(run_id)
    assert run.info.run_name == "00 against 01"
    assert "held against 00." in run.data.tags["mlflow.note.content"]
    assert "#/runs/None" not in run.data.tags["mlflow.note.content"]
