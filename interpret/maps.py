"""Class activation maps of every layer from one forward and one backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from interpret.errors import LayerError, did_you_mean
from interpret.evidence import Call
from interpret.functional.cam import CAM_METHODS, check_methods, eigen_cam, gradient_maps
from interpret.hooks import backward, gradient_leaf, undisturbed, visiting
from interpret.targets import target_scores
from interpret.tracing import Forward, run, select, trace, unwrap

DEFAULT_METHODS = (*CAM_METHODS, "eigen-cam", "eigen-grad-cam")


class MapPass:
    """Takes maps at some calls during one forward, and one backward per target, of a chunk of images.

    Activations and gradients are reduced to (n, h, w) maps inside the backward and dropped at once: kept are only the
    maps.

    Args:
        calls: where; each needs a spatial output.
        methods: names in :data:`interpret.functional.cam.METHODS`.

    Attributes:
        maps: (method, key) -> one (n, h, w) float32 CPU tensor per target; a call that the target does not depend on
            has none from gradients.
    """

    def __init__(self, calls: Sequence[Call], methods: Sequence[str]) -> None:
        self.keys = frozenset(call.key for call in calls)
        self.methods = check_methods(methods)
        self.gradient_methods = tuple(method for method in self.methods if method != "eigen-cam")
        self.maps: dict[tuple[str, str], list[Tensor]] = {}
        self._leaves: list[Tensor] = []
        self._handles = ExitStack()

    def attach(self, call: Call, output: Tensor) -> Tensor | None:
        """Watch one call's output inside the forward; what is returned, if anything, must replace it."""
        if call.key not in self.keys or output.ndim != 4:
            return None
        if not self.gradient_methods:
            self._keep("eigen-cam", call, eigen_cam(_features(output.detach(), call)))
            return None
        leaf, new = gradient_leaf(output, call.overwritten)
        if new is not None:
            self._leaves.append(leaf)
        activation = leaf.detach()
        if call.overwritten and new is None:
            activation = activation.clone()
        if "eigen-cam" in self.methods:
            self._keep("eigen-cam", call, eigen_cam(_features(activation, call)))
        self._handles.callback(leaf.register_hook(lambda gradient: self._reduce(call, activation, gradient)).remove)
        return new

    def backward(self, scores: Tensor) -> None:
        """Explain scores of shape (n, R), one backward per target."""
        if self.gradient_methods and self._leaves and scores.requires_grad:
            with self._handles:
                for target in range(scores.shape[1]):
                    backward(scores[:, target].sum(), self._leaves, again=target + 1 < scores.shape[1])
        self._handles.close()
        self._leaves.clear()

    def _reduce(self, call: Call, activation: Tensor, gradient: Tensor) -> None:
        with torch.no_grad():
            maps = gradient_maps(_features(activation, call), _features(gradient, call), self.gradient_methods)
            for method, map_ in maps.items():
                self._keep(method, call, map_)

    def _keep(self, method: str, call: Call, map_: Tensor) -> None:
        self.maps.setdefault((method, call.key), []).append(map_.cpu())


def _features(tensor: Tensor, call: Call) -> Tensor:
    """As (n, C, H, W) float32."""
    return (tensor if call.layout == "NCHW" else tensor.permute(0, 3, 1, 2)).float()


