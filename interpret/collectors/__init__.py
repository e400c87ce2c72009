"""Collectors: each reduces what the hooks hand it to arrays of the evidence bundle, and knows nothing of the others.

A new collector is one file with a :class:`Collector`, one entry in ``auditing.COLLECTORS``, one test and one line in
FORMAT.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from interpret.errors import LayerError
from interpret.evidence import Call
from interpret.gradients import Attribution, attribute
from interpret.targets import Target, Targets
from interpret.tracing import Forward, Trace

Array = NDArray[Any]

INTEGRATION_STEPS = 128  # gradients per image that integrated gradients may take in an audit; the gap is recorded


@dataclass(frozen=True, slots=True)
class Setting:
    """What every collector is told before the first forward.

    Attributes:
        model: the network, in evaluation mode.
        state: the tensors of its state under canonical names, as they were stored.
        trace: its call table.
        count, displayed: number of probe images, and how many of them (the first ones) are displayed.
        pictures, maps: keys of the calls whose pictures and maps are kept.
        methods: class activation map methods, and attributions of the input.
        layers: what the user named for maps, or None.
        seed: of everything random.
        trust: whether maps are put to the test.
        features: patterns of calls, and of each the channels whose features are shown.
        kernels: keys of the calls whose kernels are kept whole.
        normalization: mean and standard deviation per channel that turn pictures in [0, 1] into the network's input.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.
    """

    model: nn.Module
    state: Mapping[str, Tensor]
    trace: Trace
    count: int
    displayed: int
    pictures: frozenset[str]
    maps: frozenset[str]
    methods: tuple[str, ...]
    layers: tuple[str, ...] | None
    seed: int
    trust: bool
    features: tuple[tuple[str, tuple[int, ...]], ...]
    kernels: frozenset[str]
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    forward: Forward | None


@dataclass(frozen=True, slots=True)
class Observation:
    """One call on one chunk of images; the tensors live only inside the hook.

    Attributes:
        call, module: what ran.
        input: its first input tensor, or None.
        output: its output, detached, shape (n, ...).
        first: index of the chunk's first image.
        same_output: the output is the very tensor of the call observed before (containers hand on what their last call
            put out).
    """

    call: Call
    module: nn.Module
    input: Tensor | None
    output: Tensor
    first: int
    same_output: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """Displayed images of one chunk, for collectors that take passes of their own over them.

    Attributes:
        model: the network in float32.
        images: preprocessed, shape (n, C, H, W), float32.
        first: index of the first of them.
        target: what is explained.
        targets: what resolves to it again; see :func:`interpret.targets.resolve`.
        progress: called with (what, done, total).
    """

    model: nn.Module
    images: Tensor
    first: int
    target: Target
    targets: Targets
    progress: Callable[[str, int, int], None]
    _attributions: dict[str, Attribution | LayerError] = field(default_factory=dict)

    def attribution(self, method: str, setting: Setting) -> Attribution:
        """What a method attributes to the images, computed once for all collectors.

        Raises:
            LayerError: the method does not fit the network.
        """
        if method not in self._attributions:
            options: dict[str, Any] = {"max_steps": INTEGRATION_STEPS} if method == "integrated-gradients" else {}
            seed = setting.seed + self.first
            try:
                found: Attribution | LayerError = attribute(
                    self.model, self.images, method, self.targets, seed=seed, forward=setting.forward, **options
                )
            except LayerError as error:
                found = error
            self._attributions[method] = found
        known = self._attributions[method]
        if isinstance(known, LayerError):
            raise known
        return known


@dataclass(frozen=True, slots=True)
class Record:
    """What a collector leaves: arrays per file, JSON and text files.

    ``skipped`` says why there is nothing; ``refused`` why there is nothing of a method, and ``notes`` what limits one.
    """

    arrays: Mapping[str, Mapping[str, Array]]
    json: Mapping[str, Any]
    text: Mapping[str, str]
    skipped: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


class Collector(ABC):
    """Base of the collectors: sees every call, reduces it at once, keeps no tensor of a chunk."""

    name = ""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def observe(self, seen: Observation) -> None:  # noqa: B027
        """Reduce one call on one chunk of images; called inside the forward."""

    def predict(self, output: Any, first: int) -> None:  # noqa: B027 (a collector overrides what it needs)
        """Reduce the model's output for one chunk of images."""

    def repeat(self, seen: Observation) -> None:  # noqa: B027
        """See one of the repeated images of the noise floor; ``first`` is its index."""

    def explain(self, chunk: Chunk) -> None:  # noqa: B027
        """Take passes of its own over the displayed images of one chunk; called after the forward of all images."""

    def survey(self, model: nn.Module, images: Tensor, progress: Callable[[str, int, int], None]) -> None:  # noqa: B027
        """Take passes of its own over all probe images, preprocessed, shape (N, C, H, W), at the very end."""

    @abstractmethod
    def record(self) -> Record:
        """What goes into the bundle."""


def arrays(kind: str, content: Mapping[str, Array], skipped: str = "") -> Record:
    """A record of one ``.npz`` file."""
    return Record({kind: content} if content else {}, {}, {}, skipped)


def joined(parts: Mapping[str, list[Array]]) -> dict[str, Array]:
    """The parts of every array, chunk by chunk, as one."""
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}


def ragged(parts: list[Array]) -> Array:
    """The vectors end to end as float32."""
    return np.concatenate([np.asarray(part, np.float64) for part in parts] or [np.empty(0)]).astype(np.float32)


def channel_view(output: Tensor, layout: str) -> Tensor:
    """The output as (n, C, M): channels apart from positions; a view where the memory allows."""
    if layout in ("NCHW", "NCL", "NC"):
        return output.reshape(output.shape[0], output.shape[1], -1)
    if layout in ("NHWC", "NWTC", "NTC"):
        return output.reshape(output.shape[0], -1, output.shape[-1]).transpose(1, 2)
    return output.reshape(output.shape[0], 1, -1)
