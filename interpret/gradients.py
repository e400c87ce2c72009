"""Attributions of the input: what each entry of an image adds to the score, from gradients alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from interpret.errors import LayerError, did_you_mean
from interpret.functional.cam import ATTRIBUTION_METHODS, check_methods
from interpret.hooks import backward, in_float32, undisturbed, with_gradients
from interpret.maps import class_activation_maps
from interpret.targets import Target, Targets, resolve
from interpret.tracing import Forward, run, unwrap

LOGGER = logging.getLogger("interpret")

Rule = Literal["guided-backprop", "deconvnet"]

TOLERANCE = 1e-3  # completeness gap from which on a note is made
TINY = 1e-30  # a difference of scores below it counts as none
ROUNDING = 1e-5  # share of a score that float32 leaves open along a path: below it no gap can be closed
FIRST_INTERVALS = 4  # of a path, before anything is known of it: nine gradients, one batch

PIECEWISE_LINEAR = frozenset({"leaky_relu", "prelu", "rrelu"})
CURVED = frozenset(
    {"silu", "gelu", "hardswish", "mish", "elu", "selu", "celu", "softplus", "sigmoid", "hardsigmoid", "tanh"}
    | {"logsigmoid", "softsign", "tanhshrink", "glu"}
)
UNGUIDED = CURVED | PIECEWISE_LINEAR
NOT_HOMOGENEOUS = CURVED | {
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "local_response_norm",
    "normalize",
    "softmax",
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
}


@dataclass(frozen=True, slots=True)
class Attribution:
    """What :func:`attribute` finds.

    Attributes:
        values: float32 on the CPU, shape (N, C, H, W), or (N, R, C, H, W) for several targets per image.
        targets: class indices explained, shape (N, R) int64; -1 for a callable.
        gap: what the attributions miss of the score that they should add up to, relative to it, shape (N, R) float64;
            None where the method promises no sum.
        steps: gradients that integrated gradients took, shape (N, R) int64; None for other methods.
        note: one sentence on a limit of the result, or an empty string.
    """

    values: Tensor
    targets: Tensor
    gap: Tensor | None
    steps: Tensor | None
    note: str


# ----- rectifiers: every way to write one, as torch functions see it


class _Rectifier(NamedTuple):
    """A call that is min(max(source, 0), ceiling)."""

    source: Tensor
    ceiling: float
    in_place: bool


def _relu(input: Tensor, inplace: bool = False, ceiling: float = math.inf) -> _Rectifier:
    return _Rectifier(input, ceiling, inplace)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> _Rectifier | None:
    return _Rectifier(input, float(max_val), inplace) if min_val == 0 else None


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> _Rectifier | None:
    return _Rectifier(input, math.inf, inplace) if threshold == value == 0 else None


def _clamp(input: Tensor, min: Any = None, max: Any = None, out: Any = None) -> _Rectifier | None:
    if isinstance(min, Tensor) or isinstance(max, Tensor) or out is not None or min != 0:
        return None
    return _Rectifier(input, math.inf if max is None else float(max), False)


_RECTIFIERS: Mapping[str, Callable[..., _Rectifier | None]] = {
    "relu": _relu,
    "relu6": partial(_relu, ceiling=6.0),
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "_threshold": _threshold,  # the name inside of torch.nn.functional.threshold
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
}


def _plain_name(function: Any) -> str:
    """A torch function's name, the same for its form in place."""
    return str(getattr(function, "__name__", "")).removesuffix("_")


