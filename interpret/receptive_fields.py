"""Receptive fields: which pixels of the input a position of an output depends on, followed operation by operation.

The arithmetic is that of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill
2019: along each axis a convolution or pooling of kernel k, stride s, padding p and dilation d turns a field of size r,
stride j and start b into r + (k - 1) d j, j s and b - p j. It is applied to torch's own operations while a network
runs, so branches, functional calls and tensors that change their axes are followed too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from interpret.evidence import ReceptiveField


@dataclass(frozen=True, slots=True)
class _Axis:
    """The fields of the positions along one axis of the image: how many, size, stride, and where the first starts."""

    count: int
    size: float = 1
    stride: float = 1
    start: float = 0

    def window(self, kernel: int, stride: int, padding: int, dilation: int, count: int) -> _Axis:
        """Behind a sliding window that leaves `count` positions."""
        size = self.size + (kernel - 1) * dilation * self.stride
        return _Axis(count, size, self.stride * stride, self.start - padding * self.stride)

    def union(self, other: _Axis) -> _Axis | None:
        """What a position depends on that sees both; None where the positions do not lie on one grid."""
        if self.stride != other.stride or self.count != other.count:
            return None
        start = min(self.start, other.start)
        stop = max(self.start + self.size, other.start + other.size)
        return _Axis(self.count, stop - start, self.stride, start)

    def whole(self) -> _Axis:
        """One position that sees all of these."""
        return _Axis(1, self.size + (self.count - 1) * self.stride, self.stride * self.count, self.start)


@dataclass(frozen=True, slots=True)
class _Track:
    """What a tensor's entries depend on.

    Attributes:
        rows, columns: the fields along the height and the width of the image.
        axes: where rows and columns lie in the tensor, counted from the end (-2, -1); one axis twice where both are
            flattened into it; None where the tensor describes the whole of the field (a vector).
    """

    rows: _Axis
    columns: _Axis
    axes: tuple[int, int] | None

    def vector(self) -> _Track:
        return _Track(self.rows.whole(), self.columns.whole(), None) if self.axes else self


_UNKNOWN = None  # of a tensor that depends on the input in a way that is not followed


class ReceptiveFields(TorchDispatchMode):
    """While open, follows from which pixels of an image each tensor comes.

    Statistics over the whole image that only scale or shift a position (the gates of squeeze-and-excitation, group
    normalization) do not count, as is usual. What is not followed (attention, transposed and deformable convolutions,
    recurrence) has no field: none is better than a wrong one.

    Args:
        image: the input, shape (1, C, H, W).
    """

    supports_higher_order_operators = True

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tracks: WeakIdKeyDictionary = WeakIdKeyDictionary()
        if image.ndim == 4:
            self._tracks[image] = _Track(_Axis(image.shape[2]), _Axis(image.shape[3]), (-2, -1))

    def of(self, tensor: Tensor) -> ReceptiveField | None:
        """The field of the positions of a tensor; None where it is not known."""
        track: _Track | None = self._tracks.get(tensor)
        if track is None or (track.axes is not None and track.axes[0] > track.axes[1]):  # rows and columns swapped
            return None
        rows, columns = track.rows, track.columns
        stride = (0, 0) if track.axes is None else (_plain(rows.stride), _plain(columns.stride))
        return ReceptiveField(
            size=(_plain(rows.size), _plain(columns.size)),
            stride=stride,
            start=(_plain(rows.start), _plain(columns.start)),
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and follow it."""
        kwargs = kwargs or {}
        # looked up first: an operation in place gives its own input another field
        inputs = tree_leaves((args, kwargs))
        known = [(x, self._tracks[x]) for x in inputs if isinstance(x, Tensor) and x in self._tracks]
        outputs = func(*args, **kwargs)
        if not known:
            return outputs
        if not isinstance(func, torch._ops.OpOverload):  # control flow as one operation
            for output in tree_leaves(outputs):
                if isinstance(output, Tensor):
                    self._tracks[output] = _UNKNOWN
            return outputs
        name = func.overloadpacket.__name__.removeprefix("_").removesuffix("_")
        several = isinstance(outputs, tuple | list)
        for output in outputs if several else (outputs,):
            if isinstance(output, Tensor):
                if func._schema.is_mutable and any(tensor is not output for tensor, _ in known):
                    self._forget_views(output)
                try:
                    track = self._follow(name, func, args, known, output)
                except Exception:  # a rule that does not fit what ran must not end an audit
                    track = _UNKNOWN
                self._tracks[output] = _fitting(track, output)
            if several and name not in _SEVERAL:
                break  # behind the result come indices and saved statistics
        return outputs

    def _forget_views(self, written: Tensor) -> None:
        """Other tensors of the memory that something was written to: parts of them now come from elsewhere."""
        if written._base is not None:
            self._tracks[written._base] = _UNKNOWN
        storage = written.untyped_storage()._cdata
        for tensor in list(self._tracks):
            if tensor is not written and tensor.untyped_storage()._cdata == storage:
                self._tracks[tensor] = _UNKNOWN

    def _follow(
        self, name: str, func: Any, args: Sequence[Any], known: Sequence[tuple[Tensor, _Track | None]], output: Tensor
    ) -> _Track | None:
        tracks = [(tensor, track) for tensor, track in known if track is not None]
        if len(tracks) < len(known):
            return _UNKNOWN
        if all(track.axes is None for _, track in tracks):
            return _bounding([track for _, track in tracks])  # whatever is made of vectors describes as much
        if name == "cat":
            axis = (args[1] if len(args) > 1 else 0) % output.ndim - output.ndim
            return _UNKNOWN if any(track.axes and axis in track.axes for _, track in tracks) else _joined(tracks)
        if torch.Tag.pointwise in func.tags or name in _POINTWISE:
            return _joined(tracks)
        rule = _RULES.get(name)
        source = args[1 if name == "addmm" else 0]
        if rule is None or len(tracks) > 1 or source is not tracks[0][0]:  # also a weight times an input
            return _UNKNOWN
        return rule(args, tracks[0][1], output)


