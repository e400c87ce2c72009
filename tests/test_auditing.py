"""Audits of small trained networks: the bundle against numpy and torch, determinism, faults of collectors and users."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import interpret
from interpret import auditing
from interpret.checkpoint import read_checkpoint, state_sha256
from interpret.collectors.activations import Activations
from interpret.collectors.gram import Gram
from interpret.errors import InterpretError, LayerError
from interpret.evidence import Evidence
from interpret.faithfulness import faithfulness
from interpret.functional.statistics import count_sketch, histogram
from interpret.images import probe_from_tensor
from networks import Digits, digit_images, trained_digits

UNASKED = {"attributions", "trust", "features"}  # collectors that work on request


@pytest.fixture(scope="module")
def images() -> Tensor:
    return digit_images()[0][:10]


@pytest.fixture(scope="module")
def evidence(images: Tensor) -> Evidence:
    labels = digit_images()[1][:10].tolist()
    return interpret.audit(
        trained_digits(), images, labels=labels, class_names=list("0123456789"), display_count=3, batch_size=4
    )


@pytest.fixture(scope="module")
def outputs(images: Tensor) -> dict[str, Tensor]:
    return dict(interpret.capture(trained_digits(), images))


def test_manifest(evidence: Evidence, images: Tensor) -> None:
    manifest = evidence.manifest
    assert manifest.status == "complete"
    assert manifest.checkpoint["state_sha256"] == state_sha256(trained_digits().state_dict())
    assert manifest.model["name"] == "Digits"
    assert manifest.model["parameters"] == 72 + 16 + 16 * 73 + 170
    assert manifest.model["multiply_adds"] == 64 * 72 + 16 * 16 * 72 + 160
    assert manifest.inputs["count"] == 10
    assert manifest.inputs["displayed"] == 3
    assert manifest.inputs["shape"] == [1, 8, 8]
    unasked = {name for name, state in manifest.collectors.items() if state["status"] == "skipped"}
    assert unasked == UNASKED
    assert {state["status"] for name, state in manifest.collectors.items() if name not in UNASKED} == {"ok"}
    assert manifest.settings["maps"] == ["features.0", "features.4"]
    assert set(manifest.settings["pictures"]) >= {"features.0", "features.4"}
    assert manifest.unused == ()
    assert manifest.checkpoint["format"] == "module"
    assert manifest.checkpoint["uri"] is None


def test_predictions(evidence: Evidence, images: Tensor) -> None:
    with torch.no_grad():
        logits = trained_digits()(images)
    np.testing.assert_allclose(evidence.array("predictions", "logits"), logits.numpy(), atol=1e-5)
    assert evidence.array("predictions", "labels").tolist() == list(range(10))


@pytest.mark.parametrize("key", ["features.0", "features.1", "features.2", "features.5", "features", "head"])
def test_statistics_equal_numpy(evidence: Evidence, outputs: dict[str, Tensor], key: str) -> None:
    values = outputs[key].double().numpy()
    values = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
    for name, expected in {
        "channel_mean": values.mean(1),
        "channel_variance": values.var(1),
        "channel_minimum": values.min(1),
        "channel_maximum": values.max(1),
        "channel_zeros": (values == 0).mean(1),
    }.items():
        np.testing.assert_allclose(evidence.channel(name, key), expected, rtol=2e-5, atol=1e-6)
    position = evidence.call[key].position
    assert evidence.array("layers", "zero_share")[position] == pytest.approx((values == 0).mean())
    saturated = evidence.array("layers", "saturated_share")[position]
    assert np.isnan(saturated) if key != "features.5" else saturated == pytest.approx((values >= 6).mean())
    dead = (values.max(1) <= 0).sum() if key in ("features.2", "features.5") else 0
    assert evidence.array("layers", "dead_units")[position] == dead


def test_batchnorm_drift(evidence: Evidence, outputs: dict[str, Tensor]) -> None:
    values = np.moveaxis(outputs["features.0"].double().numpy(), 1, 0).reshape(8, -1)
    norm = trained_digits().get_submodule("features.1")
    mean, variance = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    z = np.abs(values.mean(1) - mean) / np.sqrt(variance + norm.eps)
    position = evidence.call["features.1"].position
    assert evidence.array("layers", "batchnorm_z_median")[position] == pytest.approx(np.median(z), rel=1e-5)
    assert evidence.array("layers", "batchnorm_z_p95")[position] == pytest.approx(np.percentile(z, 95), rel=1e-5)
    expected = np.median(np.log(values.var(1) / variance))
    assert evidence.array("layers", "batchnorm_log_variance")[position] == pytest.approx(expected, rel=1e-5)
    assert np.isnan(evidence.array("layers", "batchnorm_z_median")[evidence.call["features.0"].position])


def test_drift_sees_what_an_in_place_operation_left(images: Tensor) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(nn.functional.relu(self.conv(x), inplace=True)).mean((2, 3))

    net = Net()
    with torch.no_grad():
        values = np.moveaxis(torch.relu(net.conv(images)).double().numpy(), 1, 0).reshape(4, -1)
    with interpret.audit(net, images) as evidence:
        drift = evidence.array("layers", "batchnorm_z_median")[evidence.call["norm"].position]
        assert drift == pytest.approx(np.median(np.abs(values.mean(1)) / np.sqrt(1 + 1e-5)), rel=1e-4)


def test_broken_channels_are_neither_dead_nor_constant_nor_zero(images: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        net[0].bias[1] = torch.nan
        net[0].bias[2] = -100
    with interpret.audit(net, images, methods=()) as evidence:
        position = evidence.call["1"].position
        assert evidence.channel("channel_zeros", "1")[1:].tolist() == [0, 1]
        assert evidence.array("layers", "dead_units")[position] == 1
        assert evidence.array("layers", "constant_units")[position] == 1
        assert evidence.array("layers", "nonfinite")[position] == len(images) * 36


@pytest.mark.parametrize(("key", "grid"), [("features.0", 7), ("features.4", 7), ("head", 0)])
def test_gram_equals_numpy(evidence: Evidence, outputs: dict[str, Tensor], key: str, grid: int) -> None:
    features = outputs[key]
    if grid:
        features = nn.functional.adaptive_avg_pool2d(features, min(grid, features.shape[-1]))
    x = features.flatten(1).double().numpy()
    x = x - x.mean(0)
    gram = evidence.gram(key)
    assert gram is not None
    np.testing.assert_allclose(gram, x @ x.T, atol=1e-6 * np.abs(x @ x.T).max())
    assert evidence.array("layers", "pooling")[evidence.call[key].position] == grid


def test_noise_floor_is_small_and_real(evidence: Evidence, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small where the arithmetic is sound; as large as the kernels' difference where it is not."""
    for name in ("noise_gram", "noise_mean"):
        noise = evidence.array("layers", name)
        assert np.isfinite(noise).all()
        assert noise.max() < 1e-4

    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled() else x * 1.5

    with interpret.audit(nn.Sequential(Fickle(), nn.Flatten()), images, methods=()) as fickle:
        assert fickle.array("layers", "noise_gram")[0] == pytest.approx(1.5**2 - 1, rel=1e-5)


