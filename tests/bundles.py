"""Small synthetic evidence bundles, made without torch: a tiny network in NumPy, run for real.

    from bundles import bundle, int8, network, probe, scaled, zeroed_filters

    weights = network()                                   # {tensor name: array}; the same weights every time
    reference = bundle(weights)                           # Evidence in a temporary folder
    reference = bundle(weights, tmp_path / "reference")   # or in a folder of your own
    louder = bundle(scaled(weights, "layer1.bn.weight", 1.01))
    damaged = bundle(zeroed_filters(int8(weights), "layer2.conv.weight", share=0.3))
    other_images = bundle(weights, images=probe(16, seed=1))

    def break_layer(content):
        content["layers"]["nonfinite"][3] = 7

    broken = bundle(weights, edit=break_layer)

The network: `conv1`, `bn1`, `relu`, then for each block a container `layerN` with `conv`, `bn` and `relu`,
followed by the one shared `pool` (`pool`, `pool#1`, ...), then `avgpool` and `fc`. Changes of the weights
travel through the forward pass, so that Grams, channel statistics, logits and maps of a bundle always fit
together. Whatever cannot come from a forward pass is set by `edit`, a function that gets everything just before
it is written and changes it in place: `{"manifest": {...}, "tensors": [...], "weights": {...}, "layers": {...},
"predictions": {...}, "maps": {...}, ...}`. An array file whose entry is deleted is not written, as if its
collector had failed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret.evidence import ARRAY_FILES, SCHEMA_VERSION, Call, Evidence, EvidenceWriter, Manifest
from interpret.functional.faithfulness import pixel_counts
from interpret.functional.statistics import count_sketch, histogram
from interpret.measures import Measures

Array = NDArray[Any]
Weights = Mapping[str, Array]
COLLECTORS = ("summary", "weights", "kernels", "activations", "statistics", "gram", "maps", "predictions")


# Weights and images ---------------------------------------------------------------------------------------------------


def network(seed: int = 0, widths: Sequence[int] = (8, 12, 16, 24), classes: int = 10) -> dict[str, Array]:
    """The weights of the tiny network: a stem of `widths[0]` filters and one block for each further width."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}
    channels = 3
    for index, width in enumerate(widths):
        conv, bn = ("conv1", "bn1") if index == 0 else (f"layer{index}.conv", f"layer{index}.bn")
        weights[f"{conv}.weight"] = rng.normal(0, np.sqrt(2 / (9 * channels)), (width, channels, 3, 3))
        weights[f"{bn}.weight"] = rng.uniform(0.6, 1.4, width)
        weights[f"{bn}.bias"] = rng.normal(0, 0.2, width)
        weights[f"{bn}.running_mean"] = np.zeros(width)
        weights[f"{bn}.running_var"] = np.ones(width)
        channels = width
    weights["fc.weight"] = rng.normal(0, np.sqrt(4 / channels), (classes, channels))
    weights["fc.bias"] = rng.normal(0, 0.1, classes)
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    calibration = probe(16, seed=99)
    for index in range(len(widths)):  # running statistics that fit the images, layer after layer
        bn = "bn1" if index == 0 else f"layer{index}.bn"
        record = next(record for record in forward(weights, calibration) if record.key == bn)
        weights[f"{bn}.running_mean"] = record.input.mean((0, 2, 3)).astype(np.float32)
        weights[f"{bn}.running_var"] = record.input.var((0, 2, 3)).astype(np.float32)
    features = forward(weights, calibration)[-1].input
    weights["fc.bias"] = (weights["fc.bias"] - weights["fc.weight"] @ features.mean(0)).astype(np.float32)
    result: dict[str, Array] = {}
    for name, array in weights.items():
        result[name] = array
        if name.endswith("running_var"):
            result[name.replace("running_var", "num_batches_tracked")] = np.array(100)
    return result


