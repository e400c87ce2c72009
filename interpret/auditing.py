"""The write side: a model and probe images become one evidence bundle."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import interpret
from interpret import hooks
from interpret.checkpoint import Checkpoint, state_sha256
from interpret.collectors import Array, Chunk, Collector, Observation, Record, Setting
from interpret.collectors.activations import Activations
from interpret.collectors.attributions import Attributions
from interpret.collectors.features import Features
from interpret.collectors.gram import Gram
from interpret.collectors.kernels import Kernels
from interpret.collectors.maps import Maps
from interpret.collectors.predictions import Predictions
from interpret.collectors.statistics import Statistics
from interpret.collectors.summary import Summary
from interpret.collectors.trust import Trust
from interpret.collectors.weights import Weights
from interpret.errors import InterpretError, LayerError
from interpret.evidence import SCHEMA_VERSION, Call, Evidence, EvidenceWriter, Manifest
from interpret.functional.cam import ATTRIBUTION_METHODS, MAP_METHODS, ONE_PASS_METHODS, check_methods
from interpret.images import ProbeImages, find_images, load_images, probe_from_tensor
from interpret.maps import DEFAULT_METHODS, default_layers, has_maps
from interpret.memory import available_bytes, size_in_words
from interpret.preprocessing import Preprocessing
from interpret.targets import Target, Targets, are_several, in_words, resolve
from interpret.tracing import Forward, Trace, run, select, state_of, trace, version_of, without_onednn

COLLECTORS: tuple[type[Collector], ...] = (
    Summary, Weights, Kernels, Activations, Statistics, Gram, Predictions, Maps, Attributions, Trust, Features,
)  # fmt: skip
METHODS = (*MAP_METHODS, *ATTRIBUTION_METHODS)
LIBRARIES = ("torch", "torchvision", "torchinfo", "numpy", "pillow")
REPEATED_IMAGES = 2
LARGEST_BATCH = {"cpu": 16}  # more gains nothing there
GRAPH_SHARE = 3  # memory of an image with its graph, in bytes of the calls' outputs: gradients, maps, and between
BACKWARD_COST = 5  # of the maps of an image, in forwards of one image
UNOBSERVED = 0.7  # of the time of the first forward, which counts and follows everything
LONG = 10.0  # seconds from which an audit says beforehand what it will take
LARGE_BUNDLE = 2**28

logger = logging.getLogger("interpret")

Progress = Callable[[str, int, int], None]


def audit(
    model: nn.Module,
    images: ProbeImages | Tensor | str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    layers: Sequence[str] | str | None = None,
    targets: Any = "predicted",
    names: Sequence[str] | None = None,
    labels: Sequence[int | None] | None = None,
    class_names: Sequence[str] | None = None,
    display_images: Any = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
    display_count: int = 4,
    batch_size: int | str = 16,
    forward: Forward | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    trust: bool = False,
    features: Mapping[str, Sequence[int]] | None = None,
    kernels: Sequence[str] | str = (),
    skip_broken: bool = False,
    step: int | None = None,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evidence:
    """Audit one model on probe images: one forward per image, one backward per displayed image and target.

    Args:
        model: any network with weights loaded; nothing of it is changed, except that it is moved where ``device`` says.
        images: a preprocessed tensor (N, C, H, W); paths (a folder, a glob, or files) with ``preprocessing``; or
            loaded probe images.
        out: folder of the bundle, empty or absent; None for a temporary one that lives as long as the evidence.
        methods: class activation map methods, and attributions of the input; an empty sequence for none.
        layers: where pictures and maps are taken; None for convolutions (and, for pictures, stage ends). Functional
            operations are named `fx:NODE`: then the model runs as a graph, whose call table has no containers.
        targets: what maps explain: "predicted", "label", a class index, one per image, an (N, R) array, a callable
            ``outputs -> (N,)``, a
            list of these, or the evidence of another audit, whose targets are taken image by image.
        names: names of the images.
        labels: their classes, None where unknown.
        class_names: the names of the classes.
        display_images: (D, H, W, 3) uint8 pictures of the first images, for tensors.
        preprocessing: how paths become tensors, ImageNet's by default; for a tensor, what to record of how it was made.
        checkpoint: where the weights came from, for the manifest.
        display_count: how many images get pictures and maps.
        batch_size: images per forward; memory is bounded by one such chunk. "auto" takes what a quarter of the free
            memory holds, at most 16 on a CPU, where more gains nothing, and 64 elsewhere.
        forward: ``(model, images) -> output`` for a model that takes something else than one batch of images: several
            inputs, keywords, a list.
        device: where to run; None for where the model is.
        seed: of everything random.
        trust: put the maps at stage ends to the test: deletion, insertion, drop, and randomised weights, beside the
            same of a random map and a centred Gaussian.
        features: which channels' features to show, by pattern of calls: the image that excites each most, the probe
            images' patches that do, and what of them does.
        kernels: convolutions whose kernels are kept whole, so that filters of two runs can be matched one to one;
            those of the first are anyway.
        skip_broken: of paths, leave out images that cannot be decoded, and say which.
        step: of the training, by which timelines are ordered; None for what the checkpoint says.
        command: the command line that asked for the audit, for the journal.
        progress: called with (stage, done, total).

    Returns:
        The finished evidence. Its status is "partial" where a collector failed; the manifest says why.

    Raises:
        InterpretError: the model fails on the images, or an argument does not fit.
    """
    report = progress or (lambda stage, done, total: None)
    clock = _Clock()
    methods = check_methods(methods, METHODS)
    model = hooks.observed(model, layers)
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise InterpretError(f"batch size {batch_size!r} is neither a positive number nor 'auto'")
    probe = _probe(images, names, labels, display_images, preprocessing, display_count, skip_broken, report)
    if device is not None:
        _move(model, device)
    reference = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
    clock.stop("images")
    with EvidenceWriter(None if out is None else Path(out)) as writer:
        with hooks.undisturbed(model, seed), _quiet():
            report("trace", 0, 1)
            runner = _Runner(model, probe.images, reference, forward)
            traced = trace(model, runner.chunk(0, 1), forward)
            clock.stop("trace")
            _refuse_other_classes(traced, probe, class_names)
            setting = _setting(
                model, checkpoint, traced, probe, methods, layers, seed, trust, features or {}, kernels, forward
            )
            size = _chosen_batch_size(traced, reference.device) if isinstance(batch_size, str) else batch_size
            _announce(setting, size, reference.device)
            crew = Crew([collector(setting) for collector in COLLECTORS])
            explained = _forward(runner, setting, crew, _targets(targets, probe), size, report)
            clock.stop("forward and backward")
            _repeat(runner, setting, crew, report)
            clock.stop("noise floor")
            _explain(runner, crew, explained, report)
            clock.stop("passes of their own")
        report("evidence", 0, 1)
        records = crew.records()
        _write(writer, records, probe)
        clock.stop("collect")
        manifest = _manifest(
            setting,
            probe,
            checkpoint,
            step,
            crew,
            reference,
            seed,
            targets,
            size,
            class_names,
            layers,
            forward,
            records,
        )
        journal = {
            "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": clock.seconds,
            "environment": {
                "python": platform.python_version(),
                "system": platform.system(),
                "machine": platform.machine(),
                "torch_threads": torch.get_num_threads(),
                "command": list(command),
            },
        }
        evidence = writer.finish(manifest, journal)
    report("evidence", 1, 1)
    return evidence


def _move(model: nn.Module, device: str | torch.device) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InterpretError(
            f"device {str(device)!r} cannot be used ({reason}); choose cpu, cuda, cuda:1 or mps"
        ) from error


def _refuse_other_classes(traced: Trace, probe: ProbeImages, class_names: Sequence[str] | None) -> None:
    """Refuse names and labels of other classes than the model's before the long work."""
    if traced.output_shape is None or len(traced.output_shape) != 2 or traced.output_shape[1] == 1:
        return  # no logits, or one for two classes
    classes = traced.output_shape[1]
    if class_names is not None and len(class_names) != classes:
        raise LayerError(
            f"{len(class_names)} class names were given, but the model has {classes} classes; "
            "give the names of its own classes, in its order"
        )
    for name, label in zip(probe.names, probe.labels or (), strict=False):
        if label is not None and not 0 <= label < classes:
            raise LayerError(
                f"label {label} of {name!r} is out of range: the model has {classes} classes (0 to {classes - 1}); "
                "correct it, or leave the labels out if the outputs are no classes"
            )


