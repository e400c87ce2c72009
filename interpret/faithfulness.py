"""Whether a map can be trusted: it shows what the answer depends on, and it depends on the network's weights.

The first is measured by altering images (:func:`faithfulness`), beside maps that know nothing of the network
(:func:`control_maps`); the second by losing the weights (:func:`cascading_randomization`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, gaussian_filter1d
from torch import Tensor, nn

from interpret.errors import LayerError
from interpret.evidence import Call
from interpret.functional.agreement import centred_gaussian
from interpret.functional.faithfulness import auc, confidence_drop, pixel_counts, spearman
from interpret.hooks import in_float32, undisturbed, visiting
from interpret.maps import Maps, class_activation_maps
from interpret.targets import Targets, answer_of, resolve
from interpret.tracing import Forward, canonical_name, modules_of, run, select, trace, unwrap

Array = NDArray[Any]
Progress = Callable[[int, int], None]

STEPS = 20
BATCH_SIZE = 4  # on a CPU 16 images of 224 pixels take twice the time: outputs beyond 32 MiB are mapped anew every time
BLUR = 5 / 224  # RISE blurs 224 pixels by a kernel of 11 = 2 * 5 + 1 with sigma 5
MOST_STAGES = 6  # of a cascade by default: each costs the maps of all methods once more


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What becomes of the target's probability on D altered images, for M heatmaps each; S steps.

    Attributes:
        fraction: share of the pixels altered so far, shape (S + 1,), from 0 to 1.
        deletion: probability while pixels are removed, the hottest first, shape (M, D, S + 1).
        insertion: probability while pixels are restored in a blurred image, the hottest first, same shape.
        deletion_auc: area under deletion, shape (M, D): the lower, the more faithful.
        insertion_auc: area under insertion, shape (M, D): the higher, the more faithful.
        drop: max(0, f - f') / f, f' on the image times the heatmap, shape (M, D), in [0, 1]: the lower, the better.
        increase: f' > f, bool, shape (M, D).
        probability: f, on the images themselves, shape (D,).
    """

    fraction: Array
    deletion: Array
    insertion: Array
    deletion_auc: Array
    insertion_auc: Array
    drop: Array
    increase: Array
    probability: Array


