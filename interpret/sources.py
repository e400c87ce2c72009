"""From the addresses that people type to evidence: checkpoints, images and runs, wherever they lie.

torch and mlflow are imported by the functions that need them: reading runs never loads torch, and an audit of local
files never loads mlflow.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interpret.caching import Cache, open_cache
from interpret.errors import CheckpointError, ImageError, LayerError, did_you_mean
from interpret.evidence import ARRAY_FILES, Evidence, read_evidence, unique_labels
from interpret.publishing import Progress, checkpoint_name

if TYPE_CHECKING:
    from torch import nn

    from interpret.architectures import PublishedWeights
    from interpret.checkpoint import Checkpoint
    from interpret.images import ProbeImages
    from interpret.preprocessing import Preprocessing
    from interpret.probes import ProbeSet
    from interpret.tracing import Forward, Trace
    from interpret.tracking import LoggedAudit

PROBE_COUNT, DISPLAY_COUNT = 64, 4  # images that an audit runs on, and those of them with pictures and maps
DOWNLOADS = 6  # at a time


def audit_checkpoint(
    checkpoint: str,
    images: str | Path | None = None,
    out: str | Path | None = None,
    *,
    probe: str | Path | None = None,
    model: str | None = None,
    model_arguments: Mapping[str, object] | None = None,
    branch: str | None = None,
    trust_pickle: bool = False,
    preprocess: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    labels: str | Path | None = None,
    labels_from_folders: bool = False,
    class_names: str | Path | None = None,
    skip_broken: bool = False,
    targets: str | Evidence | None = None,
    layers: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    probe_count: int | None = None,
    display_count: int | None = None,
    batch_size: int | str = 16,
    forward: str | None = None,
    device: str | None = None,
    seed: int = 0,
    trust: bool = False,
    features: Mapping[str, Sequence[int]] | None = None,
    kernels: Sequence[str] = (),
    step: int | None = None,
    tracking_uri: str | None = None,
    command: Sequence[str] = (),
    progress: Progress | None = None,
    failed: Callable[[str, BaseException], None] = lambda uri, error: None,
) -> Evidence:
    """Audit a checkpoint that lies anywhere, on images that lie on this disk.

    What the user's own code prints goes to stderr: stdout is for results.

    Args:
        checkpoint: a file; `runs:/...`, `models:/...`, `mlflow-artifacts:/...`; or `torchvision:` weights, which imply
            the model, its preprocessing and its class names.
        images: a folder, a file or a glob.
        out: folder of the bundle, empty or absent; None for a temporary one.
        probe: folder of a probe set, instead of the images and of all that says how they are prepared and labelled.
        model: the architecture's spec; None where the weights imply it, or where a trusted pickle holds the model.
        model_arguments: of its builder; strings are read as Python literals where they are one.
        branch: which weights to take from a file that holds several.
        trust_pickle: unpickle a file that is a pickled module or holds more than weights, which runs its code.
        preprocess: spec of a callable, image to tensor, instead of the five options that follow.
        resize: shorter side in pixels; these five default to the weights' own values, else to ImageNet's.
        crop: side of the centre crop.
        mean: of values in [0, 1].
        std: of values in [0, 1].
        interpolation: "bilinear", "bicubic", ...
        labels: CSV file with the columns file,label.
        labels_from_folders: the folder of an image is its class.
        class_names: file with the names of the classes.
        skip_broken: leave out images that cannot be decoded, and say which.
        targets: "predicted", "label", a class index, a RUN whose targets are taken, or several of these by commas; or
            the evidence of another audit. None for the probe set's, else "predicted".
        layers: globs of the calls with pictures and maps.
        methods: maps and attributions; "default" and "all" stand for many; None for the default ones.
        probe_count: at most so many images, evenly spaced; 64 by default.
        display_count: images with pictures and maps; all that the probe set has pictures of, else 4.
        batch_size: images per forward, or "auto".
        forward: spec of a function ``(model, images) -> output``, where that is not ``model(images)``.
        device: where to run.
        seed: of everything random.
        trust: put the maps at stage ends to the test.
        features: which channels' features to show, by pattern of calls.
        kernels: convolutions whose kernels are kept whole, for matching.
        step: of the training; None for what the checkpoint, its logged model or its name says.
        tracking_uri: where `runs:/` and `models:/` addresses are looked up.
        command: the command line that asked for the audit, for the journal.
        progress: called with (stage, done, total).
        failed: called with the checkpoint's address and the error where the audit itself fails, after the checkpoint
            and the images were read.

    Raises:
        InterpretError: anything that was given does not exist or does not fit; the message says what.
    """
    from interpret import auditing
    from interpret.labels import read_class_names
    from interpret.probes import read_probe

    notify = progress or (lambda stage, done, total: None)
    with tempfile.TemporaryDirectory(prefix="interpret-") as folder, redirect_stdout(sys.stderr):
        notify("checkpoint", 0, 1)
        network, loaded, weights = _load(
            checkpoint, model, model_arguments, branch, trust_pickle, Path(folder), tracking_uri
        )
        notify("checkpoint", 1, 1)
        run_by = _forward(forward)
        implied = weights is not None and model in (None, weights.spec)  # another model may have other classes
        names = weights.class_names if weights is not None and implied else None
        if probe is not None:
            notify("images", 0, 1)
            frozen = read_probe(probe, display_count=display_count)
            notify("images", 1, 1)
            prepared, names = frozen.images, frozen.class_names or names
            chosen = frozen.targets
        elif images is None:
            raise ImageError("no images were given; name images or a probe set")
        else:
            if class_names is not None:
                names = read_class_names(class_names)
            prepared = _load_images(
                images,
                weights,
                names,
                notify,
                preprocess=preprocess,
                resize=resize,
                crop=crop,
                mean=mean,
                std=std,
                interpolation=interpolation,
                labels=labels,
                labels_from_folders=labels_from_folders,
                skip_broken=skip_broken,
                probe_count=probe_count,
                display_count=display_count,
            )
            chosen = "predicted"
        if targets is not None:
            chosen = _targets(targets, len(prepared), Path(folder), tracking_uri)
        try:
            return auditing.audit(
                network,
                prepared,
                out,
                methods=_methods(methods),
                layers=list(layers) or None,
                targets=chosen,
                class_names=names,
                checkpoint=loaded,
                batch_size=batch_size,
                forward=run_by,
                device=device,
                seed=seed,
                trust=trust,
                features=features,
                kernels=kernels,
                step=step,
                command=command,
                progress=progress,
            )
        except BaseException as error:
            failed(loaded.uri, error)
            raise


def audit_several(
    checkpoints: Sequence[str],
    folder: Path,
    *,
    targets: str | None = None,
    progress: Callable[[str], Progress],
    finished: Callable[[str, Evidence], None] = lambda name, evidence: None,
    **options: Any,
) -> dict[str, Evidence]:
    """Audit checkpoints on the same images into `folder/NAME`; the others explain the targets of the first.

    Bundles that an earlier call left there are replaced.

    Args:
        checkpoints: as :func:`audit_checkpoint` takes them.
        folder: where the bundles go.
        targets: of the first checkpoint.
        progress: from the name of an audit to its progress.
        finished: called with name and evidence after each audit.
        **options: the others of :func:`audit_checkpoint`.

    Returns:
        Name to evidence, in the order given.
    """
    audited: dict[str, Evidence] = {}
    names = unique_labels([checkpoint_name(checkpoint) for checkpoint in checkpoints])
    for name, checkpoint in zip(names, checkpoints, strict=True):
        out = folder / re.sub(r"[^\w.@ ()-]", "_", name)
        _remove_bundle(out)
        first = next(iter(audited.values()), None)
        chosen = first if first is not None and first.has("maps", "targets") else targets
        audited[name] = audit_checkpoint(checkpoint, out=out, targets=chosen, progress=progress(name), **options)
        finished(name, audited[name])
    return audited


def list_checkpoints(checkpoints: Sequence[str], *, tracking_uri: str | None = None) -> list[str]:
    """The checkpoints that are meant: `runs:/ID/*` and other patterns stand for a run's checkpoints, in order.

    Raises:
        TrackingError: a pattern matches nothing, or several series.
    """
    found: list[str] = []
    for checkpoint in checkpoints:
        if checkpoint.startswith("runs:/") and "*" in checkpoint:
            from interpret import tracking

            found += tracking.list_checkpoints(checkpoint, tracking_uri=tracking_uri)
        else:
            found.append(checkpoint)
    return found


def freeze_probe(
    images: str | Path,
    folder: str | Path,
    *,
    weights: str | None = None,
    class_names: str | Path | None = None,
    targets: str | None = None,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> ProbeSet:
    """The probe set of images as an audit would prepare them, written into a folder.

    Args:
        images: a folder, a file or a glob.
        folder: of the probe set, empty or absent.
        weights: published weights, as `torchvision:ResNet50_Weights.IMAGENET1K_V2`, whose preprocessing and class names
            are taken; the weights themselves are not needed.
        class_names: file with the names of the classes.
        targets: as :func:`audit_checkpoint` takes them, "predicted" by default. A RUN's are looked up now, image by
            image.
        tracking_uri: where a RUN is looked up.
        progress: called with (stage, done, total).
        **options: how images are chosen, prepared and labelled, as :func:`audit_checkpoint` takes it: `preprocess`,
            `resize`, `crop`, `mean`, `std`, `interpolation`, `labels`, `labels_from_folders`, `skip_broken`,
            `probe_count`, `display_count`.

    Raises:
        InterpretError: anything that was given does not exist or does not fit; the message says what.
    """
    from interpret.architectures import weights_of
    from interpret.labels import read_class_names
    from interpret.probes import write_probe

    notify = progress or (lambda stage, done, total: None)
    if weights is not None and not weights.startswith("torchvision:"):
        raise CheckpointError(
            f"{weights!r} are no published weights; name them as torchvision:ResNet50_Weights.IMAGENET1K_V2"
        )
    with tempfile.TemporaryDirectory(prefix="interpret-") as downloads, redirect_stdout(sys.stderr):
        published = None if weights is None else weights_of(weights)
        names = None if published is None else published.class_names
        if class_names is not None:
            names = read_class_names(class_names)
        prepared = _load_images(images, published, names, notify, **options)
        chosen = _targets(targets or "predicted", len(prepared), Path(downloads), tracking_uri)
        notify("probe set", 0, 1)
        frozen = write_probe(prepared, folder, targets=chosen, class_names=names)
        notify("probe set", 1, 1)
        return frozen


def _remove_bundle(folder: Path) -> None:
    """Remove a bundle, also of an audit that was killed. A folder with anything else in it stays, and is refused."""
    written = {f"{kind}.npz" for kind in ARRAY_FILES} | {"manifest.json", "journal.json", "summary.txt", "weights.json"}
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= written | {"previews", "report"}:
        shutil.rmtree(folder)


def trace_checkpoint(
    checkpoint: str,
    model: str | None,
    model_arguments: Mapping[str, object] | None = None,
    branch: str | None = None,
    input_shape: Sequence[int] = (3, 224, 224),
    *,
    forward: str | None = None,
    trust_pickle: bool = False,
    tracking_uri: str | None = None,
) -> Trace:
    """What one forward of a random image tells of a checkpoint's model: every call, torchinfo's table.

    Args:
        checkpoint: as :func:`audit_checkpoint` takes it, like the three that follow.
        model: the architecture's spec.
        model_arguments: of its builder.
        branch: which weights to take from a file that holds several.
        input_shape: (C, H, W) of the image.
        forward: spec of a function ``(model, images) -> output``, where that is not ``model(images)``.
        trust_pickle: as :func:`audit_checkpoint` takes it.
        tracking_uri: where `runs:/` and `models:/` addresses are looked up.

    Raises:
        InterpretError: the checkpoint cannot be found or loaded, or the model does not take such an image.
    """
    import torch

    from interpret import hooks, tracing

    with tempfile.TemporaryDirectory(prefix="interpret-") as folder, redirect_stdout(sys.stderr):
        network, _, _ = _load(checkpoint, model, model_arguments, branch, trust_pickle, Path(folder), tracking_uri)
        image = torch.rand((1, *input_shape), generator=torch.Generator().manual_seed(0))
        network = tracing.unwrap(network)
        with hooks.undisturbed(network):
            return tracing.trace(network, image, _forward(forward))


def fetch_runs(
    runs: Sequence[str],
    folder: Path,
    *,
    experiments: Sequence[str] = (),
    tracking_uri: str | None = None,
) -> tuple[list[Evidence], list[dict[str, Any]]]:
    """The evidence of runs, and what MLflow says of each (`run_id`, `run_name`, `step`; nothing for a folder).

    Of an audit that lies elsewhere a file is downloaded when it is first read, if the user's cache does not hold it.

    Args:
        runs: MLflow runs, or folders that hold bundles.
        folder: for downloads; must outlive the evidence.
        experiments: names of the experiments in which names of runs are looked up; all by default.
        tracking_uri: None takes MLflow's own default.

    Raises:
        TrackingError: MLflow does not hold a run, or it holds no finished audit.
        EvidenceError: a folder holds no evidence.
    """
    logged = [run for run in runs if not Path(run).is_dir()]
    found: Iterator[LoggedAudit] = iter(())
    if logged:
        from interpret import tracking

        found = iter(tracking.find_audits(logged, experiments=experiments, tracking_uri=tracking_uri))
    return _open([Path(run) if Path(run).is_dir() else next(found) for run in runs], folder)


def search_runs(
    matching: str | None,
    folder: Path,
    *,
    reference: str | None = None,
    experiments: Sequence[str] = (),
    tracking_uri: str | None = None,
) -> tuple[list[Evidence], list[dict[str, Any]]]:
    """The evidence of the audits that a search finds, by step and start, as :func:`fetch_runs` gives it.

    Args:
        matching: a filter as MLflow's runs page takes it; None takes all audits of the experiments.
        folder: for downloads; must outlive the evidence.
        reference: a run, or a folder that holds a bundle, that comes first, whether it matches or not.
        experiments: names of the experiments to search; all by default.
        tracking_uri: None takes MLflow's own default.

    Raises:
        TrackingError: nothing matches, or MLflow does not understand the filter or does not hold the reference.
        EvidenceError: the folder holds no evidence.
    """
    from interpret import tracking

    found: list[LoggedAudit | Path] = []
    if reference is not None and Path(reference).is_dir():
        found.append(Path(reference))
    elif reference is not None:
        found += tracking.find_audits([reference], experiments=experiments, tracking_uri=tracking_uri)
    searched = tracking.search_audits(matching, experiments=experiments, tracking_uri=tracking_uri)
    return _open([*found, *(audit for audit in searched if audit not in found)], folder)


def _open(audits: Sequence[LoggedAudit | Path], folder: Path) -> tuple[list[Evidence], list[dict[str, Any]]]:
    """Evidence and origins; several manifests are downloaded at a time."""
    remote = any(not isinstance(audit, Path) and audit.folder is None for audit in audits)
    cache = open_cache(folder) if remote else Cache(folder)

    def opened(number: int, audit: LoggedAudit | Path) -> Evidence:
        if isinstance(audit, Path):
            return read_evidence(audit)
        if audit.folder is not None:
            return read_evidence(audit.folder)
        return _open_remote(audit, cache, folder / f"{number:03d}")

    with ThreadPoolExecutor(DOWNLOADS) as pool:
        evidence = list(pool.map(opened, range(len(audits)), audits))
    return evidence, [{} if isinstance(audit, Path) else audit.origin for audit in audits]


def _open_remote(audit: LoggedAudit, cache: Cache, folder: Path) -> Evidence:
    """The evidence of an audit that lies elsewhere; only its manifest is downloaded now."""

    def fetch(path: str, sha256: str | None) -> bytes:
        return cache.read(
            f"{path} of run {audit.run_id}", sha256 or audit.digests.get(path), partial(audit.download, path)
        )

    folder.mkdir()
    (folder / "manifest.json").write_bytes(fetch("manifest.json", None))
    return read_evidence(folder, fetch)


def _load(
    uri: str,
    model: str | None,
    arguments: Mapping[str, object] | None,
    branch: str | None,
    trust_pickle: bool,
    folder: Path,
    tracking_uri: str | None,
) -> tuple[nn.Module, Checkpoint, PublishedWeights | None]:
    """The model with the checkpoint's weights in it, and what published weights imply."""
    from interpret.architectures import build_model, weights_of
    from interpret.checkpoint import read_checkpoint
    from interpret.loading import load_state

    weights = None
    if uri.startswith("torchvision:"):
        weights = weights_of(uri)
        checkpoint = weights.read()
        if model is None:
            model, arguments = weights.spec, {**weights.arguments, **(arguments or {})}
    elif model is None and not trust_pickle:
        raise CheckpointError(f"{uri!r} holds weights, not an architecture; name it, as --model torchvision:resnet50")
    elif uri.startswith(("runs:/", "models:/", "mlflow-artifacts:/")):
        from interpret import tracking

        fetched = tracking.fetch_checkpoint(uri, folder / "checkpoint", tracking_uri=tracking_uri)
        checkpoint = read_checkpoint(fetched.path, uri=fetched.uri, branch=branch, trust_pickle=trust_pickle)
        if checkpoint.step is None:
            checkpoint = dataclasses.replace(checkpoint, step=fetched.step)
    else:
        checkpoint = read_checkpoint(uri, branch=branch, trust_pickle=trust_pickle)
    if model is not None:
        network = build_model(model, arguments)
    elif checkpoint.module is not None:
        network = checkpoint.module
    else:
        raise CheckpointError(f"{uri!r} holds weights, not a module; name it, as --model torchvision:resnet50")
    return network, load_state(network, checkpoint), weights


