"""What excites the channels that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from interpret.collectors import Array, Collector, Observation, Record, Setting, arrays
from interpret.errors import LayerError
from interpret.feature_visualization import TopPatch, TopPositions, kernel_responses, maximize, reconstruct
from interpret.tracing import features, select

PATCHES = 9
STEPS = 128
SIDE = 96  # of a crop
KERNELS = 64


class Features(Collector):
    """Finds the strongest patches in the forward that all share, then makes pictures that excite each channel.

    Raises:
        LayerError: a pattern matches no call, or a channel is out of range.
    """

    name = "features"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.best: dict[str, TopPositions] = {}
        self.highest: dict[str, Tensor] = {}
        for pattern, channels in setting.features:
            for call in select(setting.trace.calls, pattern):
                known = self.best[call.key].channels if call.key in self.best else ()
                self.best[call.key] = TopPositions(call, tuple(dict.fromkeys((*known, *channels))), PATCHES)
        self.content: dict[str, Array] = {}
        self.notes: dict[str, str] = {}

    def observe(self, seen: Observation) -> None:
        """Look for the strongest positions of one chunk."""
        best = self.best.get(seen.call.key)
        if best is None:
            return
        best.add(seen.output)
        output = seen.output if seen.call.map_shape is None else features(seen.output, seen.call)
        means = (
            output[:, list(best.channels)].float().flatten(2).mean(2)
            if output.ndim > 2
            else output[:, list(best.channels)]
        )
        highest = means.float().cpu().amax(0)
        before = self.highest.get(seen.call.key, highest)
        self.highest[seen.call.key] = torch.maximum(before, highest)

    def survey(self, model: nn.Module, images: Tensor, progress: Callable[[str, int, int], None]) -> None:
        """Make the pictures."""
        if not self.best:
            return
        size = (images.shape[2], images.shape[3])
        mean, std = self.setting.normalization
        like = next(model.parameters())
        jobs = [(key, channel) for key, best in self.best.items() for channel in best.channels]
        patches = {key: best.patches(size) for key, best in self.best.items()}
        for number, (key, channel) in enumerate(jobs):
            found = maximize(
                model, key, channel, size=size, steps=STEPS, mean=mean, std=std, seed=self.setting.seed,
                input_channels=images.shape[1], forward=self.setting.forward,
                progress=partial(_tell, progress, number, len(jobs)),
            )  # fmt: skip
            best = self.best[key]
            highest = float(self.highest[key][best.channels.index(channel)])
            if not found.image.isfinite().all():
                self.notes["features"] = f"channel {channel} of {key} gives no finite gradient, so no picture of it"
                continue
            self.content[f"{key}/{channel}/maximized"] = _picture(found.image[0])
            self.content[f"{key}/{channel}/excitation"] = np.array([found.start, found.end, highest])
            self._keep_patches(f"{key}/{channel}", patches[key][channel], images)
            self._reconstruct(model, key, channel, patches[key][channel], images.to(like.device))
        first = next((call.key for call in self.setting.trace.calls if call.kind == "convolution"), None)
        if first is not None and self.setting.displayed:
            responses = kernel_responses(model, images[0].to(like.device), first, self.setting.forward)
            self.content[f"responses/{first}"] = responses[:KERNELS].numpy()

    def _keep_patches(self, name: str, patches: tuple[TopPatch, ...], images: Tensor) -> None:
        rows = [(patch.image, *patch.position, *patch.box) for patch in patches]
        self.content[f"{name}/patches"] = np.array(rows, np.int64).reshape(-1, 7)
        self.content[f"{name}/activations"] = np.array([patch.activation for patch in patches])
        mean, std = (torch.tensor(values)[:, None, None] for values in self.setting.normalization)
        crops = [_picture(_crop(images[patch.image].cpu() * std + mean, patch)) for patch in patches]
        self.content[f"{name}/crops"] = np.stack(crops)

    def _reconstruct(
        self, model: nn.Module, key: str, channel: int, patches: tuple[TopPatch, ...], images: Tensor
    ) -> None:
        chosen = images[[patch.image for patch in patches]]
        try:
            found = reconstruct(
                model, chosen, key, channel, [patch.position for patch in patches], forward=self.setting.forward
            )
        except LayerError as error:
            self.notes["features"] = str(error)
            return
        crops = [_crop(picture.sum(0, keepdim=True), patch)[0] for patch, picture in zip(patches, found, strict=True)]
        self.content[f"{key}/{channel}/reconstructions"] = torch.stack(crops).numpy()

    def record(self) -> Record:
        """Pictures, patches and what of them excites, per call and channel."""
        if not self.content:
            return arrays("features", {}, "no features were asked for")
        return Record({"features": self.content}, {}, {}, notes=self.notes)


def _crop(picture: Tensor, patch: TopPatch) -> Tensor:
    """The receptive field in a picture (C, H, W), (C, SIDE, SIDE); one pixel where it lies in the padding alone."""
    top, left, bottom, right = patch.box
    field = picture[None, :, top : max(bottom, top + 1), left : max(right, left + 1)]
    return functional.interpolate(field, (SIDE, SIDE), mode="bilinear")[0]


def _tell(progress: Callable[[str, int, int], None], job: int, jobs: int, done: int, total: int) -> None:
    progress("features", job * total + done, jobs * total)


def _picture(values: Tensor) -> Array:
    """A picture (C, H, W) of values in [0, 1] as (H, W, 3) uint8; of other numbers of channels than three, grey."""
    colours = values if len(values) == 3 else values.mean(0, keepdim=True).expand(3, -1, -1)
    return np.ascontiguousarray((colours.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
