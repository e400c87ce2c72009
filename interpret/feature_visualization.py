"""What a unit looks for: pictures that excite it, the images that did, and what of them it saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from interpret.errors import InterpretError, LayerError, did_you_mean
from interpret.evidence import Call
from interpret.gradients import Rule, guided
from interpret.hooks import backward, in_float32, undisturbed, visiting, with_gradients
from interpret.targets import answer_of
from interpret.tracing import Forward, features, run, select, trace, unwrap

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_SIZE = 224

DEVIATION = 0.01  # of the random start, in units of the parameters: next to grey
SPECTRUM_SCALE = 0.25  # Lucid's: brings a 1/f picture of unit parameters into the sigmoid's range
MOST_SHIFT, MOST_SCALE, MOST_TURN = 0.06, 0.1, 10.0  # share of the side, share, degrees

# Square root of the covariance of ImageNet's colours, scaled to a longest column of 1; Olah et al. 2017, as in Lucid.
COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))

Unit = tuple[int, int] | Literal["centre"] | None
Parametrization = Literal["fourier", "pixels"]


# ----- the output of one call


class _ReachedError(InterpretError):
    """Ends a forward at the call that is looked at: what follows costs time, and may overwrite the output."""


def _output(model: nn.Module, images: Tensor, call: Call, forward: Forward | None) -> Tensor:
    """A call's output, from a forward that ends there."""
    found: list[Tensor] = []

    def visit(call: Call, module: nn.Module, source: Tensor | None, output: Tensor) -> None:
        found.append(output)
        raise _ReachedError(f"layer {call.key!r} was reached")

    with suppress(_ReachedError), visiting(model, [call], visit):
        run(model, images, forward)
    if not found:
        raise LayerError(f"layer {call.key!r} does not run on every image; choose one that does")
    return found[0]


def _channels(output: Tensor, call: Call) -> Tensor:
    """A call's output as (n, C, h, w); vectors have one position, sequences lie in a column where they have no grid.

    Raises:
        LayerError: it is not known where its channels lie.
    """
    if call.layout == "NC":
        return output[:, :, None, None]
    if call.map_shape is not None:
        return features(output, call)
    if call.layout in ("NCL", "NTC"):
        return (output if call.layout == "NCL" else output.transpose(1, 2))[..., None]
    raise LayerError(
        f"layer {call.key!r} with an output of shape {call.output_shape} has no channels that are known; choose a "
        "layer with an output (N, C, H, W), (N, H, W, C), (N, T, C) or (N, C)"
    )


def _one_call(calls: Sequence[Call], layer: str) -> Call:
    """The call that a layer names; the key of a module's first execution names that one alone."""
    chosen = [call for call in calls if call.key == layer] or select(calls, layer)
    if len(chosen) > 1:
        names = ", ".join(repr(call.key) for call in chosen[:4])
        raise LayerError(f"layer {layer!r} names {len(chosen)} calls ({names}{', ...' * (len(chosen) > 4)}); name one")
    return chosen[0]


def _check_channel(channel: int, count: int, layer: str) -> None:
    if not 0 <= channel < count:
        raise LayerError(f"channel {channel} is out of range: layer {layer!r} has {count} (0 to {count - 1})")


def _check_images(images: Tensor, batch_size: int = 1) -> None:
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise LayerError(
            f"images of shape {tuple(images.shape)} and type {images.dtype} are no preprocessed images; give "
            "floating-point ones, shape (N, C, H, W)"
        )
    if batch_size < 1:
        raise LayerError(f"batch_size={batch_size}: run at least 1 image at a time")


def _gradient(score: Tensor, leaf: Tensor) -> Tensor:
    """dY/d(leaf) of a scalar; nothing else that hangs on it gets any."""
    kept: list[Tensor] = []
    with leaf.register_hook(kept.append):
        backward(score, [leaf])
    return kept[0].detach() if kept else torch.zeros_like(leaf)


def _differentiable(run_once: Callable[[], Tensor], layer: str) -> Tensor:
    """An output that depends on the images, also where the model switches gradients off for a part of it.

    Raises:
        LayerError: it does not depend on them in a differentiable way.
    """
    for mode in (nullcontext(), with_gradients()):
        with mode:
            output = run_once()
        if output.requires_grad:
            return output
    raise LayerError(
        f"layer {layer!r} has no gradient with respect to the images: the forward detaches them, rounds them, or runs "
        "in inference mode; take that out of the forward, or choose a layer before it"
    )


