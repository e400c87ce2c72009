"""Class activation maps of the displayed images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from interpret.collectors import Array, Chunk, Collector, Record, Setting, arrays, joined
from interpret.errors import LayerError
from interpret.evidence import Call
from interpret.functional.cam import ONE_PASS_METHODS
from interpret.maps import OWN_PASSES, MapPass, one_pass, own_layers, own_pass, scenes_of
from interpret.targets import Target


class Maps(Collector):
    """Keeps the raw maps of the displayed images, chunk by chunk.

    Those of one pass come from the forward that all collectors share. Where that gives no gradients (half-precision
    weights, a model that switches them off) it is taken again.
    """

    name = "maps"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.calls = [call for call in setting.trace.calls if call.key in setting.maps]
        self.methods = [method for method in setting.methods if method in ONE_PASS_METHODS]
        self.own = [method for method in setting.methods if method in OWN_PASSES]
        self.taken: MapPass | None = None
        self.parts: dict[str, list[Array]] = {}
        self.targets: list[Array] = []
        self.scores: list[Array] = []
        self.squares: list[Array] = []
        self.refused: dict[str, str] = {}
        self.missing = False
        self.skipped = ""

    @property
    def wanted(self) -> bool:
        """Whether maps are to be taken in the forward."""
        return bool(self.calls and self.methods and self.setting.displayed and not self.skipped)

    def attach(self, call: Call, output: Tensor) -> Tensor | None:
        """Watch one call inside the forward of displayed images; what is returned replaces the output."""
        if self.taken is None:
            self.taken = MapPass(self.calls, self.methods)
        return self.taken.attach(call, output)

    def answer(self, target: Target, scores: Tensor) -> None:
        """Note what one chunk's target is and its scores (n, R); go backward from them where maps were attached."""
        self.targets.append(target.indices.numpy())
        self.scores.append(scores.detach().float().cpu().numpy())
        taken, self.taken = self.taken, None
        self.missing = bool(self.methods and self.calls)
        if taken is not None and not (taken.gradient_methods and (taken.blind or not scores.requires_grad)):
            taken.backward(scores)
            self._keep(taken.by_target(scores.shape[1]), taken.squares_by_call(self.calls, scores.shape))
            self.missing = False

    def explain(self, chunk: Chunk) -> None:
        """Take the methods that need passes of their own, and the others where the forward gave none."""
        if self.missing:
            maps, squares, _ = one_pass(
                chunk.model, chunk.images, self.calls, self.methods, chunk.targets, self.setting.forward
            )
            self._keep(maps, squares)
        scenes = scenes_of(chunk.model, chunk.images, self.setting.trace.calls, chunk.target, self.setting.forward)
        for method in self.own:
            if method in self.refused:
                continue
            try:
                calls = own_layers(method, scenes[0], self.setting.layers)
                self._keep(own_pass(method, scenes, calls, chunk.progress))
            except LayerError as error:
                self.refused[method] = str(error)

    def _keep(self, maps: Mapping[tuple[str, str], Tensor], squares: Tensor | None = None) -> None:
        for (method, key), stack in maps.items():
            self.parts.setdefault(f"{method}/{key}", []).append(stack.numpy().astype(np.float32))
        if squares is not None:
            self.squares.append(squares.numpy())

    def record(self) -> Record:
        """``targets``, ``scores``, ``gradient_square`` and one array per method and call."""
        if not self.parts:
            reason = self.skipped or "; ".join(self.refused.values())
            return arrays("maps", {}, reason or "no call with a spatial output was chosen for maps")
        kept = {"targets": np.concatenate(self.targets), "scores": np.concatenate(self.scores)}
        if self.squares:
            kept["gradient_square"] = np.concatenate(self.squares)
        found = joined(self.parts)
        for method in (*self.methods, *self.own):
            for call in self.setting.trace.calls:
                if (name := f"{method}/{call.key}") in found:
                    kept[name] = found[name]
        return Record({"maps": kept}, {}, {}, refused=self.refused)