def probe(count: int = 16, seed: int = 0, size: int = 16) -> Array:
    """Smooth random images as the network sees them: (count, 3, size, size), float32, about standard normal."""
    axis = np.linspace(0, 1, size)
    images = np.empty((count, 3, size, size))
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        tint = rng.normal(0, 1, (3, 1, 1))
        waves = [
            np.sin(2 * np.pi * (a * axis[:, None] + b * axis + phase))
            for a, b, phase in rng.uniform(0, 1, (4, 3)) * [2.5, 2.5, 1]
        ]
        images[index] = tint * 0.7 + np.tensordot(rng.normal(0, 0.7, (3, 4)), np.stack(waves), 1)
        images[index] += rng.normal(0, 0.1, (3, size, size))
    return images.astype(np.float32)


def scaled(weights: Weights, name: str, factor: float) -> dict[str, Array]:
    """A copy with one tensor multiplied by a factor."""
    return {**weights, name: (weights[name] * factor).astype(weights[name].dtype)}


def shifted(weights: Weights, name: str, offset: float, index: Any = ...) -> dict[str, Array]:
    """A copy with an offset added to one tensor, or to one entry of it."""
    changed = weights[name].copy()
    changed[index] += offset
    return {**weights, name: changed}


def int8(weights: Weights) -> dict[str, Array]:
    """A copy with convolution and linear kernels rounded to 8 bits per output channel and stored back as float."""
    result = dict(weights)
    for name, array in weights.items():
        if array.ndim > 1:
            step = np.abs(array).reshape(len(array), -1).max(1).reshape(-1, *[1] * (array.ndim - 1)) / 127
            result[name] = (np.round(array / np.where(step == 0, 1, step)) * step).astype(np.float32)
    return result


def noisy(weights: Weights, share: float, seed: int = 0) -> dict[str, Array]:
    """A copy with normal noise on every float tensor; its norm is `share` of the tensor's norm."""
    rng, result = np.random.default_rng(seed), dict(weights)
    for name, array in weights.items():
        if array.dtype.kind == "f":
            noise = rng.normal(size=array.shape)
            noise *= share * np.linalg.norm(array) / max(np.linalg.norm(noise), 1e-30)
            result[name] = (array + noise).astype(np.float32)
    return result


def zeroed_filters(weights: Weights, name: str, share: float = 0.3, seed: int = 0) -> dict[str, Array]:
    """A copy with a share of one tensor's filters set to zero."""
    changed = weights[name].copy()
    order = np.random.default_rng(seed).permutation(len(changed))
    changed[np.sort(order[: round(share * len(changed))])] = 0
    return {**weights, name: changed}


def redrawn(weights: Weights, name: str, seed: int = 0) -> dict[str, Array]:
    """A copy with the entries of one tensor shuffled."""
    entries = np.random.default_rng(seed).permutation(weights[name].ravel())
    return {**weights, name: entries.reshape(weights[name].shape)}


