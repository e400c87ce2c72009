"""docs/gallery.md: the script's page, with pictures that are there, figures that were measured, and files that run."""

import dataclasses
import importlib.util
import json
import re
import shlex
import socket
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from PIL import Image

from interpret import cli, sections
from interpret.evidence import read_evidence

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(f"script_{name}", str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


gallery = script("gallery")
PAGE = gallery.PAGE.read_text("utf-8")
FIGURES = json.loads(gallery.FIGURES.read_text("utf-8"))
FILES = {gallery.picture_file(name, picture) for name in gallery.CASES for picture in gallery.PICTURES}
TINY = """
import pathlib
import torch
from torch import nn
from PIL import Image


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


if __name__ == "__main__":
    state = network().state_dict()
    torch.save(state, "a.pt")
    torch.save({**state, "0.weight": state["0.weight"].flip(0)}, "b.pt")
    pathlib.Path("images").mkdir()
    for number in range(4):
        Image.effect_noise((32, 32), 40 + number).convert("RGB").save(f"images/{number}.png")
"""


def test_the_page_is_the_scripts() -> None:
    assert gallery.page_text(FIGURES) == PAGE, "run scripts/gallery"


def test_every_case_was_measured_as_it_stands() -> None:
    assert list(FIGURES) == list(gallery.CASES)
    for name, case in gallery.CASES.items():
        assert FIGURES[name]["digest"] == case.digest, f"run scripts/gallery {name}"


def test_figures_stand_in_the_table() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| [")]
    assert len(rows) == len(gallery.CASES)
    for row, measured in zip(rows, FIGURES.values(), strict=True):
        runs, images, calls, pages, html, pdf, html_seconds, pdf_seconds, audits = row[1:]
        assert [int(runs), int(images), int(calls), int(pages)] == [
            measured[name] for name in ("runs", "images", "calls", "pages")
        ]
        for kind, size, seconds in (("html", html, html_seconds), ("pdf", pdf, pdf_seconds)):
            assert float(size.removesuffix(" MB")) == pytest.approx(measured["bytes"][kind] / 1e6, abs=0.051)
            assert float(seconds) == pytest.approx(measured["seconds"][kind], abs=0.051)
        assert int(audits) == pytest.approx(measured["audit_seconds"], abs=1)
        assert len(measured["verdicts"]) == int(runs) - 1


def test_what_the_page_says_was_found() -> None:
    verdicts = {name: measured["verdicts"] for name, measured in FIGURES.items()}
    assert verdicts["demo"] == {"int8": "widespread", "int8-damaged": "localized"}
    assert FIGURES["demo"]["first"]["int8-damaged"] == "_blocks.7._expand_conv"
    assert FIGURES["vit"]["first"] == {"shuffled": "encoder.layers.encoder_layer_5.mlp.0"}
    localized = {label for label, verdict in verdicts["resnet50"].items() if verdict == "localized"}
    assert localized == {"batchnorm", "head"}
    assert len(verdicts["resnet50"]) == 7
    assert len(verdicts["digits"]) == 11


def test_every_picture_is_there_and_shown_once() -> None:
    shown = re.findall(r"!\[[^]]+\]\(gallery/([^)]+)\)", PAGE)
    assert sorted(shown) == sorted(file.name for file in FILES)
    assert {file for file in gallery.FOLDER.iterdir() if file.suffix not in (".py", ".json")} == FILES
    assert sum(file.stat().st_size for file in FILES) <= gallery.LARGEST_TOGETHER
    for file in FILES:
        assert file.stat().st_size <= gallery.LARGEST, file
        with Image.open(file) as image:
            assert 400 <= image.width <= 1600, file
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50, file  # an empty page has few


def test_links_lead_somewhere() -> None:
    headings = {gallery.anchor(line[3:]) for line in PAGE.splitlines() if line.startswith("## ")}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (ROOT / "docs" / target).exists(), target


def test_no_machine_is_named() -> None:
    for file in (gallery.PAGE, *(path for path in gallery.FOLDER.iterdir() if path.suffix in (".py", ".json"))):
        text = file.read_text("utf-8")
        assert not re.search(r"https?://|localhost|\d+\.\d+\.\d+\.\d+|/home/|/tmp/|/root|/work|sqlite:", text), file
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text), file


def test_files_are_shown_whole() -> None:
    shown = re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert dict(shown) == {path.name: path.read_text("utf-8") for path in gallery.FOLDER.glob("*.py")}
    assert len(dict(shown)) == len(shown)


@pytest.mark.parametrize("name", gallery.CASES)
def test_commands_stand_on_the_page_and_their_options_exist(name: str) -> None:
    case = gallery.CASES[name]
    joined = re.sub(r" \\\n +", " ", PAGE)
    for command in (*case.evidence, case.report("html"), case.report("pdf")):
        assert f"\n    {command}\n" in joined
        program, verb, *words = shlex.split(command)
        if program == "interpret":
            text = CliRunner().invoke(cli.commands, [verb, "--help"]).output
            for option in (word for word in words if word.startswith("-")):
                assert re.search(rf"(^|\s|,){re.escape(option)}\b", text), option
    assert case.section in {section.id for section in sections.SECTIONS}


@pytest.mark.parametrize("total", [1, 5, 6, 7, 8, 24, 25, 300])
def test_a_sheet_shows_the_first_pages_and_the_last(total: int) -> None:
    shown = gallery.shown_pages(total, 6)
    assert len(shown) == min(total, 6)
    assert shown == sorted(set(shown))
    assert shown[:3] == [1, 2, 3][:total]
    assert shown[-1] == total


def test_a_sheet_holds_each_page_at_its_place() -> None:
    size = (gallery.THUMB, 40)
    colours = {number: (10 * number, 0, 0) for number in range(1, gallery.COLUMNS + 2)}
    sheet = gallery.contact_sheet({number: Image.new("RGB", size, colour) for number, colour in colours.items()}, 9)
    for place, colour in enumerate(colours.values()):
        row, column = divmod(place, gallery.COLUMNS)
        left = gallery.MARGIN + column * (gallery.THUMB + gallery.MARGIN)
        top = gallery.MARGIN + row * (40 + gallery.MARGIN + 18)
        assert sheet.getpixel((left, top)) == colour
        assert sheet.getpixel((left + gallery.THUMB - 1, top + 39)) == colour
        assert sheet.getpixel((left - 1, top)) == (227, 230, 233)


def test_a_long_command_is_one_that_a_shell_takes() -> None:
    command = "interpret audit " + " ".join(f"checkpoint-{number:02d}.pt" for number in range(20))
    block = gallery.wrapped(command)
    assert all(line.startswith("    ") and len(line) <= 120 for line in block.splitlines())
    assert block.count("\\\n") == len(block.splitlines()) - 1 > 0
    echoed = subprocess.run(["bash", "-c", f"echo {block.strip()}"], capture_output=True, text=True, check=True)
    assert echoed.stdout.strip() == command


@pytest.mark.browser
def test_a_case_from_its_file_to_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, work = tmp_path / "gallery", tmp_path / "work"
    folder.mkdir()
    (folder / "tiny.py").write_text(TINY, "utf-8")
    for name, value in {"FOLDER": folder, "PAGE": tmp_path / "gallery.md", "FIGURES": folder / "figures.json"}.items():
        monkeypatch.setattr(gallery, name, value)
    audit = "interpret audit a.pt b.pt --model tiny.py:network --images images --resize 32 --crop 32"
    case = gallery.Case(
        "Tiny",
        "Two small networks.",
        ("python tiny.py", f"{audit} --no-mlflow --out evidence"),
        "evidence/*",
        "overview",
    )
    monkeypatch.setattr(gallery, "CASES", {"tiny": case})
    gallery.main(["tiny", "--work", str(work)])

    (made,) = work.iterdir()
    figures = json.loads((folder / "figures.json").read_text("utf-8"))["tiny"]
    assert made.name == f"tiny-{case.digest}"
    assert (figures["runs"], figures["images"]) == (2, 4)
    assert figures["calls"] == len(read_evidence(made / "evidence" / "a").calls)
    assert figures["bytes"]["pdf"] == (made / "report" / "report.pdf").stat().st_size
    assert min(figures["seconds"].values()) > 0.5  # Python and numpy alone take that
    assert {path.name for path in folder.glob("*.webp")} == {f"tiny-{name}.webp" for name in gallery.PICTURES}
    light, dark = (Image.open(folder / f"tiny-{name}.webp").convert("L").resize((1, 1)) for name in ("light", "dark"))
    assert light.getpixel((0, 0)) > 180 > 80 > dark.getpixel((0, 0))
    assert (tmp_path / "gallery.md").read_text("utf-8") == gallery.page_text({"tiny": figures})

    audited = (made / "evidence" / "a" / "manifest.json").stat().st_mtime_ns
    assert gallery.audited("tiny", work) == made
    assert (made / "evidence" / "a" / "manifest.json").stat().st_mtime_ns == audited
    other = dataclasses.replace(case, evidence=(*case.evidence, "python tiny.py"))
    assert other.digest != case.digest


def test_a_failing_command_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError, match=r"python missing\.py"):
        gallery.run("python missing.py", tmp_path)
    assert "missing.py" in capsys.readouterr().err


def test_an_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gallery.main(["vgg"])
    assert "unknown case 'vgg'; choose from demo, resnet50, lite, digits, vit" in capsys.readouterr().err
