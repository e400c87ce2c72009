from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from torch import nn

from bundles import bundle, network
from interpret import sources
from interpret.architectures import PublishedWeights, weights_of
from interpret.checkpoint import read_checkpoint
from interpret.errors import CheckpointError, ImageError
from interpret.preprocessing import Preprocessing
from interpret.publishing import log_evidence

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
    assert origin == {"run_id": run_id, "run_name": "epoch_7", "step": None}


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
