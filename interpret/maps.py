"""Class activation maps of every layer, from one forward and one backward, or by passes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional

from interpret.attention import rollout_maps
from interpret.errors import LayerError, did_you_mean
from interpret.evidence import Call
from interpret.functional.cam import ONE_PASS_METHODS, check_methods, eigen_cam, gradient_maps
from interpret.hooks import backward, gradient_leaf, in_float32, observed, undisturbed, visiting, with_gradients
from interpret.perturbation import Progress, Scene, ablation_maps, head_maps, ignore, pooled_call, score_maps
from interpret.replay import Memory
from interpret.targets import Target, Targets, of_image, refuse_nothing, resolve
from interpret.tracing import Forward, features, run, select, trace

DEFAULT_METHODS = ONE_PASS_METHODS
OWN_PASSES: Mapping[str, Callable[[Scene, Call, Progress], Tensor]] = {
    "cam": head_maps,
    "ablation-cam": ablation_maps,
    "score-cam": score_maps,
    "attention-rollout": rollout_maps,
}
FEW_FORWARDS = ("cam", "eigen-cam", "ablation-cam")  # so few, and no graph, that it pays to remember the first
WITHOUT_TARGET = ("eigen-cam", "attention-rollout")  # one map serves every target


class MapPass:
    """Takes maps at some calls during one forward, and one backward per target, of a chunk of images.

    Activations and gradients are reduced to (n, h, w) maps inside the backward and dropped at once: kept are only the
    maps.

    Args:
        calls: where; each needs positions.
        methods: names in :data:`interpret.functional.cam.ONE_PASS_METHODS`.

    Attributes:
        maps: (method, key) -> target -> (n, h, w) float32 CPU tensor; a target that does not depend on the call has
            none from gradients.
        blind: the model switched gradients off at one of the calls; see :func:`interpret.hooks.with_gradients`.
    """

    def __init__(self, calls: Sequence[Call], methods: Sequence[str]) -> None:
        self.keys = frozenset(call.key for call in calls)
        self.methods = tuple(method for method in methods if method in ONE_PASS_METHODS)
        self.gradient_methods = tuple(method for method in self.methods if method != "eigen-cam")
        self.maps: dict[tuple[str, str], dict[int, Tensor]] = {}
        self.blind = False
        self._squares: dict[str, dict[int, Tensor]] = {}
        self._target = 0
        self._leaves: list[Tensor] = []
        self._handles = ExitStack()

    def attach(self, call: Call, output: Tensor) -> Tensor | None:
        """Watch one call's output inside the forward; what is returned, if anything, must replace it."""
        if call.key not in self.keys or not self.methods or output.shape[1:] != call.output_shape[1:]:
            return None
        if not self.gradient_methods:
            self._keep("eigen-cam", call, eigen_cam(features(output.detach(), call).float()))
            return None
        self.blind |= not torch.is_grad_enabled()
        leaf, new = gradient_leaf(output, call.overwritten)
        if new is not None:
            self._leaves.append(leaf)
        activation = leaf.detach()
        if call.overwritten and new is None:
            activation = activation.clone()
        if "eigen-cam" in self.methods:
            self._keep("eigen-cam", call, eigen_cam(features(activation, call).float()))
        self._handles.callback(leaf.register_hook(lambda gradient: self._reduce(call, activation, gradient)).remove)
        return new

    def backward(self, scores: Tensor) -> None:
        """Explain scores of shape (n, R), one backward per target."""
        if self.gradient_methods and self._leaves and scores.requires_grad:
            with self._handles:
                for self._target in range(scores.shape[1]):
                    again = self._target + 1 < scores.shape[1]
                    backward(scores[:, self._target].sum(), self._leaves, again=again)
        self._handles.close()
        self._leaves.clear()

    def by_target(self, targets: int) -> dict[tuple[str, str], Tensor]:
        """The maps (n, R, h, w) by method and call key; zeros for a target that does not depend on the call."""
        stacked = {}
        for (method, key), found in self.maps.items():
            first = next(iter(found.values()))
            shared = first if method in WITHOUT_TARGET else torch.zeros_like(first)
            stacked[method, key] = torch.stack([found.get(target, shared) for target in range(targets)], 1)
        return stacked

    def squares_by_call(self, calls: Sequence[Call], shape: Sequence[int]) -> Tensor | None:
        """Mean square of the gradient at every call, shape (n, R, L); zero where the target does not depend on it.

        Args:
            calls: where.
            shape: (n, R).
        """
        if not self.gradient_methods:
            return None
        nothing = torch.zeros(shape[0])
        found = [self._squares.get(call.key, {}) for call in calls]
        return torch.stack([torch.stack([by.get(r, nothing) for r in range(shape[1])], 1) for by in found], 2)

    def _reduce(self, call: Call, activation: Tensor, gradient: Tensor) -> None:
        with torch.no_grad():
            activations, gradients = features(activation, call).float(), features(gradient, call).float()
            norms = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
            squares = norms.square_().div_(gradients[0].numel()).cpu()
            self._squares.setdefault(call.key, {})[self._target] = squares
            for method, map_ in gradient_maps(activations, gradients, self.gradient_methods).items():
                self._keep(method, call, map_)

    def _keep(self, method: str, call: Call, map_: Tensor) -> None:
        self.maps.setdefault((method, call.key), {})[self._target] = map_.cpu()


