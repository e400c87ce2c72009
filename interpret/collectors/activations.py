"""Feature maps of the displayed images, small enough to keep."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from interpret.collectors import Array, Collector, Observation, Record, Setting, arrays
from interpret.tracing import features

CHANNELS = 64
SIDE = 56


class Activations(Collector):
    """Keeps the first channels as bytes with their range, averaged down to at most 56 x 56."""

    name = "activations"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.parts: dict[str, list[tuple[Array, Array, Array]]] = {}

    def observe(self, seen: Observation) -> None:
        """Keep one chunk of one call, if it is displayed."""
        call = seen.call
        if call.key not in self.setting.pictures or seen.first >= self.setting.displayed or call.map_shape is None:
            return
        images = features(seen.output, call)[: self.setting.displayed - seen.first, :CHANNELS].float()
        height, width = images.shape[2:]
        if max(height, width) > SIDE:
            images = functional.adaptive_avg_pool2d(images, (min(height, SIDE), min(width, SIDE)))
        images = torch.nan_to_num(images)
        minimum, maximum = images.amin((2, 3)), images.amax((2, 3))
        span = (maximum - minimum)[..., None, None]
        scaled = (images - minimum[..., None, None]).mul_(torch.where(span > 0, 255 / span, 0.0)).round_()
        values = scaled.to(torch.uint8)
        self.parts.setdefault(call.key, []).append(tuple(part.cpu().numpy() for part in (values, minimum, maximum)))  # type: ignore[arg-type]

    def record(self) -> Record:
        """Three arrays per call: values, minimum, maximum."""
        kept: dict[str, Array] = {}
        for call in self.setting.trace.calls:
            for index, field in enumerate(("values", "minimum", "maximum")):
                if call.key in self.parts:
                    kept[f"{call.key}/{field}"] = np.concatenate([part[index] for part in self.parts[call.key]])
        return arrays("activations", kept, "" if kept else "no call with pictures has positions")