def _methods(names: Sequence[str] | None) -> tuple[str, ...]:
    """The methods with "default" and "all" spelled out."""
    from interpret.auditing import METHODS
    from interpret.maps import DEFAULT_METHODS

    many = {"default": DEFAULT_METHODS, "all": METHODS}
    return tuple(
        method for name in names or (("default",) if names is None else ()) for method in many.get(name, (name,))
    )


def _forward(spec: str | None) -> Forward | None:
    """The user's own function that runs the model."""
    from interpret.specs import imported

    if spec is None:
        return None
    with imported(spec, CheckpointError) as target:
        if not callable(target):
            raise CheckpointError(f"{spec!r} is a {type(target).__name__}; name a function (model, images) -> output")
        run_by: Forward = target
        return run_by


def _preprocessing(spec: str | None, framing: Mapping[str, Any], weights: PublishedWeights | None) -> Preprocessing:
    """The preprocessing that was asked for; what was not said is the weights' own, else ImageNet's."""
    from interpret.preprocessing import Preprocessing

    given = {name: value for name, value in framing.items() if value is not None}
    if spec is not None:
        if given:
            raise ImageError(f"--preprocess {spec} does all of it; leave out --{', --'.join(given)}")
        return Preprocessing.from_callable(spec)
    known = Preprocessing() if weights is None else Preprocessing.from_weights(weights.transform, weights.uri)
    if not given:
        return known
    if known.transform is not None:
        known = Preprocessing()
    given = {name: tuple(value) if name in ("mean", "std") else value for name, value in given.items()}
    return dataclasses.replace(known, source="options", name=None, **given)