def test_weights(evidence: Evidence) -> None:
    state = trained_digits().state_dict()
    assert [tensor.name for tensor in evidence.tensors] == list(state)
    for tensor in evidence.tensors:
        values = state[tensor.name].float().numpy()
        assert tensor.norm == pytest.approx(np.linalg.norm(values), rel=1e-6)
        assert tensor.mean == pytest.approx(values.mean(), abs=1e-7, rel=1e-5)
        assert tensor.standard_deviation == pytest.approx(values.std(), abs=1e-5, rel=1e-5)
        assert (tensor.minimum, tensor.maximum) == (values.min(), values.max())
        np.testing.assert_array_equal(evidence.array("weights", "sketch")[tensor.index], count_sketch(values))
        np.testing.assert_array_equal(evidence.array("weights", "histogram")[tensor.index], histogram(values))
        assert tensor.value_sha256 == hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        if tensor.filters:
            rows = values.reshape(tensor.filters, -1)
            np.testing.assert_allclose(evidence.filters("filter_norm", tensor), np.linalg.norm(rows, axis=1), rtol=1e-6)
            digest = int.from_bytes(hashlib.sha256(rows[1].tobytes()).digest()[:8], "little")
            assert int(evidence.filters("filter_digest", tensor)[1]) == digest
    by_name = {tensor.name: tensor for tensor in evidence.tensors}
    assert by_name["features.0.weight"].call == "features.0"


