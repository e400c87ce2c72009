"""Pages of MLflow's user interface, for reports whose reader says where it is served."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from interpret import drawing
from interpret.errors import ReportError
from interpret.evidence import Call, Evidence
from interpret.language import say

PREVIEWS = {"kernels": say("kernels"), "activations": say("activations"), "maps": say("maps")}


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses of one run's pages.

    Attributes:
        experiment: the page of the run's experiment, on which the others lie.
        run_id: the run.
    """

    experiment: str
    run_id: str

    @property
    def run(self) -> str:
        """Return the run's own page."""
        return f"{self.experiment}/runs/{self.run_id}"

    @property
    def metrics(self) -> str:
        """Return the page of the run's charts, of which those by layer have calls as their steps."""
        return f"{self.run}/model-metrics"

    def previews(self, evidence: Evidence, call: Call) -> list[tuple[str, str]]:
        """Kinds and pages of the pictures of a call among the run's artifacts."""
        kinds = drawing.preview_kinds(evidence, call)
        return [
            (PREVIEWS[kind], f"{self.run}/artifacts/interpret/previews/{kind}/{_quoted(call.slug)}.png")
            for kind in kinds
        ]

    def checkpoint(self, evidence: Evidence) -> str | None:
        """The page of the logged model that was audited; None where the checkpoint is none."""
        model = re.fullmatch(r"models:/(m-[^/@]+)", evidence.manifest.checkpoint["uri"] or "")
        return f"{self.experiment}/models/{_quoted(model[1])}" if model else None


def links_of(ui_url: str | None, origins: Mapping[str, Mapping[str, Any]]) -> dict[str, Links]:
    """The links of each run that lies in MLflow, by label; none without an address.

    Args:
        ui_url: address of MLflow's user interface.
        origins: by label what MLflow says of the run: `run_id`, `experiment_id`; nothing of evidence from a folder.

    Raises:
        ReportError: see :func:`checked`.
    """
    if ui_url is None:
        return {}
    place = f"{checked(ui_url)}/#/experiments"
    known = {label: o for label, o in origins.items() if o.get("run_id") and o.get("experiment_id")}
    return {label: Links(f"{place}/{_quoted(o['experiment_id'])}", _quoted(o["run_id"])) for label, o in known.items()}


def checked(ui_url: str) -> str:
    """The address of MLflow's user interface without a slash at its end.

    >>> checked("https://example.org/mlflow/")
    'https://example.org/mlflow'

    Raises:
        ReportError: it is no http or https address, or one with more in it than host and path.
    """
    try:
        parts = urlsplit(ui_url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, a bracket that is not closed
        whole = False
    if not whole or re.search(r"[^!-~]|[\"'<>\\^`{|}@?#]", ui_url):
        raise ReportError(
            f"{ui_url!r} is no address of an MLflow server that a link can lead to; give http:// or https://, host and "
            "path, without a user, '?' or '#', such as http://127.0.0.1:5000"
        )
    return ui_url.rstrip("/")


def _quoted(text: object) -> str:
    return quote(str(text), safe="")