def one_pass(
    model: nn.Module,
    images: Tensor,
    calls: Sequence[Call],
    methods: Sequence[str],
    targets: Targets,
    forward: Forward | None = None,
) -> tuple[dict[tuple[str, str], Tensor], Tensor | None, Target]:
    """Maps (n, R, h, w) of a chunk of images by method and call key, the gradients' mean squares, and the target.

    Call it inside :func:`interpret.hooks.undisturbed`. A model that switches gradients off by itself runs again with
    them on.

    Raises:
        LayerError: no gradient can be had.
    """
    taken, target, scores = _forward(model, images, calls, methods, targets, forward)
    if taken.gradient_methods and (taken.blind or not scores.requires_grad):
        with with_gradients():
            taken, target, scores = _forward(model, images, calls, methods, targets, forward)
    if taken.gradient_methods and taken.keys and not scores.requires_grad:
        raise LayerError(
            f"{type(model).__name__} gives no gradient: it detaches its features or runs in inference mode; "
            "take that out of its forward, or use eigen-cam, ablation-cam or score-cam"
        )
    taken.backward(scores)
    return taken.by_target(scores.shape[1]), taken.squares_by_call(calls, scores.shape), target


def _forward(
    model: nn.Module,
    images: Tensor,
    calls: Sequence[Call],
    methods: Sequence[str],
    targets: Targets,
    forward: Forward | None,
) -> tuple[MapPass, Target, Tensor]:
    """One forward with a pass attached, the targets it resolves to, and their scores (n, R)."""
    taken = MapPass(calls, methods)
    with (
        torch.set_grad_enabled(bool(taken.gradient_methods)),
        visiting(model, calls, lambda call, module, source, output: taken.attach(call, output)),
    ):
        output = run(model, images, forward)
        target = resolve(output, targets)
        return taken, target, target.scores(output)


def scenes_of(
    model: nn.Module,
    images: Tensor,
    calls: tuple[Call, ...],
    targets: Targets,
    forward: Forward | None,
    memory: Memory | None = None,
) -> list[Scene]:
    """Every image under its target; the memory is of the first."""
    return [
        Scene(model, images[i : i + 1], of_image(targets, i, len(images)), calls, forward, None if i else memory)
        for i in range(len(images))
    ]


def own_pass(
    method: str, scenes: Sequence[Scene], calls: Sequence[Call], progress: Callable[[str, int, int], None]
) -> dict[tuple[str, str], Tensor]:
    """Maps (n, R, h, w) of one method that has passes of its own, by method and call key.

    Args:
        method: a name in :data:`OWN_PASSES`.
        scenes: the images.
        calls: where.
        progress: called with the method, the number of maps done, and of all.

    Raises:
        LayerError: the method does not fit the network or the call.
    """
    maps: dict[tuple[str, str], Tensor] = {}
    total = len(calls) * len(scenes)
    for number, call in enumerate(calls):
        parts = []
        for image, scene in enumerate(scenes):
            part = OWN_PASSES[method](scene, call, ignore).float().cpu()
            parts.append(part.expand(scene.target.indices.shape[1], -1, -1))
            progress(method, number * len(scenes) + image + 1, total)
        maps[method, call.key] = torch.stack(parts)
    return maps


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
    """Every convolution with maps; of transformers also the normalizations of their tokens."""
    tokens = any(call.kind == "attention" or call.token_grid is not None for call in calls)
    return tuple(
        call
        for call in calls
        if has_maps(call)
        and (call.kind == "convolution" or (tokens and call.kind == "normalization" and call.layout in ("NTC", "NHWC")))
    )


def has_maps(call: Call) -> bool:
    """Whether a call's output has positions to make a map of, and the model's output depends on them."""
    return call.map_shape is not None and call.reaches_output