def _plain(value: float) -> float:
    return int(value) if value == int(value) else value


def _fitting(track: _Track | None, output: Tensor) -> _Track | None:
    """The track, where the tensor has as many positions as it says; one position for all is a vector."""
    if track is None or track.axes is None:
        return track
    counts = track.rows.count, track.columns.count
    if track.axes[0] == track.axes[1]:
        fits = output.shape[track.axes[0]] == counts[0] * counts[1]
    else:
        fits = all(output.shape[axis] == count for axis, count in zip(track.axes, counts, strict=True))
    return track if fits else track.vector() if counts == (1, 1) else _UNKNOWN


def _bounding(tracks: Sequence[_Track]) -> _Track:
    """A vector that describes all that the tracks describe."""
    axes = []
    for parts in ([track.vector().rows for track in tracks], [track.vector().columns for track in tracks]):
        start = min(part.start for part in parts)
        size = max(part.start + part.size for part in parts) - start
        axes.append(replace(parts[0], start=start, size=size))
    return _Track(axes[0], axes[1], None)


def _joined(tracks: Sequence[tuple[Tensor, _Track]]) -> _Track | None:
    """Of several tensors position by position. One value for all positions is a gate and does not count."""
    maps = [track for _, track in tracks if track.axes and (track.rows.count, track.columns.count) != (1, 1)]
    if not maps:
        return tracks[0][1] if len(tracks) == 1 else _bounding([track for _, track in tracks])
    axes = maps[0].axes
    assert axes is not None
    for tensor, track in tracks:
        if track not in maps and any(-axis <= tensor.ndim and tensor.shape[axis] > 1 for axis in axes):
            return _bounding([track for _, track in tracks])  # tokens that were mixed with all others
    rows, columns = maps[0].rows, maps[0].columns
    for track in maps[1:]:
        up, across = rows.union(track.rows), columns.union(track.columns)
        if up is None or across is None or track.axes != axes:
            return _UNKNOWN
        rows, columns = up, across
    return _Track(rows, columns, axes)


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, tuple | list) else [value]
    return (values[0], values[-1]) if values else (0, 0)