class _Clock:
    """Seconds per stage, for the journal."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of the user's network and of torch's switches out of the audit's output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _probe(
    images: ProbeImages | Tensor | str | Path | Sequence[str | Path],
    names: Sequence[str] | None,
    labels: Sequence[int | None] | None,
    display_images: Any,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
    display_count: int,
    skip_broken: bool,
    report: Progress,
) -> ProbeImages:
    if display_count < 0:
        raise InterpretError(f"display count {display_count} is negative")
    if isinstance(images, ProbeImages):
        if any(given is not None for given in (names, labels, display_images, preprocessing)):
            raise InterpretError("loaded probe images carry their own names, labels, pictures and preprocessing")
        return images
    if isinstance(images, Tensor):
        return probe_from_tensor(
            images,
            names=names,
            pictures=display_images,
            labels=labels,
            preprocessing=preprocessing.to_dict() if isinstance(preprocessing, Preprocessing) else preprocessing,
            display_count=display_count,
        )
    if names is not None or display_images is not None or isinstance(preprocessing, Mapping):
        raise InterpretError(
            "names and display_images belong to tensors; paths have their own, and need a Preprocessing"
        )
    several = not isinstance(images, str | Path)
    paths = tuple(path for item in images for path in find_images(item)) if several else find_images(images)  # type: ignore[union-attr,arg-type]
    root = None if several or not Path(images).is_dir() else Path(images)  # type: ignore[arg-type]
    return load_images(
        paths,
        preprocessing or Preprocessing(),
        labels=labels,
        limit=len(paths),
        display_count=display_count,
        root=root,
        skip_broken=skip_broken,
        progress=lambda done, total: report("images", done, total),
    )


def _setting(
    model: nn.Module,
    checkpoint: Checkpoint | None,
    trace: Trace,
    probe: ProbeImages,
    methods: tuple[str, ...],
    layers: Sequence[str] | str | None,
    seed: int,
    trust: bool,
    features: Mapping[str, Sequence[int]],
    kernels: Sequence[str] | str,
    forward: Forward | None,
) -> Setting:
    state = state_of(model)
    if checkpoint is not None:
        # as stored: a half-precision file loaded into a float32 model keeps its own identity
        state = {name: checkpoint.state.get(name, tensor) for name, tensor in state.items()}
    if layers is None:
        pictures = [call for call in trace.calls if call.map_shape is not None and _pictured(call)]
        maps = list(default_layers(trace.calls))
    else:
        chosen = select(trace.calls, layers)
        pictures = [call for call in chosen if call.map_shape is not None]
        maps = [call for call in chosen if has_maps(call)]
    return Setting(
        model=model,
        state=state,
        trace=trace,
        count=len(probe.images),
        displayed=len(probe.pictures),
        pictures=frozenset(call.key for call in pictures),
        maps=frozenset(call.key for call in maps),
        methods=methods,
        layers=(layers,) if isinstance(layers, str) else None if layers is None else tuple(layers),
        seed=seed,
        trust=trust,
        features=tuple((pattern, tuple(channels)) for pattern, channels in features.items()),
        kernels=_convolutions(trace.calls, kernels) if kernels else frozenset(),
        normalization=_normalization(probe),
        forward=forward,
    )


def _convolutions(calls: Sequence[Call], patterns: Sequence[str] | str) -> frozenset[str]:
    """Keys of the convolutions that patterns name, each at least one."""
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        chosen = {call.key for call in select(calls, pattern) if call.kind == "convolution"}
        if not chosen:
            raise LayerError(f"{pattern!r} names no convolution, and only those have kernels; list them by `layers`")
        found |= chosen
    return frozenset(found)


def _normalization(probe: ProbeImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that turn pictures in [0, 1] into the network's input.

    Those of the preprocessing; where it does not say, those for which the range of the probe images is [0, 1].
    """
    mean, std = (probe.preprocessing.get(name) for name in ("mean", "std"))
    channels = probe.images.shape[1]
    if isinstance(mean, list | tuple) and isinstance(std, list | tuple) and len(mean) == len(std) == channels:
        return tuple(mean), tuple(std)
    flat = probe.images.float().transpose(0, 1).flatten(1)
    low, span = flat.amin(1), (flat.amax(1) - flat.amin(1)).clamp_min(1e-6)
    return tuple((-low / span).tolist()), tuple((1 / span).tolist())