def test_pruned_quantised_and_broken_weights_are_counted(images: Tensor) -> None:
    model = copy.deepcopy(trained_digits())
    with torch.no_grad():
        weight = model.get_parameter("features.4.weight")
        weight[3] = 0
        weight[5] *= 1e-6
        weight[7] = torch.round(weight[7] * 4) / 4
        model.get_parameter("head.bias")[2] = torch.nan
    with interpret.audit(model, images[:4], methods=()) as evidence:
        by_name = {tensor.name: tensor for tensor in evidence.tensors}
        kernel, bias = by_name["features.4.weight"], by_name["head.bias"]
        assert (kernel.zero_filters, kernel.near_zero_filters) == (1, 2)
        assert kernel.zeros >= 72
        assert evidence.filters("filter_zeros", kernel)[3] == 72
        assert bias.nonfinite == 1
        assert bias.norm is not None
        assert np.isfinite(bias.norm)
        position = evidence.call["head"].position
        assert evidence.array("layers", "nonfinite")[position] == 4
        assert evidence.gram("head") is None


def test_maps_equal_the_python_function(evidence: Evidence, images: Tensor) -> None:
    maps = interpret.class_activation_maps(trained_digits(), images[:3], auditing.DEFAULT_METHODS)
    for (method, key), expected in maps.items():
        np.testing.assert_allclose(
            evidence.array("maps", f"{method}/{key}")[:, 0], expected.numpy(), rtol=1e-5, atol=1e-6
        )
    assert evidence.array("maps", "targets").tolist() == maps.targets.tolist()
    logits = evidence.array("predictions", "logits")
    np.testing.assert_allclose(evidence.array("maps", "scores")[:, 0], logits[:3].max(1), rtol=1e-6)


def test_activations_are_within_one_step_of_the_truth(evidence: Evidence, outputs: dict[str, Tensor]) -> None:
    values = evidence.array("activations", "features.4/values").astype(np.float64)
    low, high = (
        evidence.array("activations", f"features.4/{name}")[..., None, None] for name in ("minimum", "maximum")
    )
    truth = outputs["features.4"][:3].numpy()
    assert np.abs(low + values / 255 * (high - low) - truth).max() <= (high - low).max() / 255


def test_kernels_and_inputs(evidence: Evidence) -> None:
    np.testing.assert_array_equal(
        evidence.array("kernels", "features.0.weight"), trained_digits().get_parameter("features.0.weight").detach()
    )
    assert evidence.array("inputs", "images").shape == (3, 8, 8, 3)


def test_the_journal_keeps_the_command(images: Tensor) -> None:
    with interpret.audit(trained_digits(), images, methods=(), command=("interpret", "audit")) as evidence:
        assert evidence.journal["environment"]["command"] == ["interpret", "audit"]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "journal.json"
    }


