from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from torch import nn

from bundles import bundle, network
from interpret import cli, sources
from interpret.architectures import PublishedWeights, weights_of
from interpret.checkpoint import read_checkpoint, state_sha256
from interpret.comparison import compare
from interpret.errors import CheckpointError, ImageError
from interpret.preprocessing import Preprocessing
from interpret.publishing import log_evidence
from interpret.sections import identity
from interpret.sections.subject import Subject

# mlflow 3.17 with SQLAlchemy 2.1 (November 2026): mlflow's own queries use a loader that SQLAlchemy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

WEIGHTS = "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def training_run(store: str, tmp_path: Path) -> str:
    """A run that logged a checkpoint of a convolution."""
    client = MlflowClient(tracking_uri=store)
    experiment_id = client.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment_id).info.run_id
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 2, 3))\n"
    )
    torch.save(nn.Sequential(nn.Conv2d(3, 2, 3)).state_dict(), tmp_path / "epoch_7.pt")
    client.log_artifact(run_id, str(tmp_path / "epoch_7.pt"), "checkpoints")
    return run_id


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def test_the_audit_of_a_runs_newest_checkpoint_becomes_its_child(
    store: str, training_run: str, photos: Path, tmp_path: Path
) -> None:
    options = {"model": f"{tmp_path / 'net.py'}:build", "crop": 8, "resize": 8, "methods": (), "targets": "1"}
    with sources.audit_checkpoint(f"runs:/{training_run}", photos, tracking_uri=store, **options) as evidence:
        assert evidence.manifest.checkpoint["uri"] == f"runs:/{training_run}/checkpoints/epoch_7.pt"
        run_id = log_evidence(evidence, tracking_uri=store)
    record = MlflowClient(tracking_uri=store).get_run(run_id)
    assert record.info.run_name == "epoch_7"
    assert record.data.tags["mlflow.parentRunId"] == training_run
    (fetched,), (origin,) = sources.fetch_runs([f"runs:/{training_run}"], tmp_path / "fetched", tracking_uri=store)
    fetched.verify()
    experiment_id = record.info.experiment_id
    assert origin == {"run_id": run_id, "experiment_id": experiment_id, "run_name": "epoch_7", "step": 7}