def _pictured(call: Call) -> bool:
    """Whether a call's feature maps are shown where nobody asked for particular ones."""
    return call.kind == "convolution" or call.stage_end


class Crew:
    """The collectors of one audit. One that fails is taken out with its message; the others go on."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self.active = list(collectors)
        self.names = [collector.name for collector in collectors]
        self.states: dict[str, dict[str, str]] = {}

    def each(self, act: Callable[[Collector], Any]) -> None:
        """Let every collector act."""
        for collector in list(self.active):
            self.attempt(collector, act)

    def attempt(self, collector: Collector, act: Callable[[Collector], Any]) -> Any:
        """Let one collector act; if it fails it is out, with its message."""
        if collector not in self.active:
            return None
        try:
            return act(collector)
        except Exception as error:  # the one place where any fault of a collector is kept from the others
            self.states[collector.name] = {"status": "failed", "message": f"{type(error).__name__}: {error}"}
            self.active.remove(collector)
            return None

    def records(self) -> list[Record]:
        """What the collectors leave, in their order."""
        records: list[Record] = []

        def finish(collector: Collector) -> None:
            record = collector.record()
            records.append(record)
            self.states[collector.name] = {"status": "skipped" if record.skipped else "ok", "message": record.skipped}

        self.each(finish)
        return records

    @property
    def maps(self) -> Maps | None:
        """The collector of maps, while it works."""
        return next((collector for collector in self.active if isinstance(collector, Maps)), None)


@dataclass(frozen=True, slots=True)
class _Runner:
    """Runs the model on some of the probe images, which come to its device and type chunk by chunk."""

    model: nn.Module
    images: Tensor
    like: Tensor
    forward: Forward | None

    def chunk(self, start: int, stop: int) -> Tensor:
        return self.images[start:stop].to(device=self.like.device, dtype=self.like.dtype)

    def __call__(self, start: int, stop: int) -> Any:
        return run(self.model, self.chunk(start, stop), self.forward)


def _chosen_batch_size(traced: Trace, device: torch.device) -> int:
    """How many images a quarter of the free memory holds with their graph."""
    most = LARGEST_BATCH.get(device.type, 64)
    fitting = available_bytes(device) // 4 // max(1, GRAPH_SHARE * traced.activation_bytes)
    return int(max(1, min(most, fitting)))


def _passes_of(setting: Setting) -> float:
    """What the methods cost for one displayed image, in forwards."""
    methods = set(setting.methods)
    passes = {"smooth-grad": 75.0, "integrated-gradients": 384.0, "guided-grad-cam": 6.0, "full-grad": 4.0}
    cost = sum(passes.get(method, 3.0) for method in methods & set(ATTRIBUTION_METHODS))
    if setting.maps and methods & set(ONE_PASS_METHODS):
        cost += BACKWARD_COST
    if "score-cam" in methods:
        last = [call.key for call in setting.trace.calls if call.last]
        where = last if setting.layers is None else setting.maps
        cost += sum(call.channels for call in setting.trace.calls if call.key in where)
    return cost


def _announce(setting: Setting, batch_size: int, device: torch.device) -> None:
    """Say beforehand what long work will take, as measured on the first image."""
    trace, count, displayed = setting.trace, setting.count, setting.displayed
    passes = count + REPEATED_IMAGES + displayed * _passes_of(setting)
    seconds = passes * UNOBSERVED * trace.seconds
    graph = GRAPH_SHARE * trace.activation_bytes * min(displayed, batch_size)
    memory = max(graph, trace.activation_bytes * batch_size)
    matrices = 4 * len(trace.calls) * count * (count + 1) / 2
    if seconds > LONG:
        duration = f"{seconds / 60:.0f} minutes" if seconds > 100 else f"{seconds:.0f} s"
        logger.info(
            "%d images in chunks of %d, maps of %d: about %s, up to %s of memory beside the model",
            count, batch_size, displayed, duration, size_in_words(memory),
        )  # fmt: skip
    if memory > (free := available_bytes(device)):
        logger.warning(
            "a chunk may take up to %s of memory, %s are free; take a smaller batch size or display fewer images",
            size_in_words(memory), size_in_words(free),
        )  # fmt: skip
    if matrices > LARGE_BUNDLE:
        logger.warning(
            "the Gram matrices of %d images at %d calls take %s in the bundle; take fewer probe images",
            count, len(trace.calls), size_in_words(matrices),
        )  # fmt: skip


def _forward(
    runner: _Runner,
    setting: Setting,
    crew: Crew,
    targets: Callable[[int, int], Any],
    batch_size: int,
    report: Progress,
) -> list[tuple[int, int, Target, Targets]]:
    """Every image once; the displayed ones with a graph, so that their maps come from the same forward.

    Returns:
        Of each chunk of displayed images its bounds, its target, and what resolves to that again.
    """
    explained: list[tuple[int, int, Target, Targets]] = []
    count, displayed = setting.count, setting.displayed
    full = runner.like.dtype not in (torch.float16, torch.bfloat16)
    bounds = sorted({*range(0, displayed, batch_size), displayed, *range(displayed, count, batch_size), count})
    for start, stop in pairwise(bounds):
        maps = crew.maps if stop <= displayed and full else None
        if maps is not None and not maps.wanted:
            maps = None
        with (
            torch.set_grad_enabled(maps is not None),
            hooks.visiting(runner.model, setting.trace.calls, _visit(crew, start, stop - start, maps)),
        ):
            output = runner(start, stop)
        with torch.no_grad():
            crew.each(lambda collector, output=output, start=start: collector.predict(output, start))  # type: ignore[misc]
        if stop <= displayed and crew.maps is not None and not crew.maps.skipped:
            chosen = targets(start, stop)
            try:
                target = resolve(output, chosen)
                scores = target.scores(output)
            except LayerError as error:
                if not isinstance(chosen, str):
                    raise
                crew.maps.skipped = str(error)  # nothing was asked for, and there is no class to predict
                continue
            crew.attempt(crew.maps, lambda maps, target=target, scores=scores: maps.answer(target, scores))  # type: ignore[misc]
            known = target.indices.min() >= 0
            explained.append((start, stop, target, target.indices.numpy() if known else chosen))
        report("forward and backward", stop, count)
    return explained


def _explain(
    runner: _Runner, crew: Crew, explained: Sequence[tuple[int, int, Target, Targets]], report: Progress
) -> None:
    """What needs passes of its own: over the displayed images chunk by chunk, then over all."""
    model, _ = hooks.in_float32(runner.model, runner.chunk(0, 1))
    with ExitStack() as stack:
        if model is not runner.model:
            stack.enter_context(hooks.undisturbed(model))
        for start, stop, target, targets in explained:
            chunk = Chunk(model, runner.chunk(start, stop).float(), start, target, targets, report)
            crew.each(lambda collector, chunk=chunk: collector.explain(chunk))  # type: ignore[misc]
        crew.each(lambda collector: collector.survey(model, runner.images.float(), report))


def _is_by_image(call: Call, output: Tensor, count: int) -> bool:
    """Whether an output has a row for every image: patches or time steps may be folded into its first axis."""
    return (
        output.layout == torch.strided
        and output.numel() > 0
        and call.output_shape[:1] == (1,)
        and output.shape[0] == count
    )


def _visit(crew: Crew, first: int, count: int, maps: Maps | None) -> hooks.Visit:
    last: list[tuple[Tensor, int]] = []

    def visit(call: Call, module: nn.Module, source: Tensor | None, output: Tensor) -> Tensor | None:
        if not _is_by_image(call, output, count):
            return None
        new: Tensor | None = None
        if maps is not None:
            new = crew.attempt(maps, lambda _: maps.attach(call, output))
        with torch.no_grad():
            detached = output.detach()
            same = bool(last) and _is_same(detached, *last[0])
            entering = None if source is None else source.detach()
            seen = Observation(call, module, entering, detached, first, same)
            crew.each(lambda collector: collector.observe(seen))
            last[:] = [(detached, version_of(detached))]
        return new

    return visit


def _is_same(output: Tensor, before: Tensor, version: int) -> bool:
    return output.data_ptr() == before.data_ptr() and output.shape == before.shape and version_of(output) == version


def _repeat(runner: _Runner, setting: Setting, crew: Crew, report: Progress) -> None:
    """A few images again, one by one, with other kernels and threads: what then differs is this machine's noise."""
    if setting.count < REPEATED_IMAGES:
        return
    for index in range(REPEATED_IMAGES):

        def visit(call: Call, module: nn.Module, source: Tensor | None, output: Tensor, index: int = index) -> None:
            if _is_by_image(call, output, 1):
                seen = Observation(call, module, None, output.detach(), index, False)
                crew.each(lambda collector: collector.repeat(seen))

        with (
            torch.no_grad(),
            without_onednn(),
            _other_threads(),
            hooks.visiting(runner.model, setting.trace.calls, visit),
        ):
            runner(index, index + 1)
        report("noise floor", index + 1, REPEATED_IMAGES)


