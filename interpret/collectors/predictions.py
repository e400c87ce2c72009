"""Logits of every probe image."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from interpret.collectors import Collector, Record, Setting, arrays
from interpret.errors import LayerError
from interpret.targets import logits_of


class Predictions(Collector):
    """Keeps the (N, K) logits; K = 2 where one logit tells two classes apart."""

    name = "predictions"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.logits: list[Tensor] = []
        self.skipped = ""

    def predict(self, output: Any, first: int) -> None:
        """Keep the logits of a chunk."""
        try:
            logits = logits_of(output).detach().float().cpu()
        except LayerError as error:
            self.skipped = str(error)
            return
        if logits.shape[1] == 1:  # one logit for two classes: as a pair with the same probabilities
            logits = functional.pad(logits, (1, 0))
        self.logits.append(logits)

    def record(self) -> Record:
        """``logits`` of predictions.npz."""
        if self.skipped:
            return arrays("predictions", {}, self.skipped)
        return arrays("predictions", {"logits": np.concatenate([part.numpy() for part in self.logits])})
