"""torchinfo's table as text."""

from __future__ import annotations

from interpret.collectors import Collector, Record


class Summary(Collector):
    """Keeps the table that the first forward carried along."""

    name = "summary"

    def record(self) -> Record:
        """summary.txt, or why torchinfo has none."""
        trace = self.setting.trace
        if not trace.summary:
            return Record({}, {}, {}, trace.summary_error)
        return Record({}, {}, {"summary.txt": trace.summary + "\n"})