def _window(track: _Track, output: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> _Track | None:
    """Convolution and pooling over (N, C, H, W)."""
    if output.ndim != 4 or track.axes != (-2, -1):
        return _UNKNOWN
    axes = [
        axis.window(*sizes, count)
        for axis, *sizes, count in zip(
            (track.rows, track.columns),
            *map(_pair, (kernel, stride, padding, dilation)),
            output.shape[-2:],
            strict=True,
        )
    ]
    return _Track(axes[0], axes[1], track.axes)


def _convolution(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    _, weight, _, stride, padding, dilation, transposed, *_ = args
    return _UNKNOWN if transposed else _window(track, output, weight.shape[2:], stride, padding, dilation)


def _pooling(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    given: list[Any] = [*args[1:], *([], 0)[len(args) - 2 :]]
    kernel, stride, padding, *more = given
    dilation = more[0] if more and not isinstance(more[0], bool) else 1  # avg_pool2d has ceil_mode there
    return _window(track, output, kernel, stride or kernel, padding, dilation)


def _adaptive_pooling(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    def windows(axis: _Axis, count: int, _: float | None) -> tuple[float, list[tuple[int, int]]]:
        step = axis.count / count
        return step, [(i * axis.count // count, -(-(i + 1) * axis.count // count)) for i in range(count)]

    return _resampled(track, output, (None, None), windows)


def _upsampling(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    """Nearest neighbour and bilinear interpolation, to larger and to smaller sizes."""
    bilinear = len(args) > 2 and isinstance(args[2], bool)
    corners = bilinear and args[2]
    given = args[3:] if bilinear else args[2:]  # two factors, or a list of them
    factors = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given

    def windows(axis: _Axis, count: int, factor: float | None) -> tuple[float, list[tuple[int, int]]]:
        step = 1 / factor if factor else axis.count / count
        if corners:
            step = (axis.count - 1) / (count - 1) if count > 1 else 0
        last, spans = axis.count - 1, []
        for i in range(count):
            place = i * step if corners or not bilinear else max(0.0, (i + 0.5) * step - 0.5)
            first = i if axis.count == count else min(int(place), last)
            spans.append((first, min(first + 1 + (bilinear and axis.count != count), axis.count)))
        return step, spans

    return _resampled(track, output, (*factors, None, None)[:2], windows)


def _resampled(
    track: _Track,
    output: Tensor,
    factors: Sequence[float | None],
    windows: Callable[[_Axis, int, float | None], tuple[float, list[tuple[int, int]]]],
) -> _Track | None:
    """Positions that see uneven windows of the positions before: the widest field, on one stride."""
    if track.axes != (-2, -1):
        return _UNKNOWN
    if (track.rows.count, track.columns.count) == (1, 1):
        return track.vector()
    axes = []
    for axis, count, factor in zip((track.rows, track.columns), output.shape[-2:], factors, strict=True):
        step, spans = windows(axis, count, factor)
        stride = axis.stride * step
        start = min(first * axis.stride - i * stride for i, (first, _) in enumerate(spans))
        stop = max((end - 1) * axis.stride + axis.size - i * stride for i, (_, end) in enumerate(spans))
        axes.append(_Axis(count, stop - start, stride, axis.start + start))
    return _Track(axes[0], axes[1], track.axes)


def _same(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    return track


def _softmax(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    return _UNKNOWN if track.axes and args[1] % output.ndim - output.ndim in track.axes else track


def _reduction(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    source = args[0]
    given = args[1] if len(args) > 1 else None
    given = range(source.ndim) if given is None or given == [] else [given] if isinstance(given, int) else given
    over = {axis % source.ndim - source.ndim for axis in given}
    if track.axes is None or over >= set(track.axes):
        return track.vector()
    if over & set(track.axes):
        return _UNKNOWN
    if output.ndim == source.ndim:
        return track
    moved = [axis + sum(other > axis for other in over) for axis in track.axes]
    return replace(track, axes=(moved[0], moved[1]))


def _permutation(order: Sequence[int], track: _Track) -> _Track:
    if track.axes is None:
        return track
    rank = len(order)
    places = [[axis % rank for axis in order].index(axis % rank) - rank for axis in track.axes]
    return replace(track, axes=(places[0], places[1]))


def _permute(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    return _permutation(args[1], track)


def _transpose(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    order = list(range(output.ndim))
    first, second = (args[1], args[2]) if len(args) > 2 else (0, 1)
    if output.ndim > 1:
        order[first], order[second] = order[second], order[first]
    return _permutation(order, track)


def _reshape(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    """Positions are found again by their number and by how many entries follow each."""
    if track.axes is None:
        return track
    before, after = args[0].shape, output.shape

    def follow(shape: Sequence[int], axis: int) -> int:
        return math.prod(shape[axis + 1 :]) if axis != -1 else 1

    def find(count: int, following: int) -> int | None:
        return next(
            (
                axis
                for axis in range(-1, -len(after) - 1, -1)
                if after[axis] == count and follow(after, axis) == following
            ),
            None,
        )

    height, width = track.rows.count, track.columns.count
    inner = follow(before, track.axes[1])
    apart = track.axes[0] != track.axes[1]
    if apart:
        up, across = find(height, follow(before, track.axes[0])), find(width, inner)
    else:
        up, across = find(height, width * inner), find(width, inner)
    if up is not None and across is not None and (up != across or height * width == 1):
        return replace(track, axes=(up, across))
    flat = find(height * width, inner) if not apart or follow(before, track.axes[0]) == width * inner else None
    if flat is not None:
        return replace(track, axes=(flat, flat))
    if len([size for size in after if size > 1]) <= 1 or height * width == 1:
        return track.vector()
    return _UNKNOWN


def _select(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    if track.axes is None:
        return track
    axis = args[1] % args[0].ndim - args[0].ndim
    if axis in track.axes:
        return _UNKNOWN
    moved = [place + (axis > place) for place in track.axes]
    return replace(track, axes=(moved[0], moved[1]))


def _slice(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    given: list[Any] = [*args[1:], *(0, None, None, 1)[len(args) - 1 :]]
    axis, start, _, step = given
    axis = axis % output.ndim - output.ndim
    if track.axes is None or axis not in track.axes:
        return track
    if track.axes[0] == track.axes[1]:
        return _UNKNOWN
    first = max(0, (start or 0) + (args[0].shape[axis] if (start or 0) < 0 else 0))

    def cut(of: _Axis) -> _Axis:
        return _Axis(output.shape[axis], of.size, of.stride * step, of.start + first * of.stride)

    return replace(track, rows=cut(track.rows)) if axis == track.axes[0] else replace(track, columns=cut(track.columns))


def _split(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    axis = (args[2] if len(args) > 2 else 0) % output.ndim - output.ndim
    return _UNKNOWN if track.axes and axis in track.axes else track


def _pad(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    if track.axes is None or track.axes[0] == track.axes[1]:
        return _UNKNOWN
    amounts = list(args[1])

    def padded(of: _Axis, axis: int) -> _Axis:
        before = amounts[2 * (-axis - 1)] if 2 * -axis <= len(amounts) else 0
        return replace(of, count=output.shape[axis], start=of.start - before * of.stride)

    return replace(track, rows=padded(track.rows, track.axes[0]), columns=padded(track.columns, track.axes[1]))


def _expand(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    return (
        track if track.axes is None or args[0].shape[min(track.axes) :] == output.shape[min(track.axes) :] else _UNKNOWN
    )


def _product(args: Sequence[Any], track: _Track, output: Tensor) -> _Track | None:
    """A matrix product with weights contracts the last axis."""
    return track.vector() if track.axes is not None and -1 in track.axes else track


_SEVERAL = ("split", "split_with_sizes", "unbind", "chunk", "unsafe_split", "unsafe_chunk")
_POINTWISE = ("hardswish", "prelu_kernel", "mish", "native_dropout", "copy", "to_copy")
_RULES: dict[str, Callable[[Sequence[Any], _Track, Tensor], _Track | None]] = {
    "convolution": _convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool2d", "avg_pool2d"), _pooling),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pooling),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d"), _upsampling),
    **dict.fromkeys(
        ("native_batch_norm", "native_batch_norm_legit_no_training", "batch_norm_with_update", "batch_norm_no_update",
         "cudnn_batch_norm", "native_group_norm", "native_layer_norm", "clone", "detach", "alias", "contiguous",
         "lift_fresh", "dropout"),
        _same,
    ),
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduction),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    **dict.fromkeys(("view", "unsafe_view", "reshape", "reshape_alias", "unsqueeze", "squeeze"), _reshape),
    "select": _select,
    "slice": _slice,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), _split),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    "expand": _expand,
    **dict.fromkeys(("addmm", "mm", "bmm"), _product),
}  # fmt: skip