def selected_layers(calls: Sequence[Call], layers: Sequence[str] | str | None) -> tuple[Call, ...]:
    """The calls with maps among those that the user names; None for :func:`default_layers`.

    Raises:
        LayerError: a call that was named by its key has no maps, or none has.
    """
    chosen = default_layers(calls) if layers is None else select(calls, layers)
    usable = tuple(call for call in chosen if has_maps(call))
    named = set() if layers is None else {layers} if isinstance(layers, str) else set(layers)
    without = [call for call in chosen if not has_maps(call) and (call.key in named or not usable)]
    if without and without[0].map_shape is None:
        raise LayerError(
            f"layer {without[0].key!r} has no spatial output, so no map; choose a layer with an (N, C, H, W) output"
        )
    if without:
        raise LayerError(
            f"the model's output does not depend on the positions of layer {without[0].key!r}, so its maps are all "
            'zero; choose a layer before it, as "last" does'
        )
    if not usable:
        raise LayerError("the model has no convolution with a spatial output; name layers with one")
    return usable


def own_layers(method: str, scene: Scene, layers: Sequence[str] | str | None) -> tuple[Call, ...]:
    """The calls where a method with passes of its own is taken: those named, or the one that "last" means for it.

    Raises:
        LayerError: there is none; the message says what the method needs.
    """
    names = ["last"] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if "last" not in names or method in ("ablation-cam", "score-cam"):
        if method == "attention-rollout":
            return tuple(call for call in select(scene.calls, names) if call.kind == "attention") or select(
                scene.calls, names
            )
        return selected_layers(scene.calls, names)
    if method == "cam":
        found = pooled_call(scene)
        if found is None:
            raise LayerError(
                "cam needs a model whose logits are a linear layer of the mean of some layer's output; this one has no "
                "such head (or a functional operation lies between); grad-cam and hires-cam need none"
            )
    else:
        found = next((c for c in reversed(scene.calls) if c.kind == "attention" and c.token_grid is not None), None)
        if found is None:
            raise LayerError(
                "attention-rollout needs a transformer with attention over all tokens of the image; "
                "use grad-cam or hires-cam for this network"
            )
    return (found,)


def class_activation_maps(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[str] = ("grad-cam",),
    layers: Sequence[str] | str | None = None,
    targets: Targets = None,
    forward: Forward | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Maps:
    """Class activation maps of many layers by many methods, from one forward and one backward per target.

    `cam`, `ablation-cam`, `score-cam` and `attention-rollout` take passes of their own, image by image; where no layers
    are named, at the last one only.

    Args:
        model: any network; nothing of it is changed. Half-precision weights are copied to float32 first.
        images: preprocessed, shape (N, C, H, W).
        methods: method names; see :data:`interpret.functional.cam.MAP_METHODS`.
        layers: module names, call keys, globs, "last", "stages"; functional operations as `fx:NODE`, named as
            torchvision's ``get_graph_node_names`` names them; None for every convolution.
        targets: None for the predicted class of each image, an int, one int per image, an (N, R) array, or a callable
            ``outputs -> (N,)`` scores; see :func:`interpret.targets.resolve`.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.
        progress: called with (method, done, total) by the methods that take long.

    Returns:
        Raw maps at each layer's own resolution.

    Raises:
        LayerError: a method, layer or target does not fit; a named layer has no spatial output.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> class_activation_maps(net, torch.rand(2, 3, 8, 8), layers="last")["grad-cam", "0"].shape
    torch.Size([2, 6, 6])
    """
    methods = check_methods(methods)
    model, images = in_float32(observed(model, layers), images)
    report = progress or (lambda method, done, total: None)
    with undisturbed(model):
        own = [method for method in methods if method in OWN_PASSES]
        shared = [method for method in methods if method not in OWN_PASSES]
        memory = Memory(forward) if set(methods) <= set(FEW_FORWARDS) else None
        table = trace(model, images, forward if memory is None else memory.first, counted=False).calls
        target: Targets = targets
        maps: dict[tuple[str, str], Tensor] = {}
        if shared:
            again = memory.again if memory is not None and len(images) == 1 else forward
            calls = selected_layers(table, layers)
            maps, _, target = one_pass(model, images, calls, shared, targets, again)
        scenes = scenes_of(model, images, table, target, forward, memory)
        for method in own:
            where = own_layers(method, scenes[0], layers)
            maps |= own_pass(method, scenes, where, report)
        refuse_nothing([scene.target for scene in scenes])
        indices = torch.cat([scene.target.indices for scene in scenes])
    many = indices.shape[1] > 1
    order = {call.key: call.position for call in table}
    names = sorted(maps, key=lambda name: (methods.index(name[0]), order[name[1]]))
    return Maps({name: maps[name] if many else maps[name][:, 0] for name in names}, indices)