@contextmanager
def _other_threads() -> Iterator[None]:
    """One thread where there are several, two where there is one: sums are then taken in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _targets(targets: Any, probe: ProbeImages) -> Callable[[int, int], Any]:
    """The targets of the images [start, stop), resolved where they name labels or another audit."""
    if isinstance(targets, Evidence):
        chosen: Any = targets_of(targets, probe)
    elif isinstance(targets, str) and targets == "label":
        chosen = _labels(probe)
    elif are_several(targets):
        parts = [_targets(target, probe) for target in targets]
        return lambda start, stop: [part(start, stop) for part in parts]
    else:
        chosen = targets
    if chosen is None or isinstance(chosen, str | int | np.integer) or callable(chosen):
        return lambda start, stop: chosen
    array = np.asarray(chosen)
    if array.ndim == 0:
        return lambda start, stop: int(array)
    if array.ndim not in (1, 2) or len(array) not in (len(probe.pictures), len(probe.images)):
        raise LayerError(
            f"targets of shape {array.shape} do not fit {len(probe.images)} images; "
            "give one class per image, or an (N, R) array"
        )
    return lambda start, stop: array[start:stop]


def _labels(probe: ProbeImages) -> Array:
    shown = len(probe.pictures)
    if probe.labels is None or any(label is None for label in probe.labels[:shown]):
        raise LayerError("target 'label' needs a label for every displayed image; give labels, or use 'predicted'")
    return np.array([-1 if label is None else label for label in probe.labels])


def targets_of(evidence: Evidence, probe: ProbeImages) -> Array:
    """The targets that another audit explained, of each displayed image: (D, R) int64.

    Raises:
        LayerError: it holds none, or not of these images.
    """
    if not evidence.has("maps", "targets"):
        raise LayerError(f"{evidence.folder} holds no maps, so no targets to take; use 'predicted'")
    inputs = evidence.manifest.inputs
    rows = evidence.array("maps", "targets")
    known = dict(zip(inputs["source_sha256"][: len(rows)], rows, strict=True))
    missing = [
        name
        for name, digest in zip(probe.names, probe.source_sha256[: len(probe.pictures)], strict=False)
        if digest not in known
    ]
    if missing:
        raise LayerError(
            f"image {missing[0]!r} was not displayed in the audit {evidence.folder}, so it has no target there; "
            "audit the same images"
        )
    chosen = [known[digest] for digest in probe.source_sha256[: len(probe.pictures)]]
    return np.array(chosen, np.int64).reshape(-1, rows.shape[1])


def _write(writer: EvidenceWriter, records: Sequence[Record], probe: ProbeImages) -> None:
    merged: dict[str, dict[str, Array]] = {}
    for record in records:
        for kind, content in record.arrays.items():
            merged.setdefault(kind, {}).update(content)
        for path, data in record.json.items():
            writer.json(path, data)
        for path, text in record.text.items():
            writer.text(path, text)
    if "predictions" in merged:
        labels = probe.labels or [None] * len(probe.images)
        merged["predictions"]["labels"] = np.array([-1 if label is None else label for label in labels], np.int64)
    if len(probe.pictures):
        merged["inputs"] = {"images": np.asarray(probe.pictures, np.uint8)}
    for kind, content in merged.items():
        writer.arrays(kind, content)


def _manifest(
    setting: Setting,
    probe: ProbeImages,
    checkpoint: Checkpoint | None,
    step: int | None,
    crew: Crew,
    reference: Tensor,
    seed: int,
    targets: Any,
    batch_size: int,
    class_names: Sequence[str] | None,
    layers: Sequence[str] | str | None,
    forward: Forward | None,
    records: Sequence[Record],
) -> Manifest:
    trace = setting.trace
    dtypes: dict[str, int] = {}
    for tensor in setting.state.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    failed = any(state["status"] == "failed" for state in crew.states.values())
    return Manifest(
        schema_version=SCHEMA_VERSION,
        tool={"name": "mlflow-interpret", "version": interpret.__version__},
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
        device=str(reference.device),
        seed=seed,
        status="partial" if failed else "complete",
        checkpoint={
            "uri": None if checkpoint is None else checkpoint.uri,
            "file_sha256": None if checkpoint is None else checkpoint.file_sha256,
            "state_sha256": state_sha256(setting.state),
            "format": "module" if checkpoint is None else checkpoint.format,
            "branch": None if checkpoint is None else checkpoint.branch,
            "stripped_prefixes": [] if checkpoint is None else list(checkpoint.stripped_prefixes),
            "dtypes": dict(sorted(dtypes.items())),
            "unexpected": [] if checkpoint is None else list(checkpoint.unexpected),
            "missing": [] if checkpoint is None else list(checkpoint.missing),
            "others": {} if checkpoint is None else dict(checkpoint.others),
            "step": checkpoint.step if step is None and checkpoint is not None else step,
        },
        model={
            "name": type(setting.model).__name__,
            "architecture_digest": trace.architecture_digest,
            "parameters": sum(parameter.numel() for parameter in setting.model.parameters()),
            "multiply_adds": trace.multiply_adds,
            "class_names": None if class_names is None else list(class_names),
        },
        inputs={
            "count": setting.count,
            "displayed": setting.displayed,
            "names": list(probe.names),
            "source_sha256": list(probe.source_sha256),
            "tensor_sha256": list(probe.tensor_sha256),
            "probe_sha256": probe.probe_sha256,
            "shape": list(probe.images.shape[1:]),
            "preprocessing": dict(probe.preprocessing),
            "labels": None if probe.labels is None else list(probe.labels),
            "skipped": [{"name": name, "reason": reason} for name, reason in probe.skipped],
        },
        calls=trace.calls,
        unused=trace.unused,
        collectors={name: crew.states[name] for name in crew.names},
        settings={
            "methods": list(setting.methods),
            "layers": [layers] if isinstance(layers, str) else layers and list(layers),
            "targets": in_words(targets),
            "refused": {method: reason for record in records for method, reason in record.refused.items()},
            "notes": {method: note for record in records for method, note in record.notes.items()},
            "trust": setting.trust,
            "features": {pattern: list(channels) for pattern, channels in setting.features},
            "kernels": [call.key for call in trace.calls if call.key in setting.kernels],
            "display_count": setting.displayed,
            "batch_size": batch_size,
            "forward": None if forward is None else getattr(forward, "__qualname__", type(forward).__name__),
            "pictures": [call.key for call in trace.calls if call.key in setting.pictures],
            "maps": [call.key for call in trace.calls if call.key in setting.maps],
        },
        files={},
    )


def collectors_failed(evidence: Evidence) -> Mapping[str, str]:
    """Messages of the collectors that failed, by name."""
    return {
        name: state["message"] for name, state in evidence.manifest.collectors.items() if state["status"] == "failed"
    }
