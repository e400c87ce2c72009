"""Open a trained vision network layer by layer, log what it looks at to MLflow, and report what changed between runs.

An audit writes evidence; comparison and report only read it:

    evidence = interpret.audit(model, images)
    comparison = interpret.compare(reference, evidence)
    interpret.write_report(comparison, "report")

Every name below is imported when it is first used, so reading evidence never imports torch, and auditing never imports
mlflow.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from interpret.errors import InterpretError

if TYPE_CHECKING:
    from interpret.auditing import audit
    from interpret.comparison import Comparison, compare
    from interpret.drawing import activation_image, kernel_image, overlay
    from interpret.evidence import Call, Evidence, read_evidence
    from interpret.feature_visualization import maximize_activation
    from interpret.gradients import attribution
    from interpret.hooks import capture, layers
    from interpret.maps import Maps, class_activation_maps
    from interpret.policies import check_policy
    from interpret.probes import ProbeSet, read_probe, write_probe
    from interpret.publishing import log_evidence, publish
    from interpret.reporting import write_report
    from interpret.tracking import fetch_evidence

__version__ = "0.1.0"

_HOMES = {
    "Call": "evidence",
    "Comparison": "comparison",
    "Evidence": "evidence",
    "Maps": "maps",
    "ProbeSet": "probes",
    "activation_image": "drawing",
    "attribution": "gradients",
    "audit": "auditing",
    "capture": "hooks",
    "check_policy": "policies",
    "class_activation_maps": "maps",
    "compare": "comparison",
    "fetch_evidence": "tracking",
    "kernel_image": "drawing",
    "layers": "hooks",
    "log_evidence": "publishing",
    "maximize_activation": "feature_visualization",
    "overlay": "drawing",
    "publish": "publishing",
    "read_evidence": "evidence",
    "read_probe": "probes",
    "write_probe": "probes",
    "write_report": "reporting",
}

__all__ = [
    "Call",
    "Comparison",
    "Evidence",
    "InterpretError",
    "Maps",
    "ProbeSet",
    "activation_image",
    "attribution",
    "audit",
    "capture",
    "check_policy",
    "class_activation_maps",
    "compare",
    "fetch_evidence",
    "kernel_image",
    "layers",
    "log_evidence",
    "maximize_activation",
    "overlay",
    "publish",
    "read_evidence",
    "read_probe",
    "write_probe",
    "write_report",
]

logging.getLogger("interpret").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interpret' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"interpret.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