def test_the_same_audit_gives_the_same_bytes(images: Tensor, tmp_path: Path) -> None:
    for name in ("a", "b"):
        interpret.audit(trained_digits(), images, tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batches_do_not_matter(images: Tensor, evidence: Evidence, batch_size: int) -> None:
    with interpret.audit(trained_digits(), images, display_count=3, batch_size=batch_size) as other:
        for name in ("channel_mean", "zero_share", "gram"):
            np.testing.assert_allclose(other.array("layers", name), evidence.array("layers", name), atol=2e-5)
        item = "grad-cam/features.4"
        np.testing.assert_allclose(other.array("maps", item), evidence.array("maps", item), rtol=1e-4, atol=1e-6)


def test_targets_of_another_audit_are_taken_image_by_image(images: Tensor, evidence: Evidence) -> None:
    other = copy.deepcopy(trained_digits())
    with torch.no_grad():
        other.get_parameter("head.bias")[9] += 100
    with interpret.audit(other, images.flip(0)[-3:], targets=evidence) as second:
        assert second.array("predictions", "logits").argmax(1).tolist() == [9, 9, 9]
        assert second.array("maps", "targets").tolist() == evidence.array("maps", "targets")[::-1].tolist()
        assert second.manifest.settings["targets"].startswith("those of audit ")
    with pytest.raises(LayerError, match="was not displayed in the audit"):
        interpret.audit(other, images, targets=evidence)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("predicted", [[0], [1], [2]]),
        ("label", [[0], [1], [2]]),
        (7, [[7], [7], [7]]),
        (np.arange(10), [[0], [1], [2]]),
        (["label", 3], [[0, 3], [1, 3], [2, 3]]),
        (["predicted", lambda output: output[:, 0]], [[0, -1], [1, -1], [2, -1]]),
        (list(torch.arange(10)), [[0], [1], [2]]),
        (torch.tensor(4), [[4], [4], [4]]),
    ],
)
def test_targets(images: Tensor, targets: Any, expected: list[list[int]]) -> None:
    with interpret.audit(
        trained_digits(), images, targets=targets, labels=range(10), display_count=3, batch_size=2
    ) as evidence:
        kept = evidence.array("maps", "targets")
        assert kept.tolist() == expected
        assert evidence.array("maps", "eigen-cam/features.0").shape[:2] == kept.shape
        assert evidence.manifest.settings["targets"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"targets": "label"}, LayerError, "needs a label for every displayed image"),
        ({"targets": [1, 2]}, LayerError, "do not fit 10 images"),
        ({"targets": [0.5] * 10}, LayerError, "are no class indices"),
        ({"layers": "nothing"}, LayerError, "matches none"),
        ({"display_count": -1}, InterpretError, "is negative"),
        ({"methods": ["cam?"]}, LayerError, "unknown method"),
        ({"batch_size": 0}, InterpretError, "batch size 0 is neither"),
    ],
)
def test_what_does_not_fit_leaves_nothing(
    images: Tensor, tmp_path: Path, arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        interpret.audit(trained_digits(), images, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("collector", "method"), [(Activations, "observe"), (Gram, "record"), (Gram, "repeat"), (auditing.Maps, "attach")]
)
def test_a_failing_collector_is_recorded_and_the_others_go_on(
    images: Tensor, collector: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("out of paint")

    monkeypatch.setattr(collector, method, fail)
    with interpret.audit(trained_digits(), images) as evidence:
        assert evidence.manifest.status == "partial"
        assert evidence.manifest.collectors[collector.name] == {
            "status": "failed",
            "message": "ValueError: out of paint",
        }
        assert auditing.collectors_failed(evidence) == {collector.name: "ValueError: out of paint"}
        assert evidence.has("predictions", "logits")
        assert evidence.has("layers", "channel_mean")


def test_networks_without_logits(images: Tensor) -> None:
    """An audit that asks for nothing special says why there are no maps; one that names a class is refused."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(2))
    with interpret.audit(net, images) as evidence:
        states = evidence.manifest.collectors
        assert evidence.manifest.status == "complete"
        for name in ("maps", "predictions"):
            assert states[name]["status"] == "skipped"
            assert "is not (N, K) logits" in states[name]["message"]
    with pytest.raises(LayerError, match="is not"):
        interpret.audit(net, images, targets=1)


def test_networks_without_convolutions(images: Tensor) -> None:
    with interpret.audit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), images) as evidence:
        states = evidence.manifest.collectors
        assert evidence.manifest.status == "complete"
        skipped = {name for name, state in states.items() if state["status"] == "skipped"}
        assert skipped == {"kernels", "activations", "maps"} | UNASKED
        assert states["kernels"]["message"] == "the model has no convolution"


def test_images_from_files(tmp_path: Path) -> None:
    for index in range(2):
        pixels = (digit_images()[0][index, 0].numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(tmp_path / f"图 {index}.png")
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    seen: list[tuple[str, int, int]] = []
    with interpret.audit(net, tmp_path, progress=lambda *step: seen.append(step)) as evidence:
        assert evidence.manifest.inputs["names"] == ["图 0.png", "图 1.png"]
        assert evidence.manifest.inputs["shape"] == [3, 224, 224]
        assert evidence.array("inputs", "images").shape == (2, 224, 224, 3)
    assert {stage for stage, _, _ in seen} == {"images", "trace", "forward and backward", "noise floor", "evidence"}
    assert all(done <= total for _, done, total in seen)


def test_loaded_images_carry_their_own_names(images: Tensor) -> None:
    with pytest.raises(InterpretError, match="carry their own names"):
        interpret.audit(trained_digits(), probe_from_tensor(images), names=["a"] * 10)


def test_how_a_tensor_was_made_is_recorded(images: Tensor, tmp_path: Path) -> None:
    with interpret.audit(trained_digits(), images, methods=(), preprocessing={"scale": "x / 16"}) as evidence:
        assert evidence.manifest.inputs["preprocessing"]["scale"] == "x / 16"
    with pytest.raises(InterpretError, match="belong to tensors"):
        interpret.audit(trained_digits(), tmp_path, names=["a"])


def test_checkpoint_keeps_its_own_identity(tmp_path: Path, images: Tensor) -> None:
    """A half-precision file loaded into a float32 network is described as it was stored."""
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in trained_digits().state_dict().items()
    }
    torch.save(half, tmp_path / "half.pt")
    checkpoint = read_checkpoint(tmp_path / "half.pt")
    model = Digits()
    model.load_state_dict(half)
    with interpret.audit(model, images, checkpoint=checkpoint) as evidence:
        assert evidence.manifest.checkpoint["state_sha256"] == state_sha256(half)
        assert evidence.manifest.checkpoint["dtypes"] == {"float16": 9, "int64": 1}
        assert evidence.tensors[0].dtype == "float16"


def test_temporary_bundle_goes_with_its_evidence(images: Tensor) -> None:
    evidence = interpret.audit(trained_digits(), images[:1], methods=())
    assert evidence.folder.exists()
    assert np.isnan(evidence.array("layers", "noise_gram")).all(), "one image has no Gram to compare"
    evidence.close()
    assert not evidence.folder.exists()


def tamper(change: Callable[[nn.Module], None]) -> nn.Module:
    model = copy.deepcopy(trained_digits())
    with torch.no_grad():
        change(model)
    return model


@pytest.mark.parametrize(
    ("name", "change", "first"),
    [
        ("gamma", lambda model: model.get_parameter("features.1.weight").mul_(1.01), "features.1"),
        ("filter", lambda model: model.get_parameter("features.4.weight")[2].zero_(), "features.4"),
        ("entry", lambda model: model.get_parameter("features.0.weight")[0, 0, 1, 1].mul_(1.01), "features.0"),
        ("head", lambda model: model.get_parameter("head.bias")[1].add_(0.5), "head"),
    ],
)
def test_one_tampered_layer_is_named(
    images: Tensor, evidence: Evidence, name: str, change: Callable[[nn.Module], None], first: str
) -> None:
    with interpret.audit(tamper(change), images, targets=None, display_count=3) as other:
        result = interpret.compare(evidence, other, labels=["reference", name]).to_dict()
    assert result["verdict"] == {name: "localized"}
    assert result["ranking"][name][0] == first
    assert result["first_divergence"] == {name: first}


def test_a_copy_is_identical(images: Tensor, evidence: Evidence) -> None:
    with interpret.audit(copy.deepcopy(trained_digits()), images, display_count=3, batch_size=5) as other:
        result = interpret.compare(evidence, other, labels=["reference", "copy"]).to_dict()
    assert result["verdict"] == {"copy": "identical"}
    assert result["ranking"] == {"copy": []}


@pytest.mark.parametrize(("free", "size"), [(2**40, 16), (4 * 3 * 5, 5), (1, 1)])
def test_batches_fit_a_quarter_of_the_free_memory(monkeypatch: pytest.MonkeyPatch, free: int, size: int) -> None:
    """Each image is taken for three times the bytes of its outputs."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    outputs = 4 * (4 * 6 * 6 + 4 + 2)  # bytes; flattening makes no new tensor
    monkeypatch.setattr(auditing, "available_bytes", lambda device: free * outputs if free > 1 else 1)
    with interpret.audit(net, torch.rand(20, 1, 8, 8), batch_size="auto", display_count=2) as evidence:
        assert evidence.manifest.settings["batch_size"] == size
        assert evidence.array("predictions", "logits").shape == (20, 2)


def test_long_work_and_little_memory_are_announced(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "interpret")
    net = trained_digits()
    interpret.audit(net, images).close()
    assert caplog.text == "", "short work needs no words"
    monkeypatch.setattr(auditing, "LONG", 0.0)
    monkeypatch.setattr(auditing, "LARGE_BUNDLE", 100)
    monkeypatch.setattr(auditing, "available_bytes", lambda device: 1000)
    interpret.audit(net, images, display_count=3, batch_size=4).close()
    assert f"{len(images)} images in chunks of 4, maps of 3: about" in caplog.text
    assert "0 MiB are free; take a smaller batch size or display fewer images" in caplog.text
    assert "take fewer probe images" in caplog.text


def test_features_that_spill_into_a_file_give_the_same_matrices(
    images: Tensor, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interpret.collectors import gram

    monkeypatch.setattr(gram, "IN_MEMORY", 1)
    with interpret.audit(trained_digits(), images, batch_size=3) as spilled:
        for call in evidence.calls:
            mine, theirs = spilled.gram(call.key), evidence.gram(call.key)
            assert mine is not None
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * float(np.abs(theirs).max()))


# Explanations on request ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained(images: Tensor) -> Iterator[Evidence]:
    with interpret.audit(
        trained_digits(),
        images[:6],
        methods=("grad-cam", "attention-rollout", "cam", "saliency", "integrated-gradients"),
        display_count=3,
        batch_size=2,
        trust=True,
        features={"features.4": [0, 3], "features": [3]},
    ) as evidence:
        yield evidence


def test_attributions_are_stored_chunk_by_chunk(explained: Evidence, images: Tensor) -> None:
    expected = interpret.attribution(trained_digits(), images[:3], "saliency")
    stored = explained.array("attributions", "saliency")
    assert stored.shape == (3, 1, 1, 8, 8)
    assert stored[:, 0] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-7)
    assert explained.array("attributions", "integrated-gradients/gap").shape == (3, 1)
    assert explained.array("attributions", "integrated-gradients/steps").max() <= 128
    assert "attention-rollout needs" in explained.manifest.settings["refused"]["attention-rollout"]
    assert explained.has("maps", "cam/features")


def test_squares_of_gradients_are_those_of_captures(explained: Evidence, images: Tensor) -> None:
    captured = interpret.capture(trained_digits(), images[:3], gradients=True)
    squares = explained.array("maps", "gradient_square")
    for place, key in enumerate(explained.manifest.settings["maps"]):
        exact = captured[key].gradient.double().square().mean((1, 2, 3))
        assert squares[:, 0, place] == pytest.approx(exact.numpy(), rel=1e-5)


def test_trust_is_what_the_functions_say(explained: Evidence, images: Tensor) -> None:
    about = explained.document("trust.json")
    assert about["keys"][-1] == "input"
    assert about["methods"] == ["grad-cam", "saliency", "integrated-gradients"]
    targets = torch.from_numpy(explained.array("maps", "targets")[:, 0])
    maps = interpret.class_activation_maps(trained_digits(), images[:3], layers=[about["keys"][0]])
    heat = maps.heatmap("grad-cam", about["keys"][0], (8, 8))[None]
    found = faithfulness(trained_digits(), images[:3], targets, heat)
    for kind in ("deletion", "insertion", "drop", "increase"):
        name = f"{kind}/grad-cam/{about['keys'][0]}"
        assert explained.array("trust", name) == pytest.approx(getattr(found, kind)[0], abs=1e-5)
    assert explained.array("trust", "probability") == pytest.approx(found.probability, abs=1e-6)
    assert explained.array("trust", "randomization/grad-cam").shape == (len(about["stages"]), 3)


def test_features_are_those_of_the_channels_asked_for(explained: Evidence, images: Tensor) -> None:
    channels = {name.rpartition("/")[0] for name in explained.keys("features") if not name.startswith("responses/")}
    assert channels == {"features.4/0", "features.4/3", "features/3"}
    patches = explained.array("features", "features.4/3/patches")
    values = explained.array("features", "features.4/3/activations")
    outputs = interpret.capture(trained_digits(), images[:6], "features.4")["features.4"][:, 3]
    assert values == pytest.approx(outputs.amax((1, 2)).sort(descending=True).values.numpy(), abs=1e-6)
    for (image, row, column, top, left, bottom, right), value in zip(patches, values, strict=True):
        assert float(outputs[image, row, column]) == pytest.approx(value, abs=1e-6)
        assert 0 <= top < bottom <= 8
        assert 0 <= left < right <= 8
    noise, excited, highest = explained.array("features", "features.4/3/excitation")
    assert excited > noise
    assert highest == pytest.approx(float(outputs.mean((1, 2)).max()), abs=1e-6)
    assert explained.array("features", "features.4/3/crops").shape == (6, 96, 96, 3)
    kernels = explained.array("features", "responses/features.0")
    first = nn.functional.conv2d(images[:1], trained_digits().features[0].weight, padding=1)[0]
    assert kernels == pytest.approx(first.detach().numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": {"features.9": [0]}}, "matches none of the"),
        ({"features": {"features.4": [99]}}, "99"),
        ({"methods": ["saliensy"]}, "did you mean 'saliency'"),
        ({"layers": ["fx:add"]}, "'fx:add' is no operation of the traced model"),
    ],
)
def test_what_cannot_be_explained_is_refused(options: dict[str, Any], message: str, images: Tensor) -> None:
    with pytest.raises(LayerError, match=message):
        interpret.audit(trained_digits(), images[:2], **options)


def test_trust_needs_the_probability_of_a_class(images: Tensor) -> None:
    with interpret.audit(trained_digits(), images[:2], trust=True, targets=lambda output: output[:, 3]) as evidence:
        assert evidence.manifest.status == "complete"
        assert "probability of a class" in evidence.manifest.collectors["trust"]["message"]
