"""Class activation maps that ask the network again: what becomes of the score where a channel is missing, or alone.

Each works through the images one by one, so memory does not grow with the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from interpret.errors import LayerError
from interpret.evidence import Call
from interpret.functional.cam import ablation_cam, cam, channel_masks, score_cam
from interpret.hooks import visiting
from interpret.replay import Memory, Tail
from interpret.targets import Target, Targets, resolve_each
from interpret.tracing import Forward, features, run

CHUNK_BYTES = 48 << 20  # of the outputs of one chunk of copies that are alive at a time
ALIVE = 4  # about how many outputs of the largest size a forward without graph holds at a time
LARGEST_CHUNK = 64
SEPARABLE = 2e-6  # relative error up to which channels count as separate; float32 rounding is below it
SAME_MEAN = 1e-5  # relative error up to which a head counts as reading the mean

Progress = Callable[[int, int], None]


def ignore(done: int, total: int) -> None:
    """No progress."""


class Scene:
    """One image under what is to be explained of it.

    Args:
        model: any network, inside :func:`interpret.hooks.undisturbed`.
        image: shape (1, C, H, W).
        targets: of this image alone; see :func:`interpret.targets.of_image`.
        calls: the call table.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.
        memory: of an earlier forward of this image, if there was one.
    """

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        targets: Targets,
        calls: tuple[Call, ...],
        forward: Forward | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.model, self.image, self.calls, self.forward, self.memory = model, image, calls, forward, memory
        self._targets = targets
        self._target: Target | None = targets if isinstance(targets, Target) else None

    @property
    def target(self) -> Target:
        """What is explained, of one image; found by a forward where none has run yet."""
        if self._target is None:
            with torch.no_grad():
                self.settle(run(self.model, self.image, self.again))
        assert self._target is not None
        return self._target

    def settle(self, output: Any) -> None:
        """Fix the target by the model's output for the image."""
        if self._target is None:
            self._target = resolve_each(output, self._targets)

    @property
    def again(self) -> Forward | None:
        """How to run the model on this image; see :func:`interpret.tracing.run`."""
        return self.forward if self.memory is None else self.memory.again

    def tail(self, call: Call) -> Tail:
        """The rest of the network from a call on."""
        return Tail(self.model, self.image, call, self.calls, self.forward, self.memory)

    def output_of(self, call: Call) -> Tensor:
        """A call's output, shape (1, ...)."""
        found: list[Tensor] = []

        def visit(call: Call, module: nn.Module, source: Tensor | None, output: Tensor) -> None:
            found.append(output.detach().clone())

        with torch.no_grad(), visiting(self.model, [call], visit):
            self.settle(run(self.model, self.image, self.again))
        return found[0]

    def chunk(self, after: int = -1) -> int:
        """How many copies a forward of the calls after a position may take."""
        later = [math.prod(call.output_shape) for call in self.calls[after + 1 :] if call.output_shape[:1] == (1,)]
        largest = max([self.image.numel(), *later])
        return int(min(LARGEST_CHUNK, max(1, CHUNK_BYTES // (4 * ALIVE * largest))))

    def scores(self, output: Any) -> Tensor:
        """Scores of an output for copies of the image, shape (B, R)."""
        return self.target.scores(output, 0).float()


class WholeNetwork:
    """What :class:`Tail` does, by running everything for every copy."""

    head = None
    head_input = None

    def __init__(self, scene: Scene, call: Call) -> None:
        self.scene, self.call = scene, call
        self.output = scene.output_of(call)

    def __call__(self, outputs: Tensor) -> Any:
        """The model's output where the call gave these outputs, shape (B, ...), for B copies of the image."""
        images = self.scene.image.expand(len(outputs), *self.scene.image.shape[1:])
        with visiting(self.scene.model, [self.call], lambda call, module, source, output: outputs):
            return run(self.scene.model, images, self.scene.forward)


def ablation_maps(scene: Scene, call: Call, progress: Progress = ignore) -> Tensor:
    """Ablation-CAM at one call, shape (R, h, w); see :func:`interpret.functional.cam.ablation_cam`."""
    with torch.no_grad(), scene.tail(call) as tail:
        scene.settle(tail.result)
        before = scene.scores(tail.result)
        activations = features(tail.output, call)[0].float()
        ablated = _separable_scores(scene, call, tail)
        if ablated is None and torch.allclose(scene.scores(tail(tail.output.clone())), before, rtol=1e-4, atol=1e-5):
            ablated = ablated_scores(scene, call, tail, progress)
    if ablated is None:  # the network does not run the same way twice in a row
        with torch.no_grad():
            ablated = ablated_scores(scene, call, WholeNetwork(scene, call), progress)
    return ablation_cam(activations, before[0], ablated)


def ablated_scores(scene: Scene, call: Call, rest: Tail | WholeNetwork, progress: Progress = ignore) -> Tensor:
    """Scores with each channel of a call set to zero in turn, shape (C, R)."""
    count = features(rest.output, call).shape[1]
    size, scores = scene.chunk(call.position), []
    for start in range(0, count, size):
        copies = rest.output.repeat(min(size, count - start), *[1] * (rest.output.ndim - 1))
        rows = torch.arange(len(copies))
        features(copies, call)[rows, start + rows] = 0.0
        scores.append(scene.scores(rest(copies)))
        progress(start + len(copies), count)
    return torch.cat(scores)


def _separable_scores(scene: Scene, call: Call, tail: Tail) -> Tensor | None:
    """The scores of :func:`ablated_scores` from four copies, where channels stay apart up to a final linear layer.

    Then the head's k-th input depends on channel k alone (normalization, addition, ReLU and pooling lie between), and
    ablating all channels at once shows what each becomes. That it is so is tested with a random half of the channels
    and with the other half: in both the head must see exactly the ablated inputs of that half and the others as before.
    """
    indices = scene.target.indices[0]
    channels = features(tail.output, call).shape[1]
    if tail.head is None or tail.head.in_features != channels or tail.head.out_features == 1 or indices.min() < 0:
        return None
    half = torch.rand(channels, generator=torch.Generator().manual_seed(0)) < 0.5
    ablated = torch.stack([torch.zeros_like(half), torch.ones_like(half), half, ~half]).to(tail.output.device)
    copies = tail.output.repeat(len(ablated), *[1] * (tail.output.ndim - 1))
    features(copies, call).mul_(~ablated[:, :, None, None])
    scores = scene.scores(tail(copies))
    inputs = tail.head_input
    if inputs is None or inputs.shape != ablated.shape:
        return None
    expected = torch.where(ablated, inputs[1], inputs[0])
    if not (inputs - expected).abs().max() <= SEPARABLE * inputs.abs().max():
        return None
    weights = tail.head.weight[indices.to(inputs.device)].double()  # (R, C)
    change = (inputs[1] - inputs[0]).double() * weights
    return (scores[0].double()[:, None] + change).T.float()


def score_maps(scene: Scene, call: Call, progress: Progress = ignore) -> Tensor:
    """Score-CAM at one call, shape (R, h, w); see :func:`interpret.functional.cam.score_cam`."""
    with torch.no_grad():
        activations = features(scene.output_of(call), call)[0].float()
        size, scores = scene.chunk(), []
        height, width = scene.image.shape[2:]
        for start in range(0, len(activations), size):
            masks = channel_masks(activations[start : start + size], (height, width))
            masked = scene.image * masks[:, None].to(scene.image)
            scores.append(scene.scores(run(scene.model, masked, scene.forward)))
            progress(start + len(masks), len(activations))
        return score_cam(activations, torch.cat(scores))


def head_maps(scene: Scene, call: Call, progress: Progress = ignore) -> Tensor:
    """CAM at one call, shape (R, h, w); see :func:`interpret.functional.cam.cam`.

    Raises:
        LayerError: the model's logits are not a linear layer of the mean of this call's output over its positions.
    """
    with torch.no_grad(), scene.tail(call) as tail:
        scene.settle(tail.result)
        activations = features(tail.output, call)[0].float()
        indices = scene.target.indices[0]
        if tail.head is None or tail.head_input is None:
            raise LayerError(
                "cam needs a model whose logits are a linear layer of pooled features, and this one ends otherwise; "
                "grad-cam and hires-cam need no such head"
            )
        if indices.min() < 0:
            raise LayerError("cam explains classes, not a callable target; use grad-cam or hires-cam")
        if not _reads(tail.head_input[0], activations.mean((1, 2))):
            raise LayerError(
                f"cam needs the layer whose mean over the positions is what the head reads, and {call.key!r} is not; "
                'layers="last" finds it where there is one'
            )
        weights = tail.head.weight[indices.to(tail.head.weight.device)].float()
        if tail.head.out_features == 1:
            weights = tail.head.weight.float() * (2 * indices.to(tail.head.weight) - 1)[:, None]
        return cam(activations, weights)


def _reads(inputs: Tensor, means: Tensor) -> bool:
    """Whether what enters a head are these means."""
    return means.shape == inputs.shape and bool((means - inputs).abs().max() <= SAME_MEAN * inputs.abs().max())


def pooled_call(scene: Scene) -> Call | None:
    """The last call whose mean over the positions a final linear layer reads; None where there is none."""
    means: dict[str, Tensor] = {}
    inputs: list[Tensor] = []
    usable = [call for call in scene.calls if call.map_shape is not None and call.reaches_output]
    heads = [call for call in scene.calls if call.kind == "linear" and call.layout == "NC"]

    def visit(call: Call, module: nn.Module, source: Tensor | None, output: Tensor) -> None:
        if call in heads[-1:]:
            inputs.extend([] if source is None else [source[0].float()])
        else:
            means[call.key] = features(output, call)[0].float().mean((1, 2))

    with torch.no_grad(), visiting(scene.model, [*usable, *heads[-1:]], visit):
        scene.settle(run(scene.model, scene.image, scene.again))
    for call in reversed(usable):
        if math.prod(call.map_shape or ()) > 1 and inputs and _reads(inputs[-1], means[call.key]):
            return call
    return None
