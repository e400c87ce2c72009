"""Attributions of the displayed images."""

from __future__ import annotations

from interpret.collectors import Array, Chunk, Collector, Record, Setting, arrays, joined
from interpret.errors import LayerError
from interpret.functional.cam import ATTRIBUTION_METHODS


class Attributions(Collector):
    """Keeps what each attribution method says of every entry of the input."""

    name = "attributions"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.methods = [method for method in setting.methods if method in ATTRIBUTION_METHODS]
        self.parts: dict[str, list[Array]] = {}
        self.refused: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def explain(self, chunk: Chunk) -> None:
        """Attribute one chunk by every method."""
        for number, method in enumerate(self.methods):
            chunk.progress("attributions", number, len(self.methods))
            if method in self.refused:
                continue
            try:
                found = chunk.attribution(method, self.setting)
            except LayerError as error:
                self.refused[method] = str(error)
                continue
            values = found.values if found.values.ndim == 5 else found.values[:, None]
            for name, part in ((method, values), (f"{method}/gap", found.gap), (f"{method}/steps", found.steps)):
                if part is not None:
                    self.parts.setdefault(name, []).append(part.numpy())
            if found.note:
                self.notes[method] = found.note

    def record(self) -> Record:
        """One array per method, with its completeness gap and steps where it has them."""
        if not self.parts:
            reason = "; ".join(self.refused.values()) or "no attribution method was asked for"
            return arrays("attributions", {}, reason)
        return Record({"attributions": joined(self.parts)}, {}, {}, refused=self.refused, notes=self.notes)
