"""Whether the maps of the displayed images can be trusted, at stage ends."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from interpret.collectors import Array, Chunk, Collector, Record, Setting, arrays, joined
from interpret.errors import LayerError
from interpret.faithfulness import STEPS, cascading_randomization, control_maps, faithfulness
from interpret.functional.cam import ATTRIBUTION_METHODS, ONE_PASS_METHODS
from interpret.maps import Maps, has_maps, one_pass

CONTROLS = ("random", "gaussian")


class Trust(Collector):
    """Deletes and inserts pixels in the order of each map, and of two controls; randomises the weights.

    Maps of one pass are judged at stage ends (at the last call where no stage end has maps), attributions as maps of
    the input, `input`.
    """

    name = "trust"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        calls = setting.trace.calls
        ends = [call for call in calls if call.stage_end and has_maps(call)]
        self.calls = ends or [call for call in calls if call.last]
        self.last = [call for call in calls if call.last and has_maps(call)]
        self.maps = [method for method in setting.methods if method in ONE_PASS_METHODS]
        self.attributions = [method for method in setting.methods if method in ATTRIBUTION_METHODS]
        self.parts: dict[str, list[Array]] = {}
        self.stages: tuple[str, ...] = ()
        self.skipped = "the maps were not put to the test; --trust does it"

    def explain(self, chunk: Chunk) -> None:
        """Test the maps of one chunk."""
        if not self.setting.trust:
            return
        classes = chunk.target.indices[:, 0]
        logits = self.setting.trace.output_shape
        if classes.min() < 0 or logits is None or len(logits) != 2:
            self.skipped = "maps are put to the test by the probability of a class, and the target is none"
            return
        self.skipped = ""
        size = (chunk.images.shape[2], chunk.images.shape[3])
        heatmaps = self._heatmaps(chunk, size)
        stack = torch.stack(list(heatmaps.values()))
        found = faithfulness(
            chunk.model, chunk.images, classes, stack, forward=self.setting.forward,
            progress=lambda done, total: chunk.progress("trust", done, total),
        )  # fmt: skip
        self._keep("probability", found.probability)
        for number, name in enumerate(heatmaps):
            for kind in ("deletion", "insertion", "drop", "increase"):
                self._keep(f"{kind}/{name}", getattr(found, kind)[number])
        self._randomize(chunk, classes)

    def _heatmaps(self, chunk: Chunk, size: tuple[int, int]) -> dict[str, Tensor]:
        """Heatmaps (n, H, W) in [0, 1] by method or control and call."""
        count, seed = len(chunk.images), self.setting.seed + chunk.first
        raw, _, _ = one_pass(chunk.model, chunk.images, self.calls, self.maps, chunk.targets, self.setting.forward)
        maps = Maps({name: stack[:, 0] for name, stack in raw.items()}, chunk.target.indices)
        heatmaps = {f"{method}/{key}": maps.heatmap(method, key, size) for method, key in maps}
        for call in self.calls:
            pair = control_maps(size, count, seed, call.map_shape or (7, 7))
            heatmaps |= {f"{name}/{call.key}": control for name, control in zip(CONTROLS, pair, strict=True)}
        for method in self.attributions:
            try:
                found = chunk.attribution(method, self.setting)
            except LayerError:  # attributions say why
                continue
            values = found.values if found.values.ndim == 4 else found.values[:, 0]
            energy = Maps({(method, "input"): values.abs().sum(1)}, chunk.target.indices)
            heatmaps[f"{method}/input"] = energy.heatmap(method, "input", size)
        if self.attributions:
            pair = control_maps(size, count, seed, (max(1, size[0] // 8), max(1, size[1] // 8)))
            heatmaps |= {f"{name}/input": control for name, control in zip(CONTROLS, pair, strict=True)}
        return heatmaps

    def _randomize(self, chunk: Chunk, classes: Tensor) -> None:
        if not (self.maps and self.last):
            return
        found = cascading_randomization(
            chunk.model, chunk.images, classes, self.maps, self.last[0].key,
            seed=self.setting.seed, forward=self.setting.forward,
            progress=lambda done, total: chunk.progress("trust, randomised weights", done, total),
        )  # fmt: skip
        self.stages = found.layers
        for number, method in enumerate(found.methods):
            self._keep(f"randomization/{method}", found.similarity[:, number].T)

    def _keep(self, name: str, values: Array) -> None:
        self.parts.setdefault(name, []).append(np.asarray(values))

    def record(self) -> Record:
        """trust.npz and trust.json."""
        if not self.parts:
            return arrays("trust", {}, self.skipped)
        content = joined(self.parts)
        keys = [call.key for call in self.calls] + (["input"] if self.attributions else [])
        about = {"steps": STEPS, "keys": keys, "methods": [*self.maps, *self.attributions], "stages": list(self.stages)}
        stored = {name: array.T if name.startswith("randomization/") else array for name, array in content.items()}
        return Record({"trust": stored}, {"trust.json": about}, {})
