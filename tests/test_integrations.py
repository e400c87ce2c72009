from __future__ import annotations

import copy
import gc
import logging
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import mlflow
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import MLFlowLogger
from mlflow import MlflowClient
from PIL import ImageFile
from torch import Tensor, nn

import interpret
from interpret import publishing, sources
from interpret.errors import InterpretError
from interpret.integrations import AuditCallback, Auditor, callbacks
from networks import digit_images
from test_architecture import imported_by
from test_docs import blocks

pytestmark = [
    # mlflow 3.17 with SQLAlchemy 2.1 (November 2026): mlflow's own queries use a loader that SQLAlchemy deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    # Lightning 2.6: advice on workers, loggers and short epochs
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches"),
    # Lightning 2.6 with torch 2.14: asks torch's trees for a class that torch deprecates
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
FAST: dict[str, Any] = {"display_count": 1, "methods": ["grad-cam"]}


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
def parent(client: MlflowClient, experiment: str) -> str:
    return str(client.create_run(client.get_experiment_by_name(experiment).experiment_id).info.run_id)


def probe_images() -> Tensor:
    return digit_images()[0][:8]


class Noisy(nn.Module):
    """Dropout, BatchNorm, and draws from all three of the process's random states."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 10)
        self.conv1.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu_()
        if self.training:
            x = x * (1 + 0.1 * random.random() + 0.1 * float(np.random.rand()))  # noqa: NPY002 (the global state)
        return self.head(self.drop(self.conv2(x).relu().mean((2, 3))))


def random_states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002 (the global state)
    return random.getstate(), numpy_state[1].tobytes(), numpy_state[2], torch.get_rng_state().numpy().tobytes()


def seed_everything(seed: int = 0) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global state)
    torch.manual_seed(seed)


def loss_of(model: nn.Module) -> Tensor:
    images, labels = digit_images()
    batch = torch.randint(0, 1500, (32,))
    return nn.functional.cross_entropy(model(images[batch]), labels[batch])


def train(auditor: Auditor | None, steps: int = 6, mixed: bool = False, between: bool = False) -> dict[str, Any]:
    """A training's outcome; everything in it must be the same to the bit with and without audits."""
    seed_everything()
    model = Noisy()
    handle = model.conv2.register_forward_hook(lambda module, inputs, output: output * 1.01)
    model.conv2.eval()  # a frozen part in a network that trains
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for step in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = loss_of(model)
            if auditor is not None and between:
                auditor(model, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if auditor is not None and not between:
            auditor(model, step)
    handles = len(model.conv2._forward_hooks)
    handle.remove()
    return {
        "losses": losses,
        "state": model.state_dict(),
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "training": [module.training for module in model.modules()],
        "optimizer": optimizer.state_dict(),
        "hooks": handles,
        "random": random_states(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    else:
        assert one == other, where


# --------------------------------------------------------------------------------------- the training goes on as it was


@pytest.mark.parametrize("between", [False, True], ids=["after the step", "between forward and backward"])
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "autocast"])
def test_a_training_is_the_same_to_the_bit(mixed: bool, between: bool, tmp_path: Path) -> None:
    auditor = Auditor(probe_images(), 2, out=tmp_path, publish=False, **FAST)
    with_audits = train(auditor, mixed=mixed, between=between)
    assert [(record.step, record.status) for record in auditor.records] == [
        (2, "complete"),
        (4, "complete"),
        (6, "complete"),
    ]
    assert_same(with_audits, train(None, mixed=mixed))


def test_publishing_changes_nothing_either(store: str, parent: str) -> None:
    options: dict[str, Any] = {"tracking_uri": store, "parent_run_id": parent, "formats": ("html", "pdf")}
    auditor = Auditor(probe_images(), 4, **options, **FAST)
    without = train(None)
    assert_same(train(auditor), without)
    assert [record.status for record in auditor.records] == ["complete"]


def test_what_publishing_draws_and_sets_is_undone(monkeypatch: Any) -> None:
    def publish(*_: Any, **__: Any) -> str:
        random.random()
        np.random.rand()  # noqa: NPY002 (the global state)
        torch.rand(1)
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        return "run"

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    without = train(None)
    monkeypatch.setattr(publishing, "publish", publish)
    auditor = Auditor(probe_images(), 2, **FAST)
    assert_same(train(auditor), without)
    assert auditor.run_ids == ["run"] * 3


def test_a_failing_audit_changes_nothing_either(tmp_path: Path) -> None:
    def forward(model: nn.Module, images: Tensor) -> Tensor:
        model.norm.running_mean += 1
        random.random()
        raise RuntimeError("broken on purpose")

    auditor = Auditor(probe_images(), 2, out=tmp_path, publish=False, forward=forward, **FAST)
    assert_same(train(auditor), train(None))
    assert [record.status for record in auditor.records] == ["failed"] * 3


def test_mixed_precision_around_the_loop_does_not_reach_the_audit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Noisy()
    with torch.autocast("cpu", torch.bfloat16):
        inside = Auditor(probe_images(), out=tmp_path / "inside", publish=False, **FAST).audit(model, 0)
    outside = Auditor(probe_images(), out=tmp_path / "outside", publish=False, **FAST).audit(model, 0)
    assert inside is not None
    assert outside is not None
    digests = [interpret.read_evidence(record.folder).manifest.files for record in (inside, outside)]
    assert digests[0] == digests[1]


def test_no_tensor_and_no_folder_stays_behind(store: str, parent: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    auditor = Auditor(probe_images(), tracking_uri=store, parent_run_id=parent, **FAST)
    model = Noisy()

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(item), Tensor) for item in gc.get_objects())

    auditor.audit(model, 0)
    before = alive()
    auditor.audit(model, 1)
    assert alive() == before
    assert len(list(tmp_path.glob("interpret-*"))) == 1  # the first, whose targets the others take
    del auditor
    gc.collect()
    assert not list(tmp_path.glob("interpret-*"))


# ----------------------------------------------------------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [
        (1, [1, 2, 3], [1, 2, 3]),
        (2, [0, 1, 2, 3, 4], [0, 2, 4]),
        (10, [1, 9, 10, 11, 20], [10, 20]),
        (10, [7, 14, 21, 28, 35], [14, 21, 35]),  # the next one where steps are skipped
        (10, [10, 20, 1, 5, 10], [10, 20, 10]),  # another training
        (10, [13, 20, 20, 20], [20]),  # resumed; a step that is told twice
    ],
)
def test_audits_at_multiples(every: int, steps: list[int], expected: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(Auditor, "_attempt", lambda self, model, step: (callbacks.AuditRecord(step, "complete"), None))
    auditor = Auditor(probe_images(), every)
    returned = [auditor(nn.Identity(), step) for step in steps]
    assert [record.step for record in auditor.records] == expected
    assert [record for record in returned if record] == auditor.records


def test_only_the_first_process_audits(tmp_path: Path, monkeypatch: Any) -> None:
    auditor = Auditor(probe_images(), out=tmp_path, publish=False, **FAST)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert auditor.audit(Noisy(), 0) is None
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert auditor.audit(Noisy(), 0) is not None


def test_sharded_weights_are_refused_with_a_reason(tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        record = Auditor(probe_images(), out=tmp_path / "audits", publish=False).audit(
            fully_shard(Noisy(), mesh=mesh), 0
        )
    finally:
        torch.distributed.destroy_process_group()
    assert record is not None
    assert "sharded over processes (FSDP)" in record.message


# -------------------------------------------------------------------------------------------------------------- targets


def test_all_audits_explain_the_classes_of_the_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Noisy()
    fixed = Auditor(probe_images(), out=tmp_path / "fixed", publish=False, **FAST)
    own = Auditor(probe_images(), out=tmp_path / "own", publish=False, targets="predicted", **FAST)

    def targets(auditor: Auditor, step: int) -> list[list[int]]:
        record = auditor.audit(model, step)
        assert record is not None
        rows: list[list[int]] = interpret.read_evidence(record.folder).array("maps", "targets").tolist()
        return rows

    ((predicted,),) = targets(fixed, 0)
    other = (predicted + 1) % 10
    with torch.no_grad():
        model.head.bias[other] += 100
    assert targets(fixed, 1) == [[predicted]]
    assert targets(own, 1) == [[other]]


def test_options_reach_the_audit(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "methods": ["hires-cam"],
        "layers": "conv2",
        "labels": list(range(8)),
        "targets": "label",
    }
    record = Auditor(probe_images(), out=tmp_path, publish=False, display_count=3, batch_size=2, **options).audit(
        Noisy(), 5
    )
    assert record is not None
    evidence = interpret.read_evidence(record.folder)
    assert evidence.array("maps", "hires-cam/conv2").shape[0] == 3
    assert evidence.array("maps", "targets").ravel().tolist() == [0, 1, 2]
    assert evidence.manifest.inputs["labels"] == list(range(8))


# --------------------------------------------------------------------------------------------------------------- MLflow


def test_audits_are_children_of_the_active_run_which_stays_as_it_is(
    store: str, client: MlflowClient, experiment: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", store)
    before_uri = mlflow.get_tracking_uri()
    auditor = Auditor(probe_images(), run_name="digits", **FAST)
    model = Noisy()
    with mlflow.start_run(experiment_id=client.get_experiment_by_name(experiment).experiment_id) as active:
        mlflow.log_metric("loss", 1.0, step=1)
        before = client.get_run(active.info.run_id)
        auditor.audit(model, 0)
        with torch.no_grad():
            model.head.bias[3] += 1
        auditor.audit(model, 10)
        assert mlflow.active_run().info.run_id == active.info.run_id
        after = client.get_run(active.info.run_id)
        assert after.data.to_dictionary() == before.data.to_dictionary()
        assert dict(after.info) == dict(before.info)
        assert client.list_artifacts(active.info.run_id) == []
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before_uri == store
    children = [client.get_run(run_id) for run_id in auditor.run_ids]
    assert [child.data.tags["mlflow.parentRunId"] for child in children] == [active.info.run_id] * 2
    assert [child.data.tags["interpret.step"] for child in children] == ["0", "10"]
    assert [child.info.run_name for child in children] == ["digits step 0", "digits step 10"]
    assert {child.info.status for child in children} == {"FINISHED"}


def test_an_active_run_of_another_store_is_no_parent(
    store: str, experiment: str, tmp_path: Path, monkeypatch: Any
) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", store)
    monkeypatch.setattr(mlflow, "active_run", lambda: pytest.fail("asked for the run of another store"))
    assert callbacks._active_run_id(other) is None
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "mlflow")
    assert callbacks._active_run_id(None) is None


def test_the_same_weights_again_are_an_audit_of_their_own(store: str, client: MlflowClient, parent: str) -> None:
    auditor = Auditor(probe_images(), tracking_uri=store, parent_run_id=parent, **FAST)
    model = Noisy()
    for step in (0, 1):
        auditor.audit(model, step)
    assert [client.get_run(run).data.tags["interpret.step"] for run in auditor.run_ids] == ["0", "1"]


def test_a_timeline_from_the_children(store: str, parent: str, tmp_path: Path) -> None:
    auditor = Auditor(probe_images(), 2, tracking_uri=store, parent_run_id=parent, **FAST)
    train(auditor)
    evidence, origins = sources.fetch_runs(auditor.run_ids, tmp_path, tracking_uri=store)
    assert [origin["step"] for origin in origins] == [2, 4, 6]
    page = interpret.write_report(interpret.compare(*evidence, origins=origins), tmp_path / "report", ["html"])["html"]
    comparison = interpret.compare(*evidence, origins=origins)
    assert comparison.timeline is not None
    assert list(comparison.timeline.steps) == [2, 4, 6]
    assert "imeline" in page.read_text("utf-8")


# ------------------------------------------------------------------------------------------------------------- failures


def broken(model: nn.Module, images: Tensor) -> Tensor:
    raise RuntimeError("broken on purpose")


def test_a_failing_audit_is_one_warning_and_a_failed_run(
    store: str, client: MlflowClient, parent: str, caplog: pytest.LogCaptureFixture
) -> None:
    auditor = Auditor(probe_images(), tracking_uri=store, parent_run_id=parent, forward=broken, **FAST)
    with caplog.at_level(logging.WARNING, "interpret"):
        record = auditor.audit(Noisy(), 7)
    assert record is not None
    (warning,) = caplog.records
    assert "step 7" in warning.getMessage()
    assert "broken on purpose" in warning.getMessage()
    assert record.status == "failed"
    assert auditor.run_ids == []
    assert record.run_id is not None
    run = client.get_run(record.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["interpret.status"] == "failed"
    assert run.data.tags["interpret.step"] == "7"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert "broken on purpose" in run.data.tags["interpret.failure"]
    with pytest.raises(InterpretError, match="no finished audit"):
        interpret.fetch_evidence(record.run_id, "unused", tracking_uri=store)


def test_strict_raises(tmp_path: Path) -> None:
    auditor = Auditor(probe_images(), out=tmp_path, publish=False, strict=True, forward=broken, **FAST)
    with pytest.raises(InterpretError, match="broken on purpose"):
        auditor.audit(Noisy(), 0)
    assert [record.status for record in auditor.records] == ["failed"]


def test_where_publishing_fails_the_evidence_stays(
    store: str, client: MlflowClient, parent: str, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(publishing, "write_views", fail)
    record = Auditor(probe_images(), tracking_uri=store, parent_run_id=parent, out=tmp_path, **FAST).audit(Noisy(), 0)
    assert record is not None
    assert record.status == "failed"
    assert record.message == "OSError: disk full"
    assert record.folder is not None
    assert interpret.read_evidence(record.folder).manifest.status == "complete"
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert [child.data.tags["interpret.status"] for child in children] == ["failed"]


def test_a_store_that_does_not_answer_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    auditor = Auditor(probe_images(), tracking_uri="http://127.0.0.1:9", forward=broken, **FAST)
    with caplog.at_level(logging.WARNING, "interpret"):
        record = auditor.audit(Noisy(), 0)
    assert record is not None
    assert (record.status, record.run_id) == ("failed", None)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0 is no number of steps"),
        ({"every": "epoch"}, "every='epoch' is no number of steps"),
        ({"publish": False}, "say which with out="),
        ({"method": ["cam"]}, "unknown option 'method'; did you mean 'methods'"),
        ({"methods": ["gradcam"]}, "unknown method 'gradcam'; did you mean 'grad-cam'"),
        ({"device": "cuda"}, "device cannot be chosen"),
    ],
)
def test_bad_arguments_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InterpretError, match=message):
        Auditor(probe_images(), **options)


@pytest.mark.parametrize("step", [-1, 1.5, None])
def test_a_bad_step_is_refused(step: Any) -> None:
    with pytest.raises(InterpretError, match="is no step of a training"):
        Auditor(probe_images())(Noisy(), step)


# ------------------------------------------------------------------------------------------------------------ Lightning


def classifier(library: Any) -> Any:
    class Classifier(library.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = Noisy()

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    return Classifier()


def fit(
    callback: Any, library: Any = lightning, epochs: int = 3, logger: Any = False, **options: Any
) -> dict[str, Any]:
    """Three epochs of four steps."""
    images, labels = digit_images()
    seed_everything()
    module = classifier(library)
    trainer = library.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[] if callback is None else callback, logger=logger,
        log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(images[:128], labels[:128])
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=32, shuffle=True))
    return {
        "state": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "random": random_states(),
        "loss": float(trainer.callback_metrics["loss"]),
    }