def test_all_checkpoints_of_a_training_become_its_children_with_their_steps(
    store: str, training_run: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 2, 3)).state_dict(), tmp_path / "epoch_5.pt")
    MlflowClient(tracking_uri=store).log_artifact(training_run, str(tmp_path / "epoch_5.pt"), "checkpoints")
    command = ["audit", f"runs:/{training_run}/*", "--model", f"{tmp_path / 'net.py'}:build", "--images", str(photos)]
    command += ["--crop", "8", "--resize", "8", "--methods", "none", "--targets", "1", "--tracking-uri", store]
    assert cli.main([*command, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["step"] for result in results] == [5, 7]
    client = MlflowClient(tracking_uri=store)
    for result in results:
        tags = client.get_run(result["run_id"]).data.tags
        assert tags["interpret.step"] == str(result["step"])
        assert tags["mlflow.parentRunId"] == training_run
    evidence, origins = sources.fetch_runs([result["run_id"] for result in results], tmp_path, tracking_uri=store)
    assert [origin["step"] for origin in origins] == [5, 7]
    assert [item.manifest.checkpoint["step"] for item in evidence] == [5, 7]
    assert [origin["step"] for origin in compare(*evidence).origins.values()] == [5, 7]  # also without MLflow
    assert cli.main([*command, "--step", "3"]) == 2
    assert "are of one checkpoint" in capsys.readouterr().err


def test_an_audit_that_fails_leaves_its_reason_in_mlflow(
    store: str, training_run: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["audit", f"runs:/{training_run}", "--model", f"{tmp_path / 'net.py'}:build", "--images", str(photos)]
    command += ["--crop", "8", "--resize", "8", "--tracking-uri", store]
    assert cli.main([*command, "--layers", "nothing"]) == 2
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_run(training_run).info.experiment_id
    (failed,) = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{training_run}'")
    assert failed.data.tags["interpret.status"] == "failed"
    assert "nothing" in failed.data.tags["interpret.failure"]
    assert "nothing" in capsys.readouterr().err
    assert cli.main([*command[:5], str(tmp_path / "no-such-folder"), *command[6:]]) == 2  # never began
    assert len(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{training_run}'")) == 1


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random weights in the place of torchvision's, which would be downloaded."""
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(
        PublishedWeights, "read", lambda weights: read_checkpoint(tmp_path / "weights.pth", uri=weights.uri)
    )


@pytest.mark.usefixtures("published")
def test_published_weights_imply_model_preprocessing_and_class_names(photos: Path) -> None:
    with sources.audit_checkpoint(WEIGHTS, photos, methods=()) as evidence:
        manifest = evidence.manifest
        assert manifest.model["name"] == "SqueezeNet"
        assert manifest.model["class_names"][281] == "tabby"
        assert manifest.inputs["preprocessing"]["source"] == "weights"
        assert manifest.checkpoint["uri"] == WEIGHTS


@pytest.mark.usefixtures("published")
def test_the_calls_of_published_weights() -> None:
    calls = sources.trace_checkpoint(WEIGHTS, None, input_shape=(3, 64, 64)).calls
    assert calls[0].key == "features.0"
    assert calls[0].output_shape == (1, 64, 31, 31)


def test_options_win_over_the_weights_own_preprocessing() -> None:
    weights = weights_of(WEIGHTS)
    given = {"resize": None, "crop": 192, "mean": [0.5] * 3, "std": None, "interpolation": None}
    chosen = sources._preprocessing(None, given, weights)
    own = Preprocessing.from_weights(weights.transform, weights.uri)
    assert (chosen.crop, chosen.mean, chosen.source) == (192, (0.5, 0.5, 0.5), "options")
    assert (chosen.resize, chosen.std) == (own.resize, own.std)
    assert sources._preprocessing(None, dict.fromkeys(given), weights) == own


def test_labels_from_folders_need_a_folder(photos: Path) -> None:
    with pytest.raises(ImageError, match="need a folder as --images"):
        sources._labels(sorted(photos.iterdir()), None, None, True, None)


def test_a_checkpoint_without_a_model_is_refused(photos: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'net\.pt' holds weights, not an architecture"):
        sources.audit_checkpoint("net.pt", photos)


class Pictures(nn.Sequential):
    """A module of a class of its own, to be pickled."""


@pytest.fixture
def pickled(tmp_path: Path) -> tuple[Path, nn.Module]:
    model = Pictures(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    torch.save(model, tmp_path / "whole.pt")
    return tmp_path / "whole.pt", model


def test_a_trusted_module_is_audited_as_the_model_and_the_report_says_so(
    pickled: tuple[Path, nn.Module], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = pickled
    with sources.audit_checkpoint(str(path), photos, trust_pickle=True, crop=8, resize=8, methods=()) as evidence:
        manifest = evidence.manifest
        assert manifest.model["name"] == "Pictures"
        assert manifest.checkpoint["format"] == "pickled module (trusted)"
        assert manifest.checkpoint["state_sha256"] == state_sha256(model.state_dict())
        told = identity.build(Subject(labels=("whole",), evidence={"whole": evidence}, comparison=None))
    (row,) = (row for row in told["same"] if row["name"] == "Format")
    assert row["texts"] == ["pickled module (trusted)"]
    calls = sources.trace_checkpoint(str(path), None, input_shape=(3, 8, 8), trust_pickle=True).calls
    assert [call.key for call in calls if call.kind == "convolution"] == ["0"]
    code = ["layers", str(path), "--trust-pickle", "--input-shape", "3,8,8"]
    assert cli.main(code) == 0
    error = capsys.readouterr().err
    assert error.count("unpickled on trust, which runs the file's code with your rights") == 1
    assert cli.main([*code, "--model", "torchvision:resnet18"]) != 0
    assert "whole.pt' does not fit the model" in capsys.readouterr().err


def test_a_module_is_refused_without_trust(pickled: tuple[Path, nn.Module], photos: Path) -> None:
    path, _ = pickled
    with pytest.raises(CheckpointError, match="holds weights, not an architecture"):
        sources.audit_checkpoint(str(path), photos)
    with pytest.raises(CheckpointError, match=r"is a pickled model, not its weights.*--trust-pickle"):
        sources.audit_checkpoint(str(path), photos, model="torchvision:resnet18")


def test_trust_needs_a_model_where_the_file_holds_none(tmp_path: Path, photos: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"net\.pt' holds weights, not a module; name it, as --model"):
        sources.audit_checkpoint(str(tmp_path / "net.pt"), photos, trust_pickle=True)


def test_a_pickled_module_is_audited_from_its_run(
    store: str, training_run: str, pickled: tuple[Path, nn.Module], photos: Path
) -> None:
    path, model = pickled
    client = MlflowClient(tracking_uri=store)
    client.log_artifact(training_run, str(path), "whole")
    options = {"crop": 8, "resize": 8, "methods": (), "trust_pickle": True, "tracking_uri": store}
    with sources.audit_checkpoint(f"runs:/{training_run}/whole", photos, **options) as evidence:
        assert evidence.manifest.checkpoint["uri"] == f"runs:/{training_run}/whole/whole.pt"
        assert evidence.manifest.checkpoint["format"] == "pickled module (trusted)"
        assert evidence.manifest.checkpoint["state_sha256"] == state_sha256(model.state_dict())


def test_only_a_bundle_is_removed(tmp_path: Path) -> None:
    bundle(network(), tmp_path / "finished")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "weights.npz").write_bytes(b"half")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for folder in tmp_path.iterdir():
        sources._remove_bundle(folder)
    sources._remove_bundle(tmp_path / "absent")
    assert [folder.name for folder in tmp_path.iterdir()] == ["mine"]
    assert len(list((tmp_path / "mine").iterdir())) == 2