def faithfulness(
    model: nn.Module,
    images: Tensor,
    targets: Targets,
    heatmaps: Tensor | Array,
    *,
    steps: int = STEPS,
    blur: float = BLUR,
    batch_size: int = BATCH_SIZE,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> Faithfulness:
    """Deletion and insertion curves, drop and increase in confidence of heatmaps.

    Pixels are ranked by a stable sort of -heatmap: of equal ones the first in reading order goes first. A pixel goes
    with all its channels. Deletion writes 0, the mean colour after normalization; insertion starts from :func:`blurred`
    images. A probability is the softmax of the logits, or for a single logit its sigmoid (target 1) or that of its
    negative (target 0).

    Deletion makes pictures the network never saw the like of, so part of every fall is due to that and not to what was
    removed; hence the controls. Drop and increase favour bright heatmaps whatever they show: one of ones everywhere has
    drop 0. Read them beside the curves, which depend on the order of the pixels alone.

    Args:
        model: a classifier; nothing of it is changed. Half-precision weights are copied to float32 first.
        images: preprocessed, shape (D, C, H, W).
        targets: class of each image, shape (D,), an int for all, or None for the predicted ones.
        heatmaps: in [0, 1] at the images' size, shape (M, D, H, W).
        steps: S; the curves have S + 1 points, at floor(i H W / S) pixels.
        blur: radius and sigma of the blur, as a share of the images' shorter side.
        batch_size: most images in one forward.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.
        progress: called with the number of images done, and of all.

    Returns:
        Curves and scores. Curves are NaN where a heatmap ranks nothing (all its pixels are equal), everything is where
        it holds NaN.

    Raises:
        LayerError: shapes do not fit, heatmaps or a class are out of range, or the model's output is not (N, K) logits.
        InterpretError: the model fails on an altered image.

    Source: Petsiuk et al. 2018, arXiv:1806.07421 (curves), whose code alters a fixed number of pixels per step;
    Chattopadhay et al. 2018, arXiv:1710.11063 (drop, increase). torchcam 0.5 spaces its steps by ceil(H W / S) pixels
    (up to S + 1 points, the same where S divides H W), deletes and inserts on one and the same baseline, and divides
    the drop by f + 1e-7. pytorch-grad-cam's drop is not divided at all, and of logits unless told otherwise.
    """
    maps = torch.as_tensor(heatmaps, dtype=torch.float32)
    if maps.ndim != 4 or images.ndim != 4 or maps.shape[1:] != (len(images), *images.shape[2:]) or not len(images):
        raise LayerError(
            f"heatmaps of shape {tuple(maps.shape)} do not fit images of shape {tuple(images.shape)}; "
            "give (M, D, H, W) heatmaps for (D, C, H, W) images, scaled up to their size"
        )
    if len(outside := maps[(maps < 0) | (maps > 1)]):
        raise LayerError(f"heatmaps hold {float(outside[0]):g}; scale them to [0, 1], as `Maps.heatmap` does")
    if steps < 1 or batch_size < 1:
        raise LayerError(f"steps and batch_size are at least 1, not steps={steps}, batch_size={batch_size}")
    counts = pixel_counts(images.shape[2] * images.shape[3], steps)
    model, images = in_float32(unwrap(model), images)
    scores = []
    with undisturbed(model), torch.no_grad():
        logits = torch.cat([_logits(model, chunk, forward) for chunk in images.split(batch_size)])
        classes = _classes(logits, targets)
        before = _probabilities(logits, classes).numpy()
        for number, image in enumerate(images):
            altered = _altered(image, blurred(image, blur), maps[:, number].to(image.device), counts[1:-1].tolist())
            outputs = []
            while chunk := tuple(islice(altered, batch_size)):
                outputs.append(_logits(model, torch.stack(chunk), forward))
            scores.append(_probabilities(torch.cat(outputs), classes[number]).numpy())
            if progress is not None:
                progress(number + 1, len(images))
    return _assemble(np.stack(scores), before, maps, counts)


def _altered(image: Tensor, blurry: Tensor, heatmaps: Tensor, counts: Sequence[int]) -> Iterator[Tensor]:
    """One image's alterations in the order that :func:`_assemble` reads: both ends, then heatmap by heatmap.

    They are made as they are asked for, so that no more than a chunk of them exists.
    """
    nothing = torch.zeros_like(image)
    yield nothing
    yield blurry
    for heatmap in heatmaps:
        yield image * heatmap
        rank = torch.argsort(torch.argsort(-heatmap.flatten(), stable=True)).view_as(heatmap)
        for count in counts:
            yield torch.where(rank < count, nothing, image)
        for count in counts:
            yield torch.where(rank < count, image, blurry)


def _assemble(scores: Array, before: Array, heatmaps: Tensor, counts: Array) -> Faithfulness:
    """Curves from the probabilities of all alterations, shape (D, 2 + M (1 + 2 (S - 1)))."""
    images, heats, inner = len(scores), len(heatmaps), len(counts) - 2
    nothing, blurry = scores[:, :1], scores[:, 1:2]
    by_map = scores[:, 2:].reshape(images, heats, 1 + 2 * inner).transpose(1, 0, 2)

    def curve(first: Array, middle: Array, last: Array) -> Array:
        ends = [np.broadcast_to(end.reshape(images, 1), (heats, images, 1)) for end in (first, last)]
        return np.concatenate([ends[0], middle, ends[1]], axis=2)

    low, high = heatmaps.amin((2, 3)).numpy(force=True), heatmaps.amax((2, 3)).numpy(force=True)  # NaN where one is
    broken = ~np.isfinite(high - low)
    ranked = np.where((high > low) & ~broken, 1.0, np.nan)
    deletion = curve(before, by_map[:, :, 1 : 1 + inner], nothing) * ranked[:, :, None]
    insertion = curve(blurry, by_map[:, :, 1 + inner :], before) * ranked[:, :, None]
    masked = by_map[:, :, 0]
    fraction = counts / counts[-1]
    return Faithfulness(
        fraction=fraction,
        deletion=deletion,
        insertion=insertion,
        deletion_auc=auc(deletion, fraction),
        insertion_auc=auc(insertion, fraction),
        drop=np.where(broken, np.nan, confidence_drop(before, masked)),
        increase=(masked > before) & ~broken,
        probability=before,
    )


def blurred(image: Tensor, blur: float = BLUR) -> Tensor:
    """An image without its details: convolved with a Gaussian of radius = sigma = blur * shorter side, at least 1.

    The kernel is that of RISE's code: the Gaussian's tails beyond the radius are folded back, and outside the image
    lies 0. At 224 pixels the kernel is theirs, 11 wide with sigma 5; at other sizes it covers the same share of the
    picture.

    Args:
        image: shape (C, H, W).
        blur: radius and sigma as a share of the shorter side.
    """
    radius = max(1, round(blur * min(image.shape[1:])))
    point = np.zeros(2 * radius + 1)
    point[radius] = 1.0
    kernel = gaussian_filter1d(point, radius)
    pixels = image.numpy(force=True)
    for axis in (1, 2):
        pixels = correlate1d(pixels, kernel, axis, mode="constant")
    return torch.from_numpy(pixels).to(image)


def _logits(model: nn.Module, images: Tensor, forward: Forward | None) -> Tensor:
    """Logits on the CPU in float64, shape (N, K)."""
    answer = answer_of(run(model, images, forward))
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != len(images):
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise LayerError(
            f"faithfulness is measured by class probabilities, and {type(model).__name__} gives no (N, K) logits "
            f"(got {shape} for {len(images)} images); give a `forward` that returns them"
        )
    return answer.detach().cpu().double()


def _classes(logits: Tensor, targets: Targets) -> Tensor:
    """The class of each image, shape (D,)."""
    if callable(targets):
        raise LayerError("faithfulness is measured by class probabilities, not by a callable target; give classes")
    indices = resolve(logits, targets).indices
    if indices.shape[1] != 1:
        raise LayerError(f"targets of shape {tuple(indices.shape)} are several per image; give one class per image")
    return indices[:, 0]


def _probabilities(logits: Tensor, classes: Tensor) -> Tensor:
    """Probability of a class, shape (N,): softmax, or the sigmoid of a single logit.

    Args:
        logits: shape (N, K).
        classes: shape (N,), or () for the same one everywhere.
    """
    if logits.shape[1] == 1:
        return torch.sigmoid(logits[:, 0] * (2 * classes - 1))
    return logits.softmax(1).gather(1, classes.expand(len(logits))[:, None])[:, 0]


def control_maps(shape: tuple[int, int], count: int, seed: int = 0, grid: tuple[int, int] = (7, 7)) -> Tensor:
    """Heatmaps that know nothing of the network: a random one for each image, and a centred Gaussian.

    The random map is uniform noise on the grid of a layer, scaled up and to [0, 1] as a layer's map is. Noise pixel by
    pixel would be too weak a control: deleting scattered pixels spoils any picture at once and inserting them shows
    nothing, so every smooth map, right or wrong, would seem better. The Gaussian (see
    :func:`interpret.functional.agreement.centred_gaussian`) is hard to beat on photographs of one thing in the middle.

    Args:
        shape: (H, W) of the images.
        count: D.
        seed: of the noise.
        grid: (h, w) of the layer whose maps are to be judged.

    Returns:
        Shape (2, D, H, W), float32 in [0, 1].

    >>> control_maps((32, 32), 3).shape
    torch.Size([2, 3, 32, 32])
    """
    noise = torch.rand((count, *grid), generator=torch.Generator().manual_seed(seed))
    gaussian = torch.from_numpy(centred_gaussian(*shape)).float().expand(count, *shape)
    layers = {("random", "control"): noise, ("gaussian", "control"): gaussian}
    controls = Maps(layers, torch.full((count, 1), -1))
    return torch.stack([controls.heatmap(method, "control", shape) for method, _ in layers])


@dataclass(frozen=True, slots=True)
class Randomization:
    """How much of M methods' maps of D images is left when a network's weights are lost from the logits downwards.

    Attributes:
        layers: how far down the weights are lost, L stages, top first.
        methods: M names.
        similarity: Spearman correlation over the positions with the map of the untouched network, shape (L, M, D); NaN
            where a map is constant. A method that stays near 1 does not show what the network has learned.
    """

    layers: tuple[str, ...]
    methods: tuple[str, ...]
    similarity: Array


def cascading_randomization(
    model: nn.Module,
    images: Tensor,
    targets: Targets,
    methods: Sequence[str],
    layer: str,
    *,
    stages: Sequence[str] | None = None,
    seed: int = 0,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> Randomization:
    """Similarity of maps to those of the same network with more and more of its weights lost.

    The weights of a copy are lost stage by stage from the logits downwards: each parameter keeps its values and their
    scale, but in random order. Re-initialisation (``reset_parameters``) is no alternative: a trained EfficientNet-Lite0
    then no longer tells images apart (logits differ by 1e-8), and what a map does there says nothing. For the same
    reason BatchNorm behind shuffled weights takes the statistics of these images.

    Maps of one network are alike to begin with: even those of different images correlate. Eigen-CAM asks only what lies
    below its layer, so it stays at 1 until the cascade gets there.

    Args:
        model: any network; only a copy of it is run and changed. In half precision the copy is in float32.
        images: preprocessed, shape (D, C, H, W).
        targets: one class per image, an int, None for the predicted ones, or a callable ``outputs -> (D,)`` scores.
        methods: M names; see :data:`interpret.functional.cam.MAP_METHODS`.
        layer: the call whose maps are compared, raw, at its own resolution.
        stages: names of modules, top first; at each, all that runs from it up to the logits is lost. None: behind the
            last stage end, then from stage end to stage end, at most 6.
        seed: of the shuffling.
        forward: ``(model, images) -> output`` where it is not ``model(images)``; it must run the model that it is
            given.
        progress: called with the number of stages done, and of all.

    Raises:
        LayerError: the model cannot be copied; a layer, stage, method or target does not fit.

    Source: Adebayo et al. 2018, arXiv:1810.03292.
    """
    model, images = in_float32(unwrap(model), images)
    try:
        model = copy.deepcopy(model)
    except Exception as error:  # whatever a network's parts raise when they are copied
        raise LayerError(
            f"weights are lost in a copy of the network only, and {type(model).__name__} cannot be copied: {error}"
        ) from error
    with undisturbed(model):
        calls = trace(model, images, forward, counted=False).calls
        starts = _default_stages(calls) if stages is None else {name: _first(calls, name) for name in stages}
        if not starts or list(starts.values()) != sorted(set(starts.values()), reverse=True):
            raise LayerError(f"stages {list(starts)} do not run from the logits downwards; name the last module first")
        original = class_activation_maps(model, images, methods, layer, targets, forward)
        if len(original.layers) != 1 or original.targets.shape[1] != 1:
            raise LayerError(
                f"maps of one layer and one target per image can be followed, not of layers {list(original.layers)} "
                f"and targets of shape {tuple(original.targets.shape)}"
            )
        fixed = targets if callable(targets) else original.targets
        generator = torch.Generator().manual_seed(seed)
        similarity, end = [], len(calls)
        for number, start in enumerate(starts.values()):
            _shuffle(model, calls[start:end], generator)
            _settle(model, images, calls[start:], forward)
            lost = class_activation_maps(model, images, methods, layer, fixed, forward)
            similarity.append([spearman(original[name].numpy(), lost[name].numpy()) for name in original])
            end = start
            if progress is not None:
                progress(number + 1, len(starts))
    return Randomization(tuple(starts), original.methods, np.array(similarity))


def _default_stages(calls: Sequence[Call]) -> dict[str, int]:
    """Name and first position of what lies behind the last stage end, and of every stage down to the image.

    Stages without parameters are left out; what is beyond the sixth is one with it.
    """
    bounds = [0, *(call.position + 1 for call in calls if call.stage_end), len(calls)]
    starts: dict[str, int] = {}
    for start, end in zip(reversed(bounds[:-1]), reversed(bounds[1:]), strict=True):
        owners = [call for call in calls[start:end] if call.parameters]
        if owners:
            starts[calls[end - 1].key if calls[end - 1].stage_end else owners[-1].key] = start
    names = list(starts)
    if len(names) > MOST_STAGES:
        starts = {name: starts[name] for name in names[: MOST_STAGES - 1]} | {names[-1]: starts[names[-1]]}
    return starts


def _first(calls: Sequence[Call], name: str) -> int:
    """Where a module, or what lies inside it, runs first."""
    outer = tuple(call.name for call in select(calls, [name]))
    inside = tuple(f"{module}." for module in outer)
    return min(call.position for call in calls if call.name in outer or call.name.startswith(inside))


def _shuffle(model: nn.Module, calls: Sequence[Call], generator: torch.Generator) -> None:
    """Put the values of every parameter of these calls in random order."""
    parameters = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for values in (parameters[name] for call in calls for name in call.tensors if name in parameters):
            order = torch.randperm(values.numel(), generator=generator).to(values.device)
            values.copy_(values.flatten()[order].view_as(values))


def _settle(model: nn.Module, images: Tensor, calls: Sequence[Call], forward: Forward | None) -> None:
    """Give BatchNorm at these calls the mean and variance of what it gets from the images."""
    modules = {name: module for module, name in modules_of(model).items()}
    norms = [call for call in calls if isinstance(modules[call.name], nn.modules.batchnorm._BatchNorm)]

    def enter(call: Call, source: Tensor | None) -> None:
        module = modules[call.name]
        if source is not None and isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor):
            axes = [0, *range(2, source.ndim)]
            module.running_mean.copy_(source.mean(axes))
            module.running_var.copy_(source.var(axes, correction=0))

    with torch.no_grad(), visiting(model, norms, lambda call, module, source, output: None, enter):
        if norms:
            run(model, images, forward)