# ----- pictures that excite a unit


@dataclass(frozen=True, slots=True)
class Maximized:
    """What :func:`maximize` finds.

    Attributes:
        image: float32 on the CPU, shape (B, C, H, W), in [0, 1]: before the network's normalization.
        start: what is made large, mean over the batch, for the pictures it began from.
        end: the same for the image.
    """

    image: Tensor
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class _Objective:
    """What is made large: a channel, one of its units, or all of a layer. ``call`` is None for the logits."""

    model: nn.Module
    call: Call | None
    layer: str
    channel: int | None
    unit: Unit
    forward: Forward | None

    def features(self, images: Tensor) -> Tensor:
        """The layer's output, shape (B, C, h, w)."""
        if self.call is not None:
            return _channels(_output(self.model, images, self.call, self.forward), self.call)
        logits = answer_of(run(self.model, images, self.forward))
        if not isinstance(logits, Tensor) or logits.ndim not in (2, 4):
            raise LayerError("the model's output is no (N, K) or (N, K, H, W) logits; name a layer of the network")
        if logits.shape[1] == 1:  # one logit answers for two classes
            logits = torch.cat((-logits, logits), 1)
        return logits if logits.ndim == 4 else logits[:, :, None, None]

    def check(self, outputs: Tensor) -> None:
        """Raise a LayerError where channel or unit do not fit."""
        count, height, width = outputs.shape[1:]
        if self.channel is None:
            if self.unit is not None:
                raise LayerError(f"unit {self.unit!r} needs the channel that it belongs to; give channel=0 or another")
            return
        _check_channel(self.channel, count, self.layer)
        if self.unit is None or self.unit == "centre":
            return
        if isinstance(self.unit, str) or not (0 <= self.unit[0] < height and 0 <= self.unit[1] < width):
            raise LayerError(
                f"unit {self.unit!r} is no position of layer {self.layer!r}, which has {height} x {width}; give "
                "'centre', (y, x), or None for the mean"
            )

    def __call__(self, outputs: Tensor) -> Tensor:
        """Scores, shape (B,)."""
        if self.channel is None:
            return outputs.square().mean((1, 2, 3))
        maps = outputs[:, self.channel]
        if self.unit is None:
            return maps.mean((1, 2))
        y, x = (maps.shape[1] // 2, maps.shape[2] // 2) if isinstance(self.unit, str) else self.unit
        return maps[:, y, x]


def similarity(outputs: Tensor) -> Tensor:
    """Mean cosine similarity of the Gram matrices of every two of B > 1 outputs, a scalar.

    Args:
        outputs: shape (B, C, h, w).

    Source: Olah et al. 2017, doi:10.23915/distill.00007, "Diversity".
    """
    rows = outputs.flatten(2)
    grams = functional.normalize((rows @ rows.transpose(1, 2)).flatten(1), dim=1)
    count = len(grams)
    return ((grams @ grams.T).sum() - count) / (count * (count - 1))


def _spectrum_scale(height: int, width: int) -> Tensor:
    """1 / f for every entry of a real Fourier transform, shape (H, W // 2 + 1): equal steps at every scale."""
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    return SPECTRUM_SCALE / frequency.clamp_min(1.0 / max(height, width))


class _Canvas:
    """Pictures (B, C, H, W) in [0, 1] as a function of unbounded parameters."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        parametrization: Parametrization,
        generator: torch.Generator,
        like: Tensor,
    ) -> None:
        self.size = shape[2:]
        self.scale: Tensor | None = None
        self.colours: Tensor | None = None
        if parametrization == "fourier":
            self.scale = _spectrum_scale(*self.size)[..., None].to(like)
            shape = (*shape[:2], *self.scale.shape[:2])
            colours = torch.tensor(COLOURS)
            self.colours = (colours / colours.norm(dim=0).max()).to(like) if shape[1] == 3 else None
        entries = shape if self.scale is None else (*shape, 2)
        self.parameters = (DEVIATION * torch.randn(entries, generator=generator)).to(like).requires_grad_()

    def pictures(self) -> Tensor:
        """Shape (B, C, H, W)."""
        values = self.parameters
        if self.scale is not None:
            values = torch.fft.irfft2(torch.view_as_complex(values * self.scale), s=self.size, norm="ortho")
        if self.colours is not None:
            values = torch.einsum("rc,bchw->brhw", self.colours, values)
        return values.sigmoid()


class _Adam:
    """Ascent by Adam. torch's own would import torch's compiler: four seconds, for pictures that take ten.

    Source: Kingma & Ba 2014, algorithm 1, arXiv:1412.6980.
    """

    def __init__(self, parameters: Tensor, rate: float) -> None:
        self.parameters, self.rate, self.steps = parameters, rate, 0
        self.mean, self.square = torch.zeros_like(parameters), torch.zeros_like(parameters)

    @torch.no_grad()
    def __call__(self, gradient: Tensor) -> None:
        self.steps += 1
        self.mean.lerp_(gradient, 1.0 - 0.9)
        self.square.lerp_(gradient.square(), 1.0 - 0.999)
        first, second = self.mean / (1.0 - 0.9**self.steps), self.square / (1.0 - 0.999**self.steps)
        self.parameters += self.rate * first / (second.sqrt() + 1e-16)


def _moved(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture shifted, scaled and turned a little, with grey beyond its edges."""
    count, _, height, width = pictures.shape
    draws = 2.0 * torch.rand(4, count, generator=generator) - 1.0
    angle, scale = draws[0] * math.radians(MOST_TURN), 1.0 + draws[1] * MOST_SCALE
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = (  # in units of half the sides: the off-diagonals keep a turn a turn where the sides differ
        torch.stack((cosine, -sine * height / width, 2.0 * MOST_SHIFT * draws[2]), 1),
        torch.stack((sine * width / height, cosine, 2.0 * MOST_SHIFT * draws[3]), 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1).to(pictures), list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures - 0.5, grid, align_corners=False) + 0.5


def _first_channels(model: nn.Module) -> int:
    """Channels that the network's input has, by its first convolution; 3 where it has none."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


def maximize(
    model: nn.Module,
    layer: str,
    channel: int | None = None,
    *,
    unit: Unit = None,
    size: int | tuple[int, int] | None = None,
    steps: int = 256,
    parametrization: Parametrization = "fourier",
    robustness: bool = True,
    batch: int = 1,
    diversity: float = 0.0,
    learning_rate: float = 0.05,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    seed: int = 0,
    input_channels: int | None = None,
    forward: Forward | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Maximized:
    """Pictures that excite a channel, a unit, a class or a layer, by gradient ascent (Adam) from grey noise.

    Args:
        model: any network; nothing of it is changed. Half-precision weights are copied to float32 first.
        layer: one call, see :func:`interpret.tracing.select`; or "logits" for the model's output, its channels being
            the classes.
        channel: whose mean over the positions is made large; None for the mean square of the whole layer (DeepDream).
            Where a ReLU holds all of it at 0, steps follow the deconvnet rule of :func:`interpret.gradients.guided`
            until it wakes.
        unit: "centre" or (y, x): one position of the channel instead of the mean.
        size: side or (height, width) of the pictures in pixels; None for 224.
        steps: of the ascent: one forward and one backward each, up to the layer.
        parametrization: "fourier": a spectrum in steps that fall with frequency, and for 3 channels in the main
            directions of natural colours; "pixels".
        robustness: whether every step sees the picture a little shifted, scaled and turned. Without, pictures turn into
            patterns that only this network sees.
        batch: pictures, from different noise.
        diversity: weight by which :func:`similarity` of the pictures is made small, in units of the score; needs
            batch > 1.
        learning_rate: of Adam.
        mean: per channel; the network sees (picture - mean) / std.
        std: per channel, see ``mean``.
        seed: of noise and transforms, and of networks that draw random numbers.
        input_channels: of the pictures; None for those of the network's first convolution.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.
        progress: called with (done, total) after each step.

    Raises:
        LayerError: layer, channel, unit or an option do not fit, or the layer has no gradient.

    Source: Erhan et al. 2009; Mordvintsev et al. 2015; Olah et al. 2017, doi:10.23915/distill.00007.
    """
    model = unwrap(model)
    shape = _checked_shape(model, size, batch, input_channels, mean, std)
    _check_options(steps, parametrization, batch, diversity, learning_rate)
    weight = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    model, like = in_float32(model, weight.new_empty(0))
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(model, seed):
        canvas = _Canvas(shape, parametrization, generator, like)
        centre, spread = (torch.tensor(values).to(like)[:, None, None] for values in (mean, std))

        def seen(pictures: Tensor) -> Tensor:
            return (pictures - centre) / spread

        first = seen(canvas.pictures().detach())
        calls = trace(model, first, forward, counted=False).calls
        call = None if layer == "logits" and all(call.key != layer for call in calls) else _one_call(calls, layer)
        objective = _Objective(model, call, layer, channel, unit, forward)
        with torch.no_grad():
            outputs = objective.features(first)
            objective.check(outputs)
            start = objective(outputs).mean().item()

        def gradient() -> tuple[Tensor, Tensor]:
            pictures = canvas.pictures()
            view = seen(_moved(pictures, generator) if robustness else pictures)
            outputs = _differentiable(partial(objective.features, view), layer)
            scores = objective(outputs)
            total = scores.sum() - diversity * similarity(outputs) if diversity else scores.sum()
            return _gradient(total, canvas.parameters), scores.detach()

        ascend = _Adam(canvas.parameters, learning_rate)
        for step in range(steps):
            direction, scores = gradient()
            asleep = ~direction.flatten(1).any(1) & (scores <= 0)
            if asleep.any():  # behind ReLUs that are off: by this rule they pass what would wake them
                with guided("deconvnet"):
                    direction[asleep] = gradient()[0][asleep]
            ascend(direction)
            if progress is not None:
                progress(step + 1, steps)
        with torch.no_grad():
            pictures = canvas.pictures()
            end = objective(objective.features(seen(pictures))).mean().item()
    return Maximized(pictures.float().cpu(), start, end)


def maximize_activation(model: nn.Module, layer: str, channel: int | None = None, **options: Any) -> Tensor:
    """The picture of :func:`maximize`, shape (C, H, W), or (B, C, H, W) for ``batch`` > 1; values in [0, 1].

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> maximize_activation(net, "0", channel=2, size=16, steps=2).shape
    torch.Size([3, 16, 16])
    """
    image = maximize(model, layer, channel, **options).image
    return image if len(image) > 1 else image[0]


def _checked_shape(
    model: nn.Module,
    size: int | tuple[int, int] | None,
    batch: int,
    input_channels: int | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[int, int, int, int]:
    """(B, C, H, W) of the pictures."""
    height, width = (size, size) if isinstance(size, int) else size or (DEFAULT_SIZE, DEFAULT_SIZE)
    channels = _first_channels(model) if input_channels is None else input_channels
    if min(batch, channels, height, width) < 1:
        raise LayerError(f"{batch} pictures of {channels} x {height} x {width} are empty; give at least 1 of each")
    if len(mean) != channels or len(std) != channels:
        raise LayerError(
            f"mean {tuple(mean)} and std {tuple(std)} do not fit pictures of {channels} channels; give one value each, "
            "those that the network's inputs are normalised by"
        )
    if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
        raise LayerError(f"mean {tuple(mean)} must be finite and std {tuple(std)} positive")
    return batch, channels, height, width


def _check_options(steps: int, parametrization: str, batch: int, diversity: float, learning_rate: float) -> None:
    if parametrization not in ("fourier", "pixels"):
        hint = did_you_mean(parametrization, ("fourier", "pixels"))
        raise LayerError(f"unknown parametrization {parametrization!r}{hint}; give 'fourier' or 'pixels'")
    if steps < 1 or not 0 < learning_rate < math.inf:
        raise LayerError(f"steps={steps} and learning_rate={learning_rate}: give at least 1 step, and a rate above 0")
    if not 0 <= diversity < math.inf or (diversity and batch < 2):
        raise LayerError(f"diversity={diversity} of {batch} picture(s): give a weight of at least 0, and batch > 1")


# ----- the images that excite it most


@dataclass(frozen=True, slots=True)
class TopPatch:
    """Where an image excites a channel most.

    Attributes:
        image: its number.
        position: (y, x) in the layer's output; (0, 0) where that is a vector.
        activation: the channel's value there.
        box: (top, left, bottom, right) of its receptive field in pixels, clipped to the image; bottom and right are
            exclusive.
    """

    image: int
    position: tuple[int, int]
    activation: float
    box: tuple[int, int, int, int]


class TopPositions:
    """Collects, chunk by chunk of images, the strongest position of each channel in each image; keeps only the best.

    Args:
        call: whose outputs are given.
        channels: which of its channels.
        count: images kept per channel.
    """

    def __init__(self, call: Call, channels: Sequence[int], count: int = 9) -> None:
        for channel in channels:
            _check_channel(channel, call.channels, call.key)
        if count < 1:
            raise LayerError(f"count={count}: keep at least 1 image per channel")
        self.call, self.channels, self.count = call, tuple(channels), count
        self.images = 0
        self._width = 1
        self._values = torch.empty(0, len(channels))
        self._places = self._numbers = torch.empty(0, len(channels), dtype=torch.int64)

    def add(self, output: Tensor) -> None:
        """Look at the call's output for the next images, shape (n, ...)."""
        maps = _channels(output.detach(), self.call)[:, list(self.channels)]
        self._width = maps.shape[3]
        rows = maps.flatten(2).float().cpu()  # (n, channels, positions)
        places = rows.argmax(2)
        numbers = torch.arange(self.images, self.images + len(rows))[:, None].expand_as(places)
        self.images += len(rows)
        values = torch.cat((self._values, rows.gather(2, places[..., None])[..., 0]))
        values, order = values.sort(stable=True, dim=0, descending=True)  # of equal ones the first image
        self._values = values[: self.count].clone()
        self._places, self._numbers = (
            torch.cat((kept, new)).gather(0, order)[: self.count].clone()
            for kept, new in ((self._places, places), (self._numbers, numbers))
        )

    def patches(self, size: tuple[int, int]) -> dict[int, tuple[TopPatch, ...]]:
        """The patches of each channel, strongest first, of images of a size (H, W)."""
        found: dict[int, tuple[TopPatch, ...]] = {}
        columns = (tensor.T.tolist() for tensor in (self._numbers, self._places, self._values))
        for channel, *column in zip(self.channels, *columns, strict=True):
            rows = [(image, divmod(place, self._width), value) for image, place, value in zip(*column, strict=True)]
            found[channel] = tuple(TopPatch(*row, receptive_box(self.call, row[1], size)) for row in rows)
        return found


def receptive_box(call: Call, position: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a position's receptive field, clipped to an image of a size (H, W).

    The whole image where the field is not known. Gates over the whole image (squeeze-and-excitation) do not count; see
    :class:`interpret.receptive_fields.ReceptiveFields`.
    """
    field = call.receptive_field
    if field is None:
        return 0, 0, size[0], size[1]
    starts, stops = [], []
    for axis, limit in enumerate(size):
        start = field.start[axis] + position[axis] * field.stride[axis]
        starts.append(min(max(math.floor(start), 0), limit))
        stops.append(min(max(math.ceil(start + field.size[axis]), 0), limit))
    return starts[0], starts[1], stops[0], stops[1]


def top_patches(
    model: nn.Module,
    images: Tensor,
    layer: str,
    channels: Sequence[int],
    count: int = 9,
    forward: Forward | None = None,
    batch_size: int = 16,
) -> Mapping[int, tuple[TopPatch, ...]]:
    """The images that excite each channel most, and the part of each that the strongest position sees.

    Args:
        model: any network; nothing of it is changed.
        images: preprocessed, shape (N, C, H, W).
        layer: one call; see :func:`interpret.tracing.select`.
        channels: which.
        count: patches per channel, at most one per image.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.
        batch_size: images in one forward.

    Returns:
        channel -> patches, strongest first; of equal ones that of the first image, and in it the first position.

    Raises:
        LayerError: layer, channel or count do not fit.

    Source: Zeiler & Fergus 2013, section 4, arXiv:1311.2901.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU())
    >>> found = top_patches(net, torch.rand(4, 1, 9, 9), "1", [0], count=2)
    >>> len(found[0]), found[0][0].box[2] - found[0][0].box[0]
    (2, 3)
    """
    _check_images(images, batch_size)
    model, images = in_float32(unwrap(model), images)
    with undisturbed(model), torch.no_grad():
        best = TopPositions(_one_call(trace(model, images, forward).calls, layer), channels, count)
        for chunk in images.split(batch_size):
            best.add(_output(model, chunk, best.call, forward))
    return best.patches((images.shape[2], images.shape[3]))


# ----- what of them it saw


def reconstruct(
    model: nn.Module,
    images: Tensor,
    layer: str,
    channel: int,
    positions: Sequence[tuple[int, int]],
    rule: Rule = "deconvnet",
    forward: Forward | None = None,
    batch_size: int = 16,
) -> Tensor:
    """One unit's activation projected back to the pixels of each image, all others set to zero.

    The gradient of the activation a under a rule of :func:`interpret.gradients.guided`, times a: what a deconvnet makes
    of a feature map that holds only a. Pooling goes back to where its maxima were, convolutions go back transposed, and
    normalizations by their scale.

    Args:
        model: any network; nothing of it is changed. Half-precision weights are copied to float32 first.
        images: preprocessed, shape (N, C, H, W).
        layer: one call; see :func:`interpret.tracing.select`.
        channel: of the unit.
        positions: (y, x) of the unit in each image, as in :class:`TopPatch`.
        rule: "deconvnet" or "guided-backprop".
        forward: ``(model, images) -> output`` where it is not ``model(images)``.
        batch_size: images in one forward and backward.

    Returns:
        Shape (N, C, H, W), float32 on the CPU, signed; zero outside of the unit's receptive field.

    Raises:
        LayerError: layer, channel, position or rule do not fit, or none of the network's activations is a rectifier.

    Source: Zeiler & Fergus 2013, section 2.1, arXiv:1311.2901; Springenberg et al. 2014, arXiv:1412.6806.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> reconstruct(net, torch.rand(2, 1, 8, 8), "1", 0, [(0, 0), (5, 5)]).shape
    torch.Size([2, 1, 8, 8])
    """
    _check_images(images, batch_size)
    if len(positions) != len(images):
        raise LayerError(f"{len(positions)} positions do not fit {len(images)} images; give one (y, x) per image")
    model, images = in_float32(unwrap(model), images.detach())
    parts = []
    with undisturbed(model):
        call = _one_call(trace(model, images, forward, counted=False).calls, layer)
        _check_channel(channel, call.channels, layer)
        for chunk, units in zip(
            images.split(batch_size), torch.tensor(positions).reshape(-1, 2).split(batch_size), strict=True
        ):
            leaf = chunk.clone().requires_grad_()
            with guided(rule) as guidance:
                outputs = _channels(_differentiable(partial(_output, model, leaf, call, forward), layer), call)
            if guidance.others and not guidance.rectified:
                raise LayerError(
                    f"{type(model).__name__} cannot be guided: {rule} is a rule for ReLUs, and up to layer {layer!r} "
                    f"it has {', '.join(guidance.others)}; take interpret.attribution with 'integrated-gradients'"
                )
            limits = torch.tensor(outputs.shape[2:])
            if bool(((units < 0) | (units >= limits)).any()):
                raise LayerError(
                    f"positions {units.tolist()} do not lie in layer {layer!r}, which has {tuple(limits.tolist())}"
                )
            y, x = units.to(outputs.device).T
            chosen = outputs[torch.arange(len(units), device=outputs.device), channel, y, x]
            projected = _gradient(chosen.sum(), leaf) * chosen.detach()[:, None, None, None]
            parts.append(projected.float().cpu())
    return torch.cat(parts)


def kernel_responses(
    model: nn.Module, image: Tensor, layer: str | None = None, forward: Forward | None = None
) -> Tensor:
    """The response of every kernel of a convolution to one image, before anything overwrites it.

    Args:
        model: any network; nothing of it is changed.
        image: preprocessed, shape (C, H, W).
        layer: one call; None for the first convolution.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.

    Returns:
        Shape (K, h, w), float32 on the CPU: kernel * input + bias, signed.

    Raises:
        LayerError: the layer does not fit, or the network has no convolution.

    >>> kernel_responses(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)), torch.rand(3, 8, 8)).shape
    torch.Size([4, 6, 6])
    """
    images = image[None]
    _check_images(images)
    model, images = in_float32(unwrap(model), images)
    with undisturbed(model), torch.no_grad():
        calls = trace(model, images, forward, counted=False).calls
        if layer is None:
            layer = next((call.key for call in calls if call.kind == "convolution"), None)
        if layer is None:
            raise LayerError(f"{type(model).__name__} has no convolution; name the layer whose responses are wanted")
        call = _one_call(calls, layer)
        return _channels(_output(model, images, call, forward), call)[0].float().cpu()
