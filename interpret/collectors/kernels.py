"""The kernels that the report draws."""

from __future__ import annotations

import numpy as np

from interpret.collectors import Array, Collector, Record, arrays

FIRST_LAYER_FILTERS = 256
POINTWISE_SIDE = 64
GRID_SIDE = 16
DEPTHWISE_FILTERS = 64


class Kernels(Collector):
    """Keeps a fixed corner of every convolution's weight, so that any two runs show the same kernels."""

    name = "kernels"

    def record(self) -> Record:
        """One array per convolution weight, named as the tensor."""
        kept: dict[str, Array] = {}
        for call in self.setting.trace.calls:
            if call.kind != "convolution":
                continue
            for name in call.tensors:
                weight = self.setting.state[name]
                if weight.ndim >= 3 and name.endswith("weight"):
                    kept[name] = _corner(weight.detach().float().cpu().numpy())
        return arrays("kernels", kept, "" if kept else "the model has no convolution")


def _corner(weight: Array) -> Array:
    """The first filters and input channels of a weight (out, in, ...)."""
    if weight.shape[1] == 1 and weight.shape[0] > 1:
        return np.ascontiguousarray(weight[:DEPTHWISE_FILTERS])
    if weight.shape[1] <= 4:
        return np.ascontiguousarray(weight[:FIRST_LAYER_FILTERS])
    side = POINTWISE_SIDE if np.prod(weight.shape[2:]) == 1 else GRID_SIDE
    return np.ascontiguousarray(weight[:side, :side])
