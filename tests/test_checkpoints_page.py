"""What docs/checkpoints.md says: every row of its two tables, with real files and a real store."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient
from torch import nn

from checkpoints import Net, net, prefixed, saved, sharded
from interpret import tracking
from interpret.checkpoint import read_checkpoint, state_sha256
from interpret.errors import CheckpointError
from interpret.loading import load_state

pytestmark = [
    # mlflow 3.17 with SQLAlchemy 2.1 (November 2026): mlflow's own queries use a loader that SQLAlchemy deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]

PAGE = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()


def rows(heading: str) -> list[tuple[str, ...]]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table[2:]]


class Classifier(Net):
    """A `Net` that runs, so that it can be exported."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.norm(self.stem(images))).mean((2, 3)))


def classifier(seed: int = 0) -> Classifier:
    model = Classifier()
    model.load_state_dict(net(seed).state_dict())
    return model.eval()


# --------------------------------------------------------------------------------------------------------------- files


def exported(folder: Path) -> Path:
    program = torch.export.export(classifier(), (torch.ones(2, 3, 8, 8),))
    torch.export.save(program, folder / "net.pt2")
    return folder / "net.pt2"


def of_mlflow(folder: Path, form: str) -> Path:
    example = np.ones((2, 3, 8, 8), np.float32)
    mlflow.pytorch.save_model(
        classifier(),
        folder / "saved",
        serialization_format=form,
        input_example=example,
        pip_requirements=["torch"],  # not to be found out in a process of its own
    )
    return folder / "saved"


def state_of_mlflow(folder: Path) -> Path:
    mlflow.pytorch.save_state_dict(net().state_dict(), folder / "saved")
    return folder / "saved" / "state_dict.pth"


def lightning(folder: Path) -> Path:
    content = {"pytorch-lightning_version": "2.6.0", "epoch": 1, "hyper_parameters": {"lr": 0.1}}
    return saved(folder / "last.ckpt", content | {"state_dict": prefixed(net().state_dict(), "model.")})


def tensors(folder: Path) -> Path:
    safetensors.torch.save_file(net().state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors"


def foreign_pickle(folder: Path) -> Path:
    (folder / "net.pkl").write_bytes(pickle.dumps(net()))
    return folder / "net.pkl"


def script(folder: Path) -> Path:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(folder / "script.pt"))
    return folder / "script.pt"


def array(folder: Path) -> Path:
    np.save(folder / "weights.npy", np.ones(3))
    return folder / "weights.npy"


FILES: dict[str, Callable[[Path], Path]] = {
    "`torch.save(model.state_dict())`": lambda folder: saved(folder / "net.pt", net().state_dict()),
    "the same from PyTorch before 1.6": lambda folder: saved(
        folder / "net.pt", net().state_dict(), _use_new_zipfile_serialization=False
    ),
    "a dict with the weights, an optimizer, EMA weights": lambda folder: saved(
        folder / "net.pt",
        {
            "model_ema": net(1).state_dict(),
            "model": net().state_dict(),
            "optimizer": torch.optim.SGD(net().parameters()).state_dict(),
        },
    ),
    "Lightning's `.ckpt` with plain hyperparameters": lightning,
    "`.safetensors`": tensors,
    "shards with their index": lambda folder: sharded(folder, net().state_dict()),
    "`mlflow.pytorch.save_state_dict`: its `state_dict.pth`": state_of_mlflow,
    "`torch.export.save`: a `.pt2` archive": exported,
    '`mlflow.pytorch.save_model(serialization_format="pt2")`: its folder': lambda folder: of_mlflow(folder, "pt2"),
    '`mlflow.pytorch.save_model(serialization_format="pickle")`: its folder': lambda folder: of_mlflow(
        folder, "pickle"
    ),
    "`torch.save(model)`": lambda folder: saved(folder / "net.pt", net()),
    "a dict with whole modules": lambda folder: saved(folder / "net.pt", {"ema": net(1), "model": net(), "epoch": 3}),
    "a dict with weights and other objects (`argparse.Namespace`)": lambda folder: saved(
        folder / "net.pt", {"args": argparse.Namespace(lr=0.1), "state_dict": net().state_dict()}
    ),
    "a pickle that `torch.save` did not write": foreign_pickle,
    "TorchScript": script,
    "Keras, NumPy, a web page, a Git-LFS pointer, a cut-off download": array,
}