@pytest.mark.parametrize("library", [lightning, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_lightning_trains_to_the_same_bits(library: Any, tmp_path: Path) -> None:
    callback = AuditCallback(probe_images(), out=tmp_path, publish=False, **FAST)
    assert_same(fit([callback], library), fit(None, library))
    assert [(record.step, record.status) for record in callback.auditor.records] == [
        (0, "complete"), (4, "complete"), (8, "complete"), (12, "complete")
    ]  # fmt: skip
    names = {call.name for call in interpret.read_evidence(tmp_path / "step-00000004").calls}
    assert "network.conv1" in names


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": "epoch"}, [0, 4, 8, 12]),
        ({"every": "2 epochs", "first": False}, [8, 12]),
        ({"every": "2 epochs", "first": False, "last": False}, [8]),
        ({"every": "5 steps"}, [0, 5, 10, 12]),
        ({"every": "4 steps", "first": False, "last": False}, [4, 8, 12]),
        ({"every": "step", "last": False, "epochs": 1}, [0, 1, 2, 3, 4]),
        ({"every": "2 steps", "first": False, "accumulate_grad_batches": 2}, [2, 4, 6]),
    ],
)
def test_lightnings_epochs_and_steps(options: dict[str, Any], expected: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(Auditor, "_attempt", lambda self, model, step: (callbacks.AuditRecord(step, "complete"), None))
    trainer = {name: options[name] for name in ("epochs", "accumulate_grad_batches") if name in options}
    callback = AuditCallback(probe_images(), **{name: options[name] for name in options if name not in trainer})
    fit(callback, **trainer)  # alone, without a list: what Trainer checks by isinstance
    assert [record.step for record in callback.auditor.records] == expected


def test_audits_are_children_of_the_loggers_run(store: str, client: MlflowClient, experiment: str) -> None:
    logger = MLFlowLogger(experiment, tracking_uri=store, run_name="training")
    callback = AuditCallback(probe_images(), every="2 epochs", network="network", **FAST)
    fit([callback], logger=logger)
    children = [client.get_run(run_id) for run_id in callback.auditor.run_ids]
    assert [child.data.tags["interpret.step"] for child in children] == ["0", "8", "12"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {logger.run_id}
    assert children[0].info.run_name == "Noisy step 0"
    training = client.get_run(logger.run_id)
    assert training.info.status == "FINISHED"
    assert not [name for name in (*training.data.tags, *training.data.metrics) if name.startswith("interpret")]


def test_a_given_parent_wins_over_the_loggers(store: str, client: MlflowClient, experiment: str, parent: str) -> None:
    logger = MLFlowLogger(experiment, tracking_uri=store)
    options: dict[str, Any] = {"tracking_uri": store, "parent_run_id": parent, "last": False, "every": "9 epochs"}
    callback = AuditCallback(probe_images(), **options, **FAST)
    fit([callback], logger=logger, epochs=1)
    (child,) = (client.get_run(run_id) for run_id in callback.auditor.run_ids)
    assert child.data.tags["mlflow.parentRunId"] == parent != logger.run_id


def test_a_failing_audit_does_not_stop_lightning_unless_strict(tmp_path: Path) -> None:
    options: dict[str, Any] = {"publish": False, "out": tmp_path, "forward": broken, **FAST}
    callback = AuditCallback(probe_images(), **options)
    assert_same(fit([callback]), fit(None))
    assert [record.status for record in callback.auditor.records] == ["failed"] * 4
    with pytest.raises(InterpretError, match="broken on purpose"):
        fit([AuditCallback(probe_images(), strict=True, **options)])


def test_other_processes_of_the_trainer_do_not_audit(tmp_path: Path) -> None:
    class Trainer:
        is_global_zero, global_step, current_epoch = False, 1, 0

    callback = AuditCallback(probe_images(), out=tmp_path, **FAST)
    for hook in (
        callback.on_train_start,
        callback.on_train_batch_end,
        callback.on_train_epoch_end,
        callback.on_train_end,
    ):
        hook(Trainer(), Noisy())
    assert callback.auditor.records == []
    Trainer.is_global_zero = True
    callback.auditor.publish = False
    callback.on_train_epoch_end(Trainer(), Noisy())
    assert [record.step for record in callback.auditor.records] == [1]


@pytest.mark.parametrize("every", ["0 epochs", "epochs 3", "3", 3, "week", ""])
def test_intervals_that_are_none(every: Any) -> None:
    with pytest.raises(InterpretError, match="is no interval; write 'epoch'"):
        AuditCallback(probe_images(), every)


def test_a_network_that_is_not_there_is_refused_before_the_training(tmp_path: Path) -> None:
    callback = AuditCallback(probe_images(), network="netwrok", out=tmp_path, publish=False)
    with pytest.raises(InterpretError, match="'netwrok' is no part of Classifier; did you mean 'network'"):
        fit([callback])


def test_a_callback_survives_copies_and_spawned_processes() -> None:
    callback = AuditCallback(probe_images(), "3 steps", network="network", run_name="digits")
    for again in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert isinstance(again, AuditCallback)
        assert isinstance(again, lightning.Callback)
        assert isinstance(again, pytorch_lightning.Callback)
        assert (again.number, again.unit, again.auditor.run_name) == (3, "step", "digits")
        assert torch.equal(again.auditor.images, callback.auditor.images)
    assert callback.state_key == "AuditCallback"


def test_without_lightning_the_message_says_what_to_install(monkeypatch: Any) -> None:
    for name in callbacks.LIGHTNING:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InterpretError, match="pip install lightning"):
        AuditCallback(probe_images())


def test_nothing_is_imported_before_it_is_needed() -> None:
    assert not {"torch", "mlflow", "lightning", "numpy"} & imported_by("import interpret.integrations")
    code = "from interpret.integrations import AuditCallback, Auditor; Auditor([], publish=False, out='.')"
    assert not {"mlflow", "lightning", "pytorch_lightning", "weasyprint"} & imported_by(code)


# ----------------------------------------------------------------------------------------------------------------- docs


def test_the_pages_examples_run(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", f"sqlite:///{tmp_path}/mlflow.db")
    seed_everything()
    exec(compile(blocks("docs/training.md"), "docs/training.md", "exec"), {"__name__": "training"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["0", "complete"], ["20", "complete"], ["40", "complete"]]
    commands = [line.split() for line in lines if line.startswith("interpret report")]
    assert [len([word for word in command if len(word) == 32]) for command in commands] == [3, 3]