def _rectified(function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> _Rectifier | None:
    """What a call rectifies; None where it is another operation, or one on integers."""
    read = _RECTIFIERS.get(_plain_name(function))
    found = None if read is None else read(*arguments, **keywords)
    if found is None or not isinstance(found.source, Tensor) or not found.source.is_floating_point():
        return None
    return found._replace(in_place=found.in_place or function.__name__.endswith("_"))


def _positive(gradients: Sequence[Tensor | None]) -> tuple[Tensor | None]:
    """What of the gradient of one output is above zero; None where nothing arrived."""
    return (None if gradients[0] is None else gradients[0].clamp_min(0.0),)


class Guidance(TorchFunctionMode):
    """Changes the backward of every rectifier that runs while it is open; see :func:`guided`.

    Attributes:
        rectified: how many ran on the way to a gradient.
        others: names of the activations met that have no rule, in order.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.rectified = 0
        self.others: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        found = _rectified(function, arguments, keywords)
        if found is None:
            name = _plain_name(function)
            if name in UNGUIDED and name not in self.others:
                self.others.append(name)
            return function(*arguments, **keywords)
        source, ceiling, in_place = found
        # clamp lets the gradient of x = 0 pass, these do not
        if ceiling == math.inf:
            result = functional.relu(source)
        else:  # remembers its input, unlike relu
            result = functional.hardtanh(source.clone() if in_place else source, 0.0, ceiling)
        if result.grad_fn is not None:
            self.rectified += 1
            if self.rule == "guided-backprop":
                result.grad_fn.register_prehook(_positive)
            else:
                result.grad_fn.register_hook(lambda inner, outer: _positive(outer))
        # an operation in place on a view has no node of its own to change, a copy into it has
        return source.copy_(result) if in_place else result


@contextmanager
def guided(rule: Rule) -> Iterator[Guidance]:
    """While open, rectifiers that run get another backward: whenever it is called, whatever form they are written in.

    With g the gradient that arrives and x the rectifier's input:

        guided-backprop   g [g > 0] [0 < x < ceiling]     Springenberg et al. 2014, arXiv:1412.6806
        deconvnet         g [g > 0]                       Zeiler & Fergus 2013, arXiv:1311.2901

    Rectifiers are ReLU, ReLU6, and hardtanh, clamp and threshold with a minimum of 0: modules, functions and methods,
    in place or not. Values of the forward stay as they are.

    >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    >>> with guided("guided-backprop") as guidance:
    ...     y = (torch.relu(x) * torch.tensor([1.0, -1.0, 1.0])).sum()
    >>> torch.autograd.grad(y, x)[0], guidance.rectified
    (tensor([0., 0., 1.]), 1)
    """
    if rule not in ("guided-backprop", "deconvnet"):
        raise LayerError(f"unknown rule {rule!r}; give 'guided-backprop' or 'deconvnet'")
    with Guidance(rule) as guidance:
        yield guidance


# ----- what is explained


@dataclass(slots=True)
class _Subject:
    """A model's scores of some images, and where their gradients come from."""

    model: nn.Module
    images: Tensor
    targets: Targets
    layer: str
    seed: int
    forward: Forward | None
    _target: Target | None = field(default=None, init=False)

    def settle(self) -> Target:
        """What the targets are on the images as they were given; from then on it stays."""
        if self._target is None:
            with torch.no_grad():
                self._target = resolve(run(self.model, self.images, self.forward), self.targets)
        return self._target

    def scores(self, points: Tensor, image: int | None = None) -> Tensor:
        """Scores (B, R) that depend on the points: the images themselves, or copies of one of them, altered.

        Raises:
            LayerError: they do not depend on them in a differentiable way.
        """
        for mode in (nullcontext(), with_gradients()):  # the second for a forward that switches gradients off
            with mode:
                output = run(self.model, points, self.forward)
                if self._target is None:
                    self._target = resolve(output, self.targets)
                scores = self._target.scores(output, image)
            if scores.requires_grad:
                return scores
        raise self._no_gradient()

    def gradient(self, scores: Tensor, points: Tensor, again: bool = False) -> Tensor:
        """Gradients of scores (B,) at the points, shape (B, C, H, W)."""
        kept: list[Tensor] = []
        with points.register_hook(kept.append):
            backward(scores.sum(), [points], again)
        if not kept:
            raise self._no_gradient()
        return kept[0].detach()

    def gradients(self, points: Tensor, image: int | None = None, column: int | None = None) -> tuple[Tensor, Tensor]:
        """Scores (B, R) and their gradients (B, R, C, H, W) at points; of one of the R targets if asked for."""
        leaf = points.detach().requires_grad_()
        scores = self.scores(leaf, image)
        if column is not None:
            scores = scores[:, column : column + 1]
        count = scores.shape[1]
        parts = [self.gradient(scores[:, number], leaf, again=number + 1 < count) for number in range(count)]
        return scores.detach(), torch.stack(parts, 1)

    def found(
        self, values: Tensor, gap: Tensor | None = None, steps: Tensor | None = None, note: str = ""
    ) -> Attribution:
        """The result, from values (N, R, C, H, W)."""
        values = values.detach().float().cpu()
        indices = self.settle().indices
        return Attribution(values if values.shape[1] > 1 else values[:, 0], indices, gap, steps, note)

    def _no_gradient(self) -> LayerError:
        return LayerError(
            f"the score of {type(self.model).__name__} has no gradient with respect to the images: its forward "
            "detaches them, rounds them, or runs in inference mode; take that out of the forward"
        )


def _relative(missed: Tensor, whole: Tensor) -> Tensor:
    return missed.abs() / whole.abs().clamp_min(TINY)


# ----- methods: each takes the subject and its own options


def saliency(subject: _Subject) -> Attribution:
    """|dY/dx|. Source: Simonyan et al. 2013, arXiv:1312.6034."""
    return subject.found(subject.gradients(subject.images)[1].abs())


def input_x_gradient(subject: _Subject) -> Attribution:
    """X dY/dx, signed. Source: Shrikumar et al. 2016, arXiv:1605.01713."""
    return subject.found(subject.images[:, None] * subject.gradients(subject.images)[1])


def guided_gradient(subject: _Subject, rule: Rule) -> Attribution:
    """The gradient under a rule of :func:`guided`, signed.

    Raises:
        LayerError: the network has no rectifier.
    """
    with guided(rule) as guidance:
        values = subject.gradients(subject.images)[1]
    names = ", ".join(guidance.others)
    if not guidance.rectified:
        raise LayerError(
            f"{type(subject.model).__name__} cannot be guided: the rule is one for ReLUs, and the activations met are "
            f"{names or 'none'}; use 'integrated-gradients' instead"
        )
    note = f"guided at {guidance.rectified} rectifiers, but not at {names}, which pass the plain gradient"
    return subject.found(values, note=note if names else "")


def guided_grad_cam(subject: _Subject) -> Attribution:
    """Guided backpropagation times Grad-CAM of a layer, up-sampled (bilinear, align_corners=False).

    Source: Selvaraju et al. 2017, section 3.2, arXiv:1610.02391.
    """
    fine = guided_gradient(subject, "guided-backprop")
    maps = class_activation_maps(
        subject.model, subject.images, ("grad-cam",), subject.layer, subject.targets, subject.forward
    )
    if len(maps) != 1:
        raise LayerError(f"layer {subject.layer!r} names {len(maps)} calls with a Grad-CAM map; name one call")
    coarse = next(iter(maps.values()))
    coarse = coarse.reshape(len(subject.images), -1, *coarse.shape[-2:])  # (N, R, h, w)
    size = subject.images.shape[-2:]
    weights = functional.interpolate(coarse, size, mode="bilinear", align_corners=False)[:, :, None]
    values = fine.values.reshape(*weights.shape[:2], *subject.images.shape[1:])
    return subject.found(values * weights, note=fine.note)


def smooth_grad(subject: _Subject, *, samples: int = 25, noise: float = 0.15, batch_size: int = 16) -> Attribution:
    """|mean of dY/dx at x + e|, e normal; every image sees the same noise, whatever the batch.

    Args:
        subject: what is explained.
        samples: how many noisy copies of each image.
        noise: standard deviation, as a share of the image's max - min.
        batch_size: copies in one forward.

    Source: Smilkov et al. 2017, arXiv:1706.03825.
    """
    _check(samples=samples, batch_size=batch_size)
    if not 0 <= noise < math.inf:
        raise LayerError(f"noise={noise!r} is no standard deviation; give a share of the image's range, such as 0.15")
    shape = (subject.settle().indices.shape[1], *subject.images.shape[1:])
    values = []
    for number, image in enumerate(subject.images):
        generator = torch.Generator().manual_seed(subject.seed)
        deviation = noise * (image.max() - image.min())
        total = image.new_zeros(shape, dtype=torch.float64)
        for start in range(0, samples, batch_size):
            count = min(batch_size, samples - start)
            draws = torch.stack([torch.randn(image.shape, generator=generator) for _ in range(count)])
            _, gradients = subject.gradients(image + deviation * draws.to(image), number)
            total += gradients.sum(0, dtype=torch.float64)
        values.append(total.abs() / samples)
    return subject.found(torch.stack(values))


def _check(**counts: Any) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise LayerError(f"{name}={count!r}: give an integer of at least 1")


# ----- integrated gradients


@dataclass(frozen=True, slots=True)
class _Point:
    """What is known at one fraction of a path: score F, its derivative along the path, its gradient (C, H, W)."""

    at: float
    score: float
    slope: float
    gradient: Tensor


@dataclass(frozen=True, slots=True)
class _Interval:
    """A part of a path under Simpson's rule."""

    left: _Point
    middle: _Point
    right: _Point

    def simpson(self, left: Any, middle: Any, right: Any) -> Any:
        return (left + 4.0 * middle + right) * ((self.right.at - self.left.at) / 6.0)

    @property
    def gap(self) -> float:
        """What the rule misses of F(right) - F(left), which the integral of the derivative is exactly."""
        integral = self.simpson(self.left.slope, self.middle.slope, self.right.slope)
        return abs(float(integral) - (self.right.score - self.left.score))

    @property
    def integral(self) -> Tensor:
        """Of the gradient, shape (C, H, W) float64."""
        parts = (point.gradient.double() for point in (self.left, self.middle, self.right))
        return torch.as_tensor(self.simpson(*parts))


@dataclass(frozen=True, slots=True)
class _Path:
    """The straight line from a baseline to one image, for one of its targets."""

    subject: _Subject
    number: int
    column: int
    start: Tensor
    batch_size: int

    @property
    def difference(self) -> Tensor:
        return self.subject.images[self.number] - self.start

    def points(self, fractions: Sequence[float]) -> Iterator[_Point]:
        """Scores and gradients there, from ``batch_size`` at a time."""
        for first in range(0, len(fractions), self.batch_size):
            chunk = fractions[first : first + self.batch_size]
            steps = self.start.new_tensor(chunk)[:, None, None, None]
            scores, gradients = self.subject.gradients(self.start + steps * self.difference, self.number, self.column)
            slopes = (gradients[:, 0].double() * self.difference.double()).sum((1, 2, 3))
            rows = zip(chunk, scores[:, 0].double().tolist(), slopes.tolist(), gradients[:, 0], strict=True)
            yield from (_Point(*row) for row in rows)


def _adaptive(path: _Path, tolerance: float, max_steps: int) -> tuple[Tensor, float, int]:
    """Integral of the gradient along a path (C, H, W), F(end) - F(start), and the gradients that it took.

    Nested bisection under local completeness. Of every interval the true integral of the derivative is known: it is the
    difference of the scores at its ends. What Simpson's rule misses of it is the interval's gap, and the gaps together
    bound the gap of the whole. Intervals with small gaps (together at most half of what is still allowed) are added up
    and their gradients dropped, the others bisected, those with the largest gaps first, until all gaps together are
    below the tolerance or the gradients are spent. Every gradient is used again in the halves.
    """
    count = min(FIRST_INTERVALS, (max_steps - 1) // 2)
    known = list(path.points([number / (2 * count) for number in range(2 * count + 1)]))
    steps = len(known)
    intervals = [_Interval(*known[2 * i : 2 * i + 3]) for i in range(count)]
    first, last = known[0].score, known[-1].score
    del known
    allowed = max(tolerance * abs(last - first), ROUNDING * max(abs(first), abs(last)))
    integral = torch.zeros_like(path.start, dtype=torch.float64)
    while steps + 2 <= max_steps and sum(interval.gap for interval in intervals) > allowed:
        share = allowed / (2 * len(intervals))
        small = [interval for interval in intervals if interval.gap <= share]
        large = [interval for interval in intervals if interval.gap > share]
        for interval in small:
            integral += interval.integral
            allowed -= interval.gap
        large.sort(key=lambda interval: -interval.gap)
        split = large[: (max_steps - steps) // 2]
        ends = [(part.left, part.middle) for part in split] + [(part.middle, part.right) for part in split]
        middles = list(path.points([(left.at + right.at) / 2 for left, right in ends]))
        steps += len(middles)
        halves = [_Interval(left, middle, right) for (left, right), middle in zip(ends, middles, strict=True)]
        intervals = large[len(split) :] + halves
    for interval in intervals:
        integral += interval.integral
    return integral, last - first, steps


def _fixed(path: _Path, steps: int) -> tuple[Tensor, float, int]:
    """The same by Gauss and Legendre's rule."""
    roots, weights = np.polynomial.legendre.leggauss(steps)
    integral = torch.zeros_like(path.start, dtype=torch.float64)
    for point, weight in zip(path.points(((1.0 + roots) / 2.0).tolist()), weights, strict=True):
        integral += point.gradient.double() * (weight / 2.0)
    first, last = path.points([0.0, 1.0])
    return integral, last.score - first.score, steps


def integrated_gradients(
    subject: _Subject,
    *,
    baseline: Tensor | float | None = None,
    steps: int | None = None,
    tolerance: float = TOLERANCE,
    max_steps: int = 512,
    batch_size: int = 16,
) -> Attribution:
    """(x - x0) times the mean of dY/dx along the straight line from x0 to x: adds up to Y(x) - Y(x0).

    Args:
        subject: what is explained.
        baseline: x0, a number or a tensor that broadcasts to the images; None for zeros.
        steps: gradients by Gauss and Legendre's rule; None for as many as the tolerance needs, see :func:`_adaptive`.
        tolerance: gap up to which the sum counts as complete.
        max_steps: gradients per image and target, at least 3. So many gradients of one image are held at most.
        batch_size: images in one forward.

    Source: Sundararajan et al. 2017, arXiv:1703.01365.
    """
    _check(max_steps=max_steps, batch_size=batch_size, steps=1 if steps is None else steps)
    if max_steps < 3 or not tolerance > 0:
        raise LayerError(
            f"max_steps={max_steps} and tolerance={tolerance!r}: give at least 3 gradients, and more than 0"
        )
    images = subject.images
    try:
        start = torch.as_tensor(0.0 if baseline is None else baseline).detach().to(images).expand_as(images)
    except RuntimeError as error:
        raise LayerError(
            f"a baseline of shape {tuple(torch.as_tensor(baseline).shape)} does not broadcast to images of shape "
            f"{tuple(images.shape)}; give a number, or one value per channel as (C, 1, 1)"
        ) from error
    targets = subject.settle().indices.shape[1]
    values = images.new_zeros(len(images), targets, *images.shape[1:], dtype=torch.float64)
    whole = torch.zeros(len(images), targets, dtype=torch.float64)
    spent = torch.zeros(len(images), targets, dtype=torch.int64)
    for number in range(len(images)):
        for column in range(targets):
            path = _Path(subject, number, column, start[number], batch_size)
            found = _adaptive(path, tolerance, max_steps) if steps is None else _fixed(path, steps)
            values[number, column], whole[number, column], spent[number, column] = found
    values *= (images - start)[:, None]
    gap = _relative(values.sum((2, 3, 4)).cpu() - whole, whole)
    missing = int((~(gap <= tolerance)).sum())
    note = (
        f"{missing} of {gap.numel()} sums miss the difference of scores by more than {tolerance:g} of it (at most "
        f"{gap.max():.2g}, after up to {int(spent.max())} gradients); allow more steps"
    )
    return subject.found(values, gap, spent, note if missing else "")


# ----- full gradients


def _bias(input: Any, weight: Any, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor | None:
    return bias


def _normalization_bias(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """What BatchNorm by running statistics adds: beta - mean gamma / sqrt(var + eps), shape (C,)."""
    if training or running_mean is None or running_var is None:
        return None
    shift = -running_mean.double() / (running_var.double() + eps).sqrt()
    shift = shift if weight is None else shift * weight
    return (shift if bias is None else shift + bias).to(running_mean.dtype)


_BIASES: Mapping[str, Callable[..., Tensor | None]] = {
    **{f"conv{transposed}{axes}d": _bias for transposed in ("", "_transpose") for axes in (1, 2, 3)},
    "linear": _bias,
}


class _Biases(TorchFunctionMode):
    """While open in a forward, makes every bias report b dY/d(output) in the backward.

    Attributes:
        total: sum of all of them, shape (N,) float64.
        picture: sum of psi of those with positions, shape (N, H, W).
        others: names of operations met that are more than linear maps and biases where they are.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.others: list[str] = []
        self.images = images
        self.begin()

    def begin(self) -> None:
        """Forget everything, for the next backward."""
        self.total = self.images.new_zeros(len(self.images), dtype=torch.float64)
        self.picture = torch.zeros_like(self.images[:, 0])

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        name = _plain_name(function)
        if name in NOT_HOMOGENEOUS and name not in self.others:
            self.others.append(name)
        rectified = _rectified(function, arguments, keywords)
        read = _normalization_bias if function is functional.batch_norm else _BIASES.get(name)
        output = function(*arguments, **keywords)
        if not isinstance(output, Tensor) or output.grad_fn is None:
            return output
        if rectified is not None and rectified.ceiling < math.inf:
            # saturated units are constants: the implicit bias of a piecewise linear function
            output.register_hook(partial(self._reduce, output.detach() == rectified.ceiling, rectified.ceiling))
        bias = None if read is None else read(*arguments, **keywords)
        if bias is not None:
            axes = 0 if name == "linear" else output.ndim - 2
            bias = bias.detach().reshape(-1, *[1] * axes)
            output.register_hook(partial(self._reduce, bias, 1.0, channels_last=name == "linear"))
        return output

    def _reduce(self, bias: Tensor, factor: float, gradient: Tensor, channels_last: bool = False) -> None:
        if len(gradient) != len(self.images):
            return  # rows that are no images: they are missing in the sum, as the gap will say
        with torch.no_grad():
            terms = (gradient * bias).mul_(factor)
            self.total += terms.flatten(1).sum(1, dtype=torch.float64)
            if terms.ndim == 4:
                plane = _rescaled(terms.movedim(-1, 1) if channels_last else terms).sum(1, keepdim=True)
                size = self.picture.shape[1:]
                self.picture += functional.interpolate(plane, size, mode="bilinear", align_corners=True)[:, 0]


def _rescaled(terms: Tensor) -> Tensor:
    """|f| in [0, 1] per image, over all its channels at once; zeros where it is constant."""
    size = terms.abs()
    low, high = size.amin((1, 2, 3), keepdim=True), size.amax((1, 2, 3), keepdim=True)
    return (size - low) / torch.where(high > low, high - low, 1.0)


def full_grad(subject: _Subject) -> Attribution:
    """psi(x dY/dx) plus the sum over layers and channels of psi(b dY/d(output)), b every bias.

    For a piecewise linear network Y = sum(x dY/dx) + sum(b dY/d(output)); the gap is what is missing of that. Biases
    are those of convolutions and linear layers, what BatchNorm adds in evaluation mode, and the ceilings of saturated
    ReLU6 (the paper's implicit biases). psi is the paper's, in the form of its authors' code: absolute values, scaled
    to [0, 1] per image over all channels of the layer together, bilinear with align_corners=True. Their code adds 1e-6
    to the range that it divides by; here nothing is added, so the scale of the scores does not matter.

    Values are psi(x dY/dx) of each channel plus an equal share of the biases' picture: their sum over the channels is
    the paper's map.

    Source: Srinivas & Fleuret 2019, eq. 3 and 7, arXiv:1905.00780.
    """
    leaf = subject.images.detach().requires_grad_()
    biases = _Biases(subject.images)
    with biases:
        scores = subject.scores(leaf)
    values, missed = [], []
    for column in range(scores.shape[1]):
        biases.begin()
        products = subject.images * subject.gradient(scores[:, column], leaf, again=column + 1 < scores.shape[1])
        values.append(_rescaled(products) + biases.picture[:, None] / products.shape[1])
        missed.append(
            scores[:, column].detach().double() - products.flatten(1).sum(1, dtype=torch.float64) - biases.total
        )
    gap = _relative(torch.stack(missed, 1), scores.detach().double()).cpu()
    missing = int((~(gap <= TOLERANCE)).sum())
    note = f"gradients and biases miss up to {gap.max():.2g} of the score" + (
        f": not piecewise linear are {', '.join(biases.others)}" if biases.others else ""
    )
    return subject.found(torch.stack(values, 1), gap, note=note if missing else "")


_METHODS: Mapping[str, Callable[..., Attribution]] = {
    "saliency": saliency,
    "input-x-gradient": input_x_gradient,
    "guided-backprop": partial(guided_gradient, rule="guided-backprop"),
    "deconvnet": partial(guided_gradient, rule="deconvnet"),
    "integrated-gradients": integrated_gradients,
    "smooth-grad": smooth_grad,
    "guided-grad-cam": guided_grad_cam,
    "full-grad": full_grad,
}


def attribute(
    model: nn.Module,
    images: Tensor,
    method: str,
    targets: Targets = None,
    layer: str = "last",
    seed: int = 0,
    forward: Forward | None = None,
    **options: Any,
) -> Attribution:
    """What each entry of the images adds to the targets' scores, with what is known of the result's quality.

    Args:
        model: any network; nothing of it is changed. Half-precision weights are copied to float32 first.
        images: preprocessed, shape (N, C, H, W).
        method: a name in :data:`interpret.functional.cam.ATTRIBUTION_METHODS`.
        targets: None for the predicted class of each image, an int, one int per image, an (N, R) array, or a callable
            ``outputs -> (N,)`` scores; see :func:`interpret.targets.resolve`. They are settled on the images as given,
            also where a method looks at altered ones.
        layer: of guided-grad-cam: one call; see :func:`interpret.tracing.select`.
        seed: of smooth-grad's noise, and of networks that draw random numbers.
        forward: ``(model, images) -> output`` where it is not ``model(images)``, for any number of images.
        options: of the method: ``baseline``, ``steps``, ``tolerance``, ``max_steps``, ``batch_size`` of
            integrated-gradients (see :func:`integrated_gradients`), ``samples``, ``noise``, ``batch_size`` of
            smooth-grad (see :func:`smooth_grad`).

    Raises:
        LayerError: method, option, target or layer do not fit; the score has no gradient; nothing can be guided.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False), nn.Softplus())
    >>> found = attribute(net, torch.ones(1, 1, 2, 2), "integrated-gradients", targets=1)
    >>> found.values.shape, bool(found.gap < 1e-3)
    (torch.Size([1, 1, 2, 2]), True)
    """
    check_methods([method], ATTRIBUTION_METHODS)
    known = tuple(getattr(_METHODS[method], "__kwdefaults__", None) or ())  # a partial has none
    for name in options:
        if name not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise LayerError(f"{method} has no option {name!r}{did_you_mean(name, known)}; {there}")
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise LayerError(
            f"images of shape {tuple(images.shape)} and type {images.dtype} have no gradient; "
            "give preprocessed floating-point images, shape (N, C, H, W)"
        )
    model, images = in_float32(unwrap(model), images)
    with undisturbed(model, seed):
        subject = _Subject(model, images.detach().clone(), targets, layer, seed, forward)
        return _METHODS[method](subject, **options)


def attribution(
    model: nn.Module,
    images: Tensor,
    method: str,
    targets: Targets = None,
    layer: str = "last",
    seed: int = 0,
    forward: Forward | None = None,
    **options: Any,
) -> Tensor:
    """The values of :func:`attribute`, shape (N, C, H, W) or (N, R, C, H, W); a limit of theirs is logged as a warning.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> attribution(net, torch.rand(2, 3, 8, 8), "saliency").shape
    torch.Size([2, 3, 8, 8])
    """
    found = attribute(model, images, method, targets, layer, seed, forward, **options)
    if found.note:
        LOGGER.warning("%s: %s", method, found.note)
    return found.values