class Maps(Mapping[tuple[str, str], Tensor]):
    """Raw class activation maps by (method, call key).

    Attributes:
        layers: call keys, in order of completion.
        methods: method names.
        targets: class indices explained, shape (N, R) int64; -1 for a callable target.
    """

    def __init__(self, maps: Mapping[tuple[str, str], Tensor], targets: Tensor) -> None:
        self._maps = dict(maps)
        self.targets = targets
        self.methods = tuple(dict.fromkeys(method for method, _ in self._maps))
        self.layers = tuple(dict.fromkeys(key for _, key in self._maps))

    def __getitem__(self, item: tuple[str, str]) -> Tensor:
        """One method's maps at one layer, float32 on the CPU: (N, h, w), or (N, R, h, w) for several targets per image.

        Raises:
            LayerError: there is none; the message names the closest.
        """
        if item in self._maps:
            return self._maps[item]
        method, layer = item
        known, word = (self.layers, layer) if method in self.methods else (self.methods, method)
        raise LayerError(
            f"no map of {method!r} at layer {layer!r}{did_you_mean(word, known) or f'; there are {list(known)}'}"
        )

    def __contains__(self, item: object) -> bool:
        return item in self._maps

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def heatmap(self, method: str, layer: str, size: tuple[int, int]) -> Tensor:
        """The maps in [0, 1] per image at size (H, W), float32: clamp, scale, bilinear, scale again; no epsilon."""
        raw = self[method, layer]
        scaled = _unit(raw.clamp_min(0.0))
        flat = scaled.reshape(-1, 1, *scaled.shape[-2:])
        resized = functional.interpolate(flat, size, mode="bilinear", align_corners=False)
        return _unit(resized.reshape(*scaled.shape[:-2], *size))


def _unit(maps: Tensor) -> Tensor:
    """(z - min) / (max - min) per map, zeros where max == min."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1.0), 0.0)


def default_layers(calls: Sequence[Call]) -> tuple[Call, ...]:
    """Every convolution with a spatial output."""
    return tuple(call for call in calls if call.kind == "convolution" and has_maps(call))


def has_maps(call: Call) -> bool:
    """Whether a call's output has positions to make a map of."""
    return call.spatial_shape is not None


def class_activation_maps(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[str] = ("grad-cam",),
    layers: Sequence[str] | str | None = None,
    targets: Any = None,
    forward: Forward | None = None,
) -> Maps:
    """Class activation maps of many layers by many methods, from one forward and one backward per target.

    Args:
        model: any network; nothing of it is changed.
        images: preprocessed, shape (N, C, H, W).
        methods: method names; see :data:`interpret.functional.cam.METHODS`.
        layers: module names, call keys, globs, "last", "stages"; None for every convolution.
        targets: None for the predicted class of each image, an int, one int per image, an (N, R) array, or a callable
            ``outputs -> (N,)`` scores.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.

    Returns:
        Raw maps at each layer's own resolution.

    Raises:
        LayerError: a method, layer or target does not fit; a named layer has no spatial output.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> class_activation_maps(net, torch.rand(2, 3, 8, 8), layers="last")["grad-cam", "0"].shape
    torch.Size([2, 6, 6])
    """
    model = unwrap(model)
    check_methods(methods)
    with undisturbed(model):
        table = trace(model, images, forward).calls
        calls = default_layers(table) if layers is None else select(table, layers)
        flat = [call.key for call in calls if not has_maps(call)]
        if layers is not None:
            named = {layers} if isinstance(layers, str) else set(layers)
            refused = [key for key in flat if key in named] or (flat if len(flat) == len(calls) else [])
            if refused:
                raise LayerError(
                    f"layer {refused[0]!r} has no spatial output, so no map; choose a layer with an (N, C, H, W) output"
                )
            calls = tuple(call for call in calls if has_maps(call))
        if not calls:
            raise LayerError("the model has no convolution with a spatial output; name layers with one")
        taken = MapPass(calls, methods)
        with visiting(model, calls, lambda call, module, source, output: taken.attach(call, output)):
            scores, indices = target_scores(run(model, images, forward), targets)
        taken.backward(scores)
    many = scores.shape[1] > 1
    result: dict[tuple[str, str], Tensor] = {}
    for method in taken.methods:
        for call in calls:
            parts = taken.maps.get((method, call.key))
            if parts:
                stack = torch.stack(parts * scores.shape[1] if method == "eigen-cam" else parts, 1)
                result[method, call.key] = stack if many else stack[:, 0]
    return Maps(result, indices)