def _load_images(
    images: str | Path,
    weights: PublishedWeights | None,
    class_names: Sequence[str] | None,
    notify: Progress,
    *,
    preprocess: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    labels: str | Path | None = None,
    labels_from_folders: bool = False,
    skip_broken: bool = False,
    probe_count: int | None = None,
    display_count: int | None = None,
) -> ProbeImages:
    """The images that were asked for, prepared and labelled."""
    from interpret.images import find_images, load_images

    framing = {"resize": resize, "crop": crop, "mean": mean, "std": std, "interpolation": interpolation}
    preprocessing = _preprocessing(preprocess, framing, weights)
    paths = find_images(images)
    root = Path(images) if Path(images).is_dir() else None
    return load_images(
        paths,
        preprocessing,
        labels=_labels(paths, root, labels, labels_from_folders, class_names),
        limit=PROBE_COUNT if probe_count is None else probe_count,
        display_count=DISPLAY_COUNT if display_count is None else display_count,
        root=root,
        skip_broken=skip_broken,
        progress=lambda done, total: notify("images", done, total),
    )


def _labels(
    paths: Sequence[Path],
    root: Path | None,
    file: str | Path | None,
    from_folders: bool,
    class_names: Sequence[str] | None,
) -> tuple[int | None, ...] | None:
    from interpret.images import image_names
    from interpret.labels import labels_from_folders, read_labels

    if not from_folders:
        return None if file is None else read_labels(file, image_names(paths, root), class_names)
    if file is not None:
        raise ImageError(f"labels come from {str(file)!r} or from the folders, not from both; leave one out")
    if root is None:
        raise ImageError("labels from folders need a folder as --images, and below it a folder for each class")
    return labels_from_folders(paths, root, class_names)


def _targets(targets: str | Evidence, count: int, folder: Path, tracking_uri: str | None) -> Any:
    """Targets as `audit` takes them; several class indices alone become one row per image, (N, R)."""
    if isinstance(targets, Evidence):
        return targets
    words = [word.strip() for word in targets.split(",")]
    chosen = [_target(word, folder / f"targets-{number}", tracking_uri) for number, word in enumerate(words)]
    if len(chosen) == 1:
        return chosen[0]
    indices = [target for target in chosen if isinstance(target, int)]
    return np.tile(np.array(indices), (count, 1)) if len(indices) == len(chosen) else chosen


def _target(word: str, folder: Path, tracking_uri: str | None) -> str | int | Evidence:
    if word in ("predicted", "label"):
        return word
    if re.fullmatch(r"-?\d+", word):
        if len(word) > 9:
            raise LayerError(f"target class {word} is out of range: no model has so many classes")
        return int(word)
    if not Path(word).is_dir() and (hint := did_you_mean(word, ("predicted", "label"))):
        raise LayerError(f"target {word!r} is neither predicted, label, a class index nor a run{hint}")
    return fetch_runs([word], folder, tracking_uri=tracking_uri)[0][0]