def test_every_row_of_the_files_has_a_file() -> None:
    assert [row[0] for row in rows("Files")] == list(FILES)


@pytest.mark.parametrize(("kind", "opens", "form"), rows("Files"))
def test_files_open_as_the_page_says(tmp_path: Path, kind: str, opens: str, form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export, torch.jit and mlflow, about themselves
        path = FILES[kind](tmp_path)
    if opens != "safely":
        with pytest.raises(CheckpointError) as refused:
            read_checkpoint(path)
        assert ("--trust-pickle" in str(refused.value)) == (opens == "with `--trust-pickle`")
    if opens == "never":
        with pytest.raises(CheckpointError):
            read_checkpoint(path, trust_pickle=True)
        return
    for trust in (False, True) if opens == "safely" else (True,):
        checkpoint = read_checkpoint(path, trust_pickle=trust)
        assert f"`{checkpoint.format}`" == form
        assert (checkpoint.module is None) == ("module" not in form)
        assert state_sha256(load_state(Net(), checkpoint).state) == state_sha256(net().state_dict())


# ----------------------------------------------------------------------------------------------------------- addresses


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, tuple[str, str]]]:
    """A store, and for each address of the page one in it with the address under which it is recorded."""
    folder = tmp_path_factory.mktemp("store")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(store)
    client = MlflowClient()
    experiment = client.create_experiment("training", artifact_location=(folder / "artifacts").as_uri())
    example = np.ones((2, 3, 8, 8), np.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mlflow.start_run(experiment_id=experiment) as run:
                mlflow.pytorch.log_state_dict(net().state_dict(), artifact_path="weights")
                for step, seed in ((1, 1), (2, 0)):
                    model = mlflow.pytorch.log_model(
                        classifier(seed),
                        name="net",
                        step=step,
                        serialization_format="pt2",
                        input_example=example,
                        registered_model_name="registered",
                        pip_requirements=["torch"],
                    )
    finally:
        mlflow.set_tracking_uri(None)  # MLflow's own default; what it says now would no longer follow the environment
    client.set_registered_model_alias("registered", "champion", "2")
    run_id, model_id = run.info.run_id, model.model_id
    file = saved(folder / "best.pt", net().state_dict())
    return (
        store,
        {
            "`best.pt`": (str(file), str(file)),
            "`runs:/ID`": (f"runs:/{run_id}", f"models:/{model_id}"),
            "`runs:/ID/PATH`": (f"runs:/{run_id}/weights", f"runs:/{run_id}/weights/state_dict.pth"),
            "`runs:/ID/NAME`": (f"runs:/{run_id}/net", f"models:/{model_id}"),
            "`models:/NAME/3`": ("models:/registered/2", "models:/registered/2"),
            "`models:/NAME/latest`": ("models:/registered/latest", "models:/registered/2"),
            "`models:/NAME@ALIAS`": ("models:/registered@champion", "models:/registered@champion"),
            "`models:/m-ID`": (f"models:/{model_id}", f"models:/{model_id}"),
        },
    )


ELSEWHERE = {  # tests/test_sources.py; tests/test_tracking.py, with a server
    "`torchvision:ResNet50_Weights.IMAGENET1K_V2`",
    "`mlflow-artifacts:/PATH`",
}


@pytest.mark.parametrize("address", [row[0] for row in rows("Addresses") if row[0] not in ELSEWHERE])
def test_addresses_lead_where_the_page_says(
    places: tuple[str, dict[str, tuple[str, str]]], tmp_path: Path, address: str
) -> None:
    store, known = places
    uri, recorded = known[address]
    found = tracking.fetch_checkpoint(uri, tmp_path, tracking_uri=store)
    assert found.uri == recorded
    assert state_sha256(load_state(Net(), read_checkpoint(found.path)).state) == state_sha256(net().state_dict())
    if found.run_id is not None:
        assert tracking.source_of(recorded, tracking_uri=store).run_id == found.run_id


def test_a_registered_model_needs_a_version(places: tuple[str, dict[str, tuple[str, str]]], tmp_path: Path) -> None:
    with pytest.raises(tracking.TrackingError, match=r"no version number or alias; .*models:/registered/latest"):
        tracking.fetch_checkpoint("models:/registered", tmp_path, tracking_uri=places[0])
    with pytest.raises(tracking.TrackingError, match=r"no version of a registered model .it's mine"):
        tracking.fetch_checkpoint("models:/it's mine/latest", tmp_path, tracking_uri=places[0])