def permuted(weights: Weights, block: int = 1, seed: int = 0) -> dict[str, Array]:
    """A copy with the channels of one block reordered, here and in the next layer's kernels: the same function."""
    result = dict(weights)
    order = np.random.default_rng(seed).permutation(len(weights[f"layer{block}.conv.weight"]))
    for name in (
        f"layer{block}.conv.weight",
        *(f"layer{block}.bn.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
    ):
        result[name] = weights[name][order]
    following = f"layer{block + 1}.conv.weight"
    following = following if following in weights else "fc.weight"
    result[following] = weights[following][:, order]
    return result


# The network in NumPy -------------------------------------------------------------------------------------------------


@dataclass
class Record:
    """One call as a hook would see it."""

    key: str
    type: str
    kind: str
    input: Array
    output: Array
    tensors: tuple[str, ...] = ()
    unit: str = ""
    multiply_adds: int = 0


def forward(weights: Weights, images: Array) -> list[Record]:
    """Every call of the network on the images, in order of completion; computed in float64."""
    records: list[Record] = []

    def add(
        key: str, type_: str, kind: str, x: Array, y: Array, prefix: str = "", unit: str = "", work: int = 0
    ) -> Array:
        tensors = tuple(name for name in weights if prefix and name.rpartition(".")[0] == prefix)
        records.append(Record(key, type_, kind, x, y, tensors, unit or key, work))
        return y

    def unit(x: Array, conv: str, bn: str, relu: str) -> Array:
        kernel = weights[f"{conv}.weight"].astype(np.float64)
        y = add(conv, "Conv2d", "convolution", x, convolve(x, kernel), conv, work=kernel.size * x[0, 0].size)
        gamma, beta, mean, var = (
            weights[f"{bn}.{part}"].astype(np.float64)[:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        z = add(bn, "BatchNorm2d", "normalization", y, (y - mean) / np.sqrt(var + 1e-5) * gamma + beta, bn, unit=conv)
        return add(relu, "ReLU", "activation", z, np.maximum(z, 0))

    x = unit(images.astype(np.float64), "conv1", "bn1", "relu")
    blocks = sorted(
        {name.split(".")[0] for name in weights if name.startswith("layer")}, key=lambda name: int(name[5:])
    )
    for index, block in enumerate(blocks):
        y = unit(x, f"{block}.conv", f"{block}.bn", f"{block}.relu")
        add(block, "Sequential", "container", x, y)
        pooled = (
            y[:, :, ::2, ::2]
            if min(y.shape[2:]) < 4
            else y.reshape(*y.shape[:2], y.shape[2] // 2, 2, y.shape[3] // 2, 2).mean((3, 5))
        )
        x = add("pool" if index == 0 else f"pool#{index}", "AvgPool2d", "pooling", y, pooled)
    x = add("avgpool", "AdaptiveAvgPool2d", "pooling", x, x.mean((2, 3), keepdims=True)).reshape(len(x), -1)
    kernel = weights["fc.weight"].astype(np.float64)
    add("fc", "Linear", "linear", x, x @ kernel.T + weights["fc.bias"], "fc", work=kernel.size)
    return records


def convolve(x: Array, kernel: Array) -> Array:
    """A 3 x 3 convolution with padding 1: (N, C, H, W) and (D, C, 3, 3) to (N, D, H, W)."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    return np.einsum("nchwij,dcij->ndhw", windows, kernel, optimize=True)


def pooled(output: Array) -> tuple[Array, int]:
    """Features for the Gram matrix, and their grid: the largest g of 7, 4, 2, 1 with C * g^2 <= 4096."""
    if output.ndim == 2:
        return output, 0
    grid = next(g for g in (7, 4, 2, 1) if output.shape[1] * g * g <= 4096)

    def averaged(array: Array, axis: int) -> Array:
        size = array.shape[axis]
        g = min(grid, size)
        parts = [array.take(range(i * size // g, -(-(i + 1) * size // g)), axis).mean(axis) for i in range(g)]
        return np.stack(parts, axis)

    return averaged(averaged(output, 2), 3).reshape(len(output), -1), grid


# Writing --------------------------------------------------------------------------------------------------------------


def bundle(
    weights: Weights,
    folder: Path | None = None,
    *,
    images: Array | None = None,
    name: str = "TinyNet",
    sources: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    displayed: int = 4,
    targets: Array | None = None,
    methods: Sequence[str] = ("grad-cam", "layer-cam"),
    rename: Callable[[str], str] = lambda key: key,
    drop_calls: Sequence[str] = (),
    noise: float = 1e-8,
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> Evidence:
    """An evidence bundle of the tiny network.

    Args:
        weights: from `network`, tampered or not.
        folder: where to write; None makes a temporary folder.
        images: the probe, (N, 3, H, W); 16 images of `probe` by default.
        name: the model's name.
        sources: source_sha256 of each image; by default a digest of the image itself.
        labels: true class of each image.
        class_names: names of the classes; `class 0`, `class 1`, ... by default.
        displayed: number of images with maps and pictures.
        targets: classes that the maps explain, (D, R); the predicted class by default.
        methods: names of the map methods. The maps are made up: channels are weighted by call, class and method alone.
        rename: gives every call (and its tensors) another name.
        drop_calls: keys of calls that are left out.
        noise: noise floor of every call.
        edit: changes everything just before it is written.
    """
    images = probe() if images is None else images
    records = forward(weights, images)
    logits = records[-1].output
    records = [record for record in records if record.key not in drop_calls]
    count, displayed = len(images), min(displayed, len(images))
    targets = logits[:displayed].argmax(1)[:, None] if targets is None else np.asarray(targets)
    tensor_sha256 = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    calls = [_call(record, position, records, weights, rename) for position, record in enumerate(records)]
    owner = {tensor: record.key for record in records for tensor in record.tensors}
    tensors, weight_arrays = _weights(weights, owner, rename)
    maps = {
        "targets": targets.astype(np.int64),
        "scores": np.take_along_axis(logits[:displayed], np.maximum(targets, 0), 1).astype(np.float32),
    }
    mapped = [record for record in records if record.kind == "convolution"]
    maps |= {
        f"{method}/{rename(record.key)}": _maps(record, method, targets) for method in methods for record in mapped
    }
    classes = logits.shape[1]
    content: dict[str, Any] = {
        "manifest": {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "mlflow-interpret", "version": "0.0.0"},
            "libraries": {"numpy": "0"},
            "device": "cpu",
            "seed": 0,
            "status": "complete",
            "checkpoint": {
                "uri": f"{name}.safetensors",
                "file_sha256": _sha256(name.encode(), *(array.tobytes() for array in weights.values())),
                "state_sha256": _sha256(*(array.tobytes() for array in weights.values())),
                "format": "safetensors",
                "branch": None,
                "stripped_prefixes": [],
                "dtypes": sorted({str(array.dtype) for array in weights.values()}),
                "unexpected": [],
                "others": {},
                "step": None,
            },
            "model": {
                "name": name,
                "architecture_digest": _sha256(*(repr((call.kind, call.output_shape)).encode() for call in calls)),
                "parameters": sum(call.parameters for call in calls),
                "multiply_adds": sum(call.multiply_adds for call in calls if call.kind != "container"),
                "class_names": list(class_names) if class_names else [f"class {index}" for index in range(classes)],
            },
            "inputs": {
                "count": count,
                "displayed": displayed,
                "names": [f"image_{index:02d}.png" for index in range(count)],
                "source_sha256": list(sources) if sources else [_sha256(digest.encode()) for digest in tensor_sha256],
                "tensor_sha256": tensor_sha256,
                "probe_sha256": _sha256(*(digest.encode() for digest in tensor_sha256)),
                "shape": list(images.shape[1:]),
                "preprocessing": {
                    "mean": [0.485, 0.456, 0.406],
                    "std": [0.229, 0.224, 0.225],
                    "resize": 16,
                    "crop": 16,
                },
                "labels": list(labels) if labels is not None else None,
                "skipped": [],
            },
            "calls": calls,
            "unused": [],
            "collectors": {collector: {"status": "ok", "message": ""} for collector in COLLECTORS},
            "settings": {
                "methods": list(methods),
                "layers": None,
                "targets": "predicted",
                "display_count": displayed,
                "batch_size": 16,
                "forward": None,
                "refused": {},
                "notes": {},
                "trust": False,
                "features": {},
                "kernels": [],
                "pictures": [rename(record.key) for record in mapped],
                "maps": [rename(record.key) for record in mapped],
            },
        },
        "tensors": tensors,
        "weights": weight_arrays,
        "layers": _layers(records, weights, noise),
        "predictions": {
            "logits": logits.astype(np.float32),
            "labels": np.array(labels if labels is not None else [-1] * count),
        },
        "maps": maps,
        "kernels": {
            _renamed(f"{r.key}.weight", r.key, rename): weights[f"{r.key}.weight"][:64, :16].astype(np.float32)
            for r in mapped
        },
        "activations": _activations(mapped, displayed, rename),
        "inputs": {"images": _displayed(images[:displayed])},
        "summary": "TinyNet\n" + "\n".join(f"{record.key:<14}{record.type}" for record in records) + "\n",
    }
    if edit is not None:
        edit(content)
    manifest = Manifest(
        **{
            **content["manifest"],
            "calls": tuple(content["manifest"]["calls"]),
            "unused": tuple(content["manifest"]["unused"]),
        }
    )
    with EvidenceWriter(folder) as writer:
        writer.text("summary.txt", content["summary"])
        if "weights" in content:
            writer.json("weights.json", {"tensors": content["tensors"]})
        if "trust.json" in content:
            writer.json("trust.json", content["trust.json"])
        for kind in ARRAY_FILES:
            if kind in content:
                writer.arrays(kind, content[kind])
        return writer.finish(manifest, {"created_utc": "2025-01-01T00:00:00Z", "seconds": {}, "environment": {}})


def with_attributions(content: dict[str, Any]) -> None:
    """For `edit`: made-up attributions by three methods that are drawn in three ways."""
    shape = (*content["maps"]["targets"].shape, *content["manifest"]["inputs"]["shape"])
    rng = np.random.default_rng(5)
    signed = rng.normal(size=shape).astype(np.float32)
    content["attributions"] = {
        "saliency": np.abs(signed),
        "integrated-gradients": signed,
        "integrated-gradients/gap": np.full(shape[:2], -0.004),
        "integrated-gradients/steps": np.full(shape[:2], 64),
        "guided-backprop": signed / 2,
    }
    content["manifest"]["settings"]["refused"] = {"cam": "cam needs a linear head that reads the mean"}
    content["manifest"]["settings"]["notes"] = {"guided-backprop": "guided at 3 rectifiers"}


def with_trust(content: dict[str, Any], strength: Mapping[str, float] | None = None, steps: int = 10) -> None:
    """For `edit`: made-up tests of maps; insertion t^(1/q), deletion (1 - t)^q, so the score is (q - 1) / (q + 1).

    Args:
        content: what `edit` gets.
        strength: q of each method and control.
        steps: S; with few of them the trapezoidal rule is rough.
    """
    strength = strength or {"grad-cam": 4.0, "layer-cam": 1.2, "random": 1.0, "gaussian": 2.0}
    images, keys = len(content["maps"]["targets"]), ("layer1.conv", "layer2.conv")
    pixels = math.prod(content["manifest"]["inputs"]["shape"][-2:])
    share = pixel_counts(pixels, steps) / pixels
    trust: dict[str, Array] = {"probability": np.ones(images)}
    for name, q in strength.items():
        for key in keys:
            trust[f"insertion/{name}/{key}"] = np.repeat(share[None] ** (1 / q), images, 0)
            trust[f"deletion/{name}/{key}"] = np.repeat((1 - share[None]) ** q, images, 0)
            trust[f"drop/{name}/{key}"] = np.full(images, 0.25)
            trust[f"increase/{name}/{key}"] = np.arange(images) == 0
    methods = [name for name in strength if name not in ("random", "gaussian")]
    for name, end in zip(methods, (0.1, 0.9), strict=False):
        trust[f"randomization/{name}"] = np.repeat(np.array([[0.95], [end]]), images, 1)
    content["trust"] = trust
    content["trust.json"] = {"steps": steps, "keys": list(keys), "methods": methods, "stages": ["fc", "conv1"]}
    content["manifest"]["settings"]["trust"] = True


def with_features(content: dict[str, Any]) -> None:
    """For `edit`: made-up features of one channel of `conv1` with three patches, and the responses of its kernels."""
    rng = np.random.default_rng(6)
    parts = rng.normal(size=(3, 8, 8)).astype(np.float32)
    parts[2] = np.nan
    content["features"] = {
        "conv1/5/maximized": rng.integers(0, 256, (16, 16, 3), np.uint8),
        "conv1/5/excitation": np.array([0.125, 7.5, 3.25]),
        "conv1/5/patches": np.array([[1, 2, 3, 1, 2, 4, 5], [0, 0, 0, 0, 0, 2, 2], [9, 8, 8, 7, 7, 10, 10]]),
        "conv1/5/activations": np.array([3.25, 2.0, 1.0]),
        "conv1/5/crops": rng.integers(0, 256, (3, 8, 8, 3), np.uint8),
        "conv1/5/reconstructions": parts,
        "responses/conv1": rng.normal(size=(8, 16, 16)).astype(np.float32),
    }
    content["manifest"]["settings"]["features"] = {"conv1": [5]}


def changed_call(call: Call, **changes: Any) -> Call:
    """A call with other fields; for `edit`."""
    assert set(changes) <= {field.name for field in fields(Call)}
    return replace(call, **changes)


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _renamed(tensor: str, key: str, rename: Callable[[str], str]) -> str:
    return rename(key) + tensor[len(key) :]


def _call(
    record: Record, position: int, records: Sequence[Record], weights: Weights, rename: Callable[[str], str]
) -> Call:
    name, _, occurrence = record.key.partition("#")
    learned = [
        name for name in record.tensors if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    later = records[position + 1 :]
    return Call(
        key=rename(record.key),
        name=rename(name),
        occurrence=int(occurrence or 0),
        position=position,
        type=record.type,
        kind=record.kind,
        input_shape=(1, *record.input.shape[1:]),
        output_shape=(1, *record.output.shape[1:]),
        layout="NCHW" if record.output.ndim == 4 else "NC",
        parameters=sum(weights[name].size for name in learned),
        multiply_adds=record.multiply_adds,
        tensors=tuple(_renamed(tensor, record.key, rename) for tensor in record.tensors),
        unit=rename(record.unit),
        stage_end=record.output.ndim == 4 and all(other.output.shape[2:] != record.output.shape[2:] for other in later),
        overwritten=False,
        weight_shape=next((weights[name].shape for name in learned if weights[name].ndim > 1), None),
        receptive_field=None,
        token_grid=None,
        reaches_output=True,
        last=record.kind == "convolution" and all(other.kind != "convolution" for other in later),
    )


def _weights(
    weights: Weights, owner: Mapping[str, str], rename: Callable[[str], str]
) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    entries, sketches, histograms, digests, norms, zeros = [], [], [], [], [], []
    for name, array in weights.items():
        key = owner.get(name)
        values = array.astype(np.float64).ravel()
        finite = values[np.isfinite(values)]
        filters = array.reshape(len(array), -1) if array.ndim > 1 else np.zeros((0, 1), array.dtype)
        norm = np.linalg.norm(filters.astype(np.float64), axis=1)
        header = f"{array.shape}".encode()
        entries.append(
            {
                "name": _renamed(name, key, rename) if key else name,
                "call": rename(key) if key else None,
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "sha256": _sha256(str(array.dtype).encode(), header, array.tobytes()),
                "value_sha256": _sha256(header, array.astype(np.float32).tobytes()),
                "entries": array.size,
                "filters": len(filters),
                "norm": float(np.linalg.norm(finite)) if finite.size else None,
                "mean": float(finite.mean()) if finite.size else None,
                "standard_deviation": float(finite.std()) if finite.size else None,
                "minimum": float(finite.min()) if finite.size else None,
                "maximum": float(finite.max()) if finite.size else None,
                "zeros": int((values == 0).sum()),
                "nonfinite": int(values.size - finite.size),
                "zero_filters": int((norm == 0).sum()),
                "near_zero_filters": int((norm < 1e-3 * np.median(norm)).sum()) if len(norm) else 0,
                "distinct": max(
                    (len(np.unique(row)) for row in filters[:: max(1, len(filters) // 8)][:8]),
                    default=len(np.unique(values)),
                ),
            }
        )
        sketches.append(count_sketch(values))
        histograms.append(histogram(finite))
        digests += [int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:8], "little") for row in filters]
        norms += list(norm)
        zeros += list((filters == 0).sum(1))
    return entries, {
        "sketch": np.stack(sketches).astype(np.float32),
        "histogram": np.stack(histograms).astype(np.int32),
        "filter_digest": np.array(digests, np.uint64),
        "filter_norm": np.array(norms, np.float32),
        "filter_zeros": np.array(zeros, np.int64),
    }


def _layers(records: Sequence[Record], weights: Weights, noise: float) -> dict[str, Array]:
    count = len(records[0].output)
    triangle = np.triu_indices(count)
    grams, scales, pooling, rows = [], [], [], []
    moments: dict[str, list[Array]] = {name: [] for name in ("mean", "variance", "minimum", "maximum", "zeros")}
    for record in records:
        features, grid = pooled(record.output)
        features = features - features.mean(0)
        gram = features @ features.T
        scale = np.abs(gram).max() if np.isfinite(gram).all() else np.nan
        grams.append((gram / scale if scale > 0 else np.zeros_like(gram))[triangle].astype(np.float32))
        scales.append(scale)
        pooling.append(grid)
        values = np.moveaxis(record.output, 1, 0).reshape(record.output.shape[1], -1)
        for name, value in zip(
            moments, (values.mean(1), values.var(1), values.min(1), values.max(1), (values == 0).mean(1)), strict=True
        ):
            moments[name].append(value)
        drift = (np.nan, np.nan, np.nan)
        if record.kind == "normalization":
            mean, var = (
                weights[f"{record.key}.running_mean"].astype(float),
                weights[f"{record.key}.running_var"].astype(float),
            )
            z = np.abs(record.input.mean((0, 2, 3)) - mean) / np.sqrt(var + 1e-5)
            with np.errstate(divide="ignore"):
                ratio = np.log(record.input.var((0, 2, 3)) / var)
            drift = (np.median(z), np.quantile(z, 0.95), np.median(ratio))
        span = values.max(1) - values.min(1)
        rows.append(
            (
                (values.max(1) <= 0).sum() if record.kind == "activation" else 0,
                (span <= 1e-6 * (1 + np.abs(values.mean(1)))).sum(),
                np.nan,
                (values == 0).mean(),
                (~np.isfinite(values)).sum(),
                *drift,
            )
        )
    names = ["dead_units", "constant_units", "saturated_share", "zero_share", "nonfinite"]
    names += ["batchnorm_z_median", "batchnorm_z_p95", "batchnorm_log_variance"]
    columns = dict(zip(names, np.array(rows, float).T, strict=True))
    whole = ("dead_units", "constant_units", "nonfinite")
    return {
        "gram": np.stack(grams),
        "gram_scale": np.array(scales, np.float64),
        "pooling": np.array(pooling, np.int16),
        "channels": np.array([record.output.shape[1] for record in records], np.int64),
        **{f"channel_{name}": np.concatenate(parts).astype(np.float32) for name, parts in moments.items()},
        **{name: column.astype(np.int64) if name in whole else column for name, column in columns.items()},
        "noise_gram": np.full(len(records), noise),
        "noise_mean": np.full(len(records), noise),
    }


def _maps(record: Record, method: str, targets: Array) -> Array:
    displayed, ranks = targets.shape
    channels, height, width = record.output.shape[1:]
    maps = np.zeros((displayed, ranks, height, width), np.float32)
    for d, r in np.ndindex(displayed, ranks):
        seed = int.from_bytes(hashlib.sha256(f"{record.key} {method} {targets[d, r]}".encode()).digest()[:4], "little")
        weighting = np.random.default_rng(seed).normal(size=channels)
        maps[d, r] = np.maximum(np.tensordot(weighting, record.output[d], 1), 0)
    return maps


def _activations(records: Sequence[Record], displayed: int, rename: Callable[[str], str]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for record in records:
        values = record.output[:displayed, :64]
        low, high = values.min((2, 3)), values.max((2, 3))
        span = np.where(high > low, high - low, 1)[:, :, None, None]
        key = rename(record.key)
        arrays[f"{key}/values"] = np.round((values - low[:, :, None, None]) / span * 255).astype(np.uint8)
        arrays[f"{key}/minimum"], arrays[f"{key}/maximum"] = low.astype(np.float32), high.astype(np.float32)
    return arrays


def _displayed(images: Array) -> Array:
    return np.clip(images.transpose(0, 2, 3, 1) * 40 + 128, 0, 255).astype(np.uint8)


def with_changes(measures: Measures, changes: Sequence[float]) -> Measures:
    """The measures of many convolutions whose kernels changed by the given amounts."""
    template = next(pair for pair in measures.calls if pair.key == "conv1")
    tensor = template.tensors[0]
    calls = []
    for index, change in enumerate(changes):
        call = replace(template.reference, key=f"c{index}", unit=f"c{index}", position=index)
        status = "changed" if change else "identical"
        changed = replace(tensor, status=status, change=change)
        calls.append(replace(template, reference=call, other=call, tensors=(changed,)))
    return replace(measures, calls=tuple(calls))
