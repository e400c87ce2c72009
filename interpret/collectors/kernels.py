"""The kernels that the report draws."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from interpret.collectors import Array, Collector, Record, arrays
from interpret.tracing import canonical_name

FIRST_LAYER_FILTERS = 256
POINTWISE_SIDE = 64
GRID_SIDE = 16
DEPTHWISE_FILTERS = 64


class Kernels(Collector):
    """Keeps a fixed corner of every convolution's weight, so that any two runs show the same kernels; all if asked."""

    name = "kernels"

    def record(self) -> Record:
        """One array per convolution, named as its weight."""
        modules = {canonical_name(name): module for name, module in self.setting.model.named_modules()}
        kept: dict[str, Array] = {}
        for call in self.setting.trace.calls:
            module = modules[call.name]
            if call.kind == "convolution" and call.occurrence == 0 and isinstance(module.weight, Tensor):
                # the weight that runs: parametrized and pruned convolutions hold others in their state
                weight = module.weight.detach().float().cpu().numpy()
                depthwise = module.groups == module.in_channels > 1
                whole = call.key in self.setting.kernels
                kept[f"{call.name}.weight".removeprefix(".")] = weight if whole else _corner(weight, depthwise)
        return arrays("kernels", kept, "" if kept else "the model has no convolution")


def _corner(weight: Array, depthwise: bool) -> Array:
    """The first filters and input channels of a weight (out, in, ...)."""
    if depthwise:
        return np.ascontiguousarray(weight[:DEPTHWISE_FILTERS])
    if weight.shape[1] <= 4:
        return np.ascontiguousarray(weight[:FIRST_LAYER_FILTERS])
    side = POINTWISE_SIDE if np.prod(weight.shape[2:]) == 1 else GRID_SIDE
    return np.ascontiguousarray(weight[:side, :side])
