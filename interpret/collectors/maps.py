"""Class activation maps of the displayed images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from interpret.collectors import Array, Collector, Record, Setting, arrays
from interpret.evidence import Call
from interpret.maps import MapPass


class Maps(Collector):
    """Keeps the raw maps of the displayed images, chunk by chunk."""

    name = "maps"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.calls = [call for call in setting.trace.calls if call.key in setting.maps]
        self.taken: MapPass | None = None
        self.parts: dict[tuple[str, str], list[Array]] = {}
        self.targets: list[Array] = []
        self.scores: list[Array] = []
        self.skipped = ""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to map."""
        return bool(self.calls and self.setting.methods and self.setting.displayed and not self.skipped)

    def attach(self, call: Call, output: Tensor) -> Tensor | None:
        """Watch one call inside the forward of displayed images; what is returned replaces the output."""
        if self.taken is None:
            self.taken = MapPass(self.calls, self.setting.methods)
        return self.taken.attach(call, output)

    def explain(self, scores: Tensor, targets: Tensor) -> None:
        """Go backward from the scores (n, R) of one chunk and keep its maps."""
        if self.taken is None:
            return
        self.taken.backward(scores)
        self.targets.append(targets.numpy())
        self.scores.append(scores.detach().float().cpu().numpy())
        for (method, key), maps in self.taken.maps.items():
            per_target = maps * scores.shape[1] if method == "eigen-cam" else maps
            self.parts.setdefault((method, key), []).append(torch.stack(per_target, 1).numpy())
        self.taken = None

    def record(self) -> Record:
        """``targets``, ``scores`` and one array per method and call."""
        if not self.parts:
            return arrays(
                "maps",
                {},
                self.skipped or "no call with a spatial output was chosen for maps",
            )
        kept = {"targets": np.concatenate(self.targets), "scores": np.concatenate(self.scores)}
        for method in self.setting.methods:
            for call in self.calls:
                if (method, call.key) in self.parts:
                    kept[f"{method}/{call.key}"] = np.concatenate(self.parts[method, call.key]).astype(np.float32)
        return arrays("maps", kept)
