"""docs/mlflow.md: the script's page, with pictures that are there, names that exist and no address of a machine."""

import importlib.util
import json
import re
import socket
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from PIL import Image

from bundles import bundle, network
from interpret import cli, publishing

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(f"script_{name}", str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


mlflow_page = script("mlflow_page")
PAGE = mlflow_page.PAGE.read_text("utf-8")
FIGURES = json.loads(mlflow_page.FIGURES.read_text("utf-8"))


def test_the_page_is_the_scripts() -> None:
    assert mlflow_page.page_text(FIGURES) == PAGE, "run scripts/mlflow_page"


def test_every_picture_is_there_and_shown_once() -> None:
    shown = re.findall(r"!\[[^]]+\]\(mlflow/([^)]+)\)", PAGE)
    files = {mlflow_page.picture_file(name) for name in mlflow_page.PICTURES}
    assert sorted(shown) == sorted(file.name for file in files)
    assert {file for file in mlflow_page.FOLDER.iterdir() if file.suffix == ".png"} == files
    for file in files:
        assert file.stat().st_size <= mlflow_page.LARGEST, file
        with Image.open(file) as image:
            assert 400 <= image.width <= 1400, file
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50, file  # an empty page has few


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_no_machine_is_named() -> None:
    files = [mlflow_page.PAGE, *(path for path in mlflow_page.FOLDER.iterdir() if path.suffix != ".png")]
    for file in files:
        text = file.read_text("utf-8")
        assert not re.search(r"https?://|localhost|\d+\.\d+\.\d+\.\d+|/home/|/tmp/|/root|sqlite:", text), file
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text), file


def test_charts_and_files_are_those_of_an_audit() -> None:
    evidence = bundle(network())
    assert [f"interpret/by_layer/{name}" for name in publishing.CHARTED] == FIGURES["run"]["charts"]
    totals = {name for name, _, _ in publishing.audit_metrics(evidence, 0) if "/by_layer/" not in name}
    assert set(FIGURES["run"]["totals"]) == totals - {"interpret/top1_accuracy"}
    held = {path.removeprefix("interpret/") for path in FIGURES["run"]["files"]}
    assert {*evidence.manifest.files, "manifest.json"} <= held | {"attributions.npz", "features.npz"}


@pytest.mark.parametrize("command", mlflow_page.COMMANDS)
def test_the_commands_options_exist(command: str) -> None:
    _, name, *words = command.split()
    text = CliRunner().invoke(cli.commands, [name, "--help"]).output
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(^|\s|,){re.escape(option)}\b", text), option


def test_the_layout_by_hand() -> None:
    files = {"a.json": 900, "b/1.png": 1_000_000, "b/2.png": 234_567}
    assert mlflow_page.layout(files).splitlines() == [
        "    a.json                1 kB",
        "    b/  (2 pictures)    1.2 MB",
    ]
