"""What people give by mistake, or on purpose but seldom: one sentence and exit code 2, or it simply works."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import interpret
from bundles import bundle, network
from interpret import cli
from interpret.evidence import read_evidence
from interpret.preprocessing import Preprocessing

NETS = """
import torch
from torch import nn

def build(width=4, channels=3, classes=3):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
    )

class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = build(), change

    def forward(self, x):
        return self.change(self.net, x)

def fails():
    def change(net, x):
        raise RuntimeError("first line\\nsecond line")
    return Changed(change)

def nan(): return Changed(lambda net, x: net(x) * float("nan"))
def in_a_dict(): return Changed(lambda net, x: {"out": net(x), "loss": 1})
def in_a_tuple(): return Changed(lambda net, x: (net(x), x))
def in_words(): return Changed(lambda net, x: [str(net(x)), "cat"])
def per_pixel(): return Changed(lambda net, x: net[:6](x))
def one_per_batch(): return Changed(lambda net, x: net(x).mean(0, keepdim=True))
def never_runs(): return Changed(lambda net, x: x.flatten(1)[:, :3] * 2)
def loud():
    print("building")
    return build()
def raises(): raise ValueError("no such\\nbackbone")
def leaves(): raise SystemExit("goodbye")
def nothing(): pass
def needs(depth): return build()
def without_weights(): return nn.Sequential(nn.ReLU(), nn.Flatten())
def half(): return build().half()
def double(): return build().double()
instance = build()
number = 3

def constant(image): return torch.ones(3, 16, 16)
def scaled(image): return torch.full((3, 16, 16), image.getpixel((0, 0))[0] / 255)
def batched(image): return torch.ones(1, 3, 16, 16)
def integers(image): return torch.ones(3, 16, 16, dtype=torch.int64)
def noisy(image): return torch.rand(3, 16, 16)
def no_number(image): return torch.full((3, 16, 16), float("nan"))
def grey(image): return torch.ones(1, 16, 16)
def crashes(image): raise KeyError("mean")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the cases below name."""
    folder = tmp_path_factory.mktemp("world")
    code(folder)
    checkpoints(folder)
    pictures(folder)
    tables(folder)
    return folder


def code(folder: Path) -> None:
    (folder / "nets.py").write_text(NETS)
    (folder / "syntax.py").write_text("def build(:\n")
    (folder / "needs.py").write_text("import a_package_that_is_not_there\ndef build(): pass\n")
    (folder / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "empty.py").write_text("")


def model_and_space() -> tuple[nn.Module, dict[str, Any]]:
    space: dict[str, Any] = {}
    exec(NETS, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return space["build"](), space


def checkpoints(folder: Path) -> None:
    model, space = model_and_space()
    state = model.state_dict()
    torch.save(state, folder / "good.pt")
    whole = (folder / "good.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").touch()
    (folder / "text.pt").write_text("hello, I am a checkpoint\n")
    (folder / "page.pt").write_text("<!DOCTYPE html><html></html>")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"a": 1}))
    torch.save(nn.Sequential(nn.Linear(2, 2)), folder / "module.pt")
    torch.save({"epoch": 3}, folder / "epoch.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save(torch.ones(3), folder / "tensor.pt")
    torch.save({}, folder / "nothing.pt")
    torch.save({**state, "0.weight": torch.full((4, 3, 3, 3), torch.nan)}, folder / "nan.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "nested.pt")
    torch.save({f"module.{name}": value for name, value in state.items()}, folder / "parallel.pt")
    torch.save({name: value for name, value in state.items() if not name.startswith("8")}, folder / "headless.pt")
    torch.save({"ema": state, "student": state}, folder / "several.pt")
    torch.save(space["build"](width=5).state_dict(), folder / "wide.pt")
    torch.save(space["build"](classes=7).state_dict(), folder / "seven.pt")
    torch.save(space["build"](channels=1).state_dict(), folder / "grey.pt")
    torch.save({name: value.half() for name, value in state.items()}, folder / "half.pt")
    torch.save({f"net.{name}": value for name, value in state.items()}, folder / "changed.pt")
    save_file(state, folder / "good.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:100])
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}" * 20)
    shutil.copy(folder / "good.pt", folder / "模型 'v1'.pt")
    (folder / "ckpts").mkdir()
    with zipfile.ZipFile(folder / "archive.pt", "w") as archive:
        archive.writestr("good.pt", whole)


def pictures(folder: Path) -> None:
    pixels = np.random.default_rng(0)

    def picture(name: str, width: int = 20, height: int = 20, **options: Any) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(0, 255, (height, width, 3), np.uint8)).save(path, **options)
        return path

    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        picture(f"photos/{name}")
    shutil.copytree(folder / "photos", folder / "half")
    for name in ("cat/aa.png", "dog/d.jpg"):
        picture(f"half/{name}")
        (folder / "half" / name).write_bytes((folder / "half" / name).read_bytes()[:90])
    picture("broken/a.png").write_bytes(b"")
    picture("broken/b.jpg").write_bytes(b"no picture")
    shutil.copytree(folder / "photos", folder / "strange")
    picture("strange/cat/花 猫 🐈 'x' \"y\".JPG")
    picture("strange/dog/1x1.png", 1, 1)
    Image.new("L", (30, 9), 7).save(folder / "strange" / "dog" / "grey.tif")
    Image.new("CMYK", (9, 30)).save(folder / "strange" / "dog" / "ink.jpeg")
    Image.new("RGBA", (16, 16)).save(folder / "strange" / "dog" / "clear.webp")
    Image.new("1", (16, 16)).save(folder / "strange" / "dog" / "bits.gif")
    picture("sizes/a.png", 16, 16)
    picture("sizes/b.png", 17, 16)
    picture("narrow/a.png", 3000, 1)
    picture("mixed/loose.png")
    picture("mixed/cat/a.png")
    picture("typo/cat/a.png")
    picture("typo/dgo/a.png")
    picture("one/cat/a.png")
    (folder / "void").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "notes.txt").touch()
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tiff")


def tables(folder: Path) -> None:
    names = ("cat/a.png", "cat/b.png", "dog/c.png")

    def table(name: str, *labels: object, head: str = "file,label", root: str = "", encoding: str = "utf-8") -> None:
        lines = [head, *(f"{root}{file},{label}" for file, label in zip(names, labels, strict=False))]
        (folder / name).write_bytes("\n".join(lines).replace(",", ";" if ";" in head else ",").encode(encoding))

    table("labels.csv", 0, 0, 1)
    table("words.csv", "cat", "cat", "dog")
    table("excel.csv", 0, "", 1.0, head="File;Label", encoding="utf-16")
    table("header.csv", 0, 0, 1, head="path,class")
    table("short.csv", 0, 0)
    table("rooted.csv", 0, 0, 1, root="/data/val/")
    table("beyond.csv", 0, 0, 99)
    table("typo.csv", "cat", "cat", "dgo")
    table("latin.csv", "café", "cat", "dog", encoding="latin-1")
    (folder / "twice.csv").write_text("file,label\ncat/a.png,0\ncat/a.png,1\ncat/b.png,0\ndog/c.png,0\n")
    (folder / "bytes.csv").write_bytes(bytes(range(256)))
    (folder / "names.txt").write_text("cat\ndog\nbird\n")
    (folder / "gap.txt").write_text("cat\n\ndog\n")
    (folder / "names.json").write_text('["cat", "dog", ')
    (folder / "numbers.json").write_text("[1, 2, 3]")
    (folder / "index.json").write_text('{"1": "cat", "2": "dog", "3": "bird"}')
    (folder / "none.txt").touch()


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def message(code: int, captured: Any) -> str:
    """The one error message of a command that was refused."""
    assert code == 2, captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = captured.err.rstrip("\n").split("\n")
    errors = [line for line in lines if line.startswith("Error:")]
    assert len(errors) == 1, captured.err
    assert lines[-1] == errors[0], captured.err  # nothing behind it: a message is one line
    return errors[0]


def command(world: Path, checkpoint: str, options: str) -> list[str]:
    """An audit of the small network, in which the options given win."""
    given = [word.replace("{w}", str(world)).replace("~", " ") for word in options.split()]
    arguments = [str(world / checkpoint) if ":" not in checkpoint and checkpoint else checkpoint]
    for name, value in (
        ("--model", f"{world / 'nets.py'}:build"),
        ("--images", str(world / "photos")),
        ("--methods", "none"),
    ):
        arguments += [] if name in given else [name, value]
    if "--preprocess" not in given and "--resize" not in given:
        arguments += ["--resize", "16", "--crop", "16"]
    return [*arguments, *given]


REFUSED: list[tuple[str, str, str]] = [
    # checkpoints
    ("absent.pt", "", "absent.pt' does not exist"),
    ("godo.pt", "", "did you mean 'good.pt'"),
    ("", "", "checkpoint"),
    ("ckpts", "", "is a directory"),
    ("cut.pt", "", "truncated or damaged"),
    ("empty.pt", "", "is empty (0 bytes)"),
    ("text.pt", "", "is not a checkpoint"),
    ("page.pt", "", "a web page"),
    ("pointer.pt", "", "git lfs pull"),
    ("pickle.pt", "", "a pickle that torch.save did not write"),
    ("module.pt", "", "a pickled model"),
    ("epoch.pt", "", "epoch.pt'"),
    ("list.pt", "", "list.pt'"),
    ("tensor.pt", "", "tensor.pt'"),
    ("nothing.pt", "", "nothing.pt'"),
    ("archive.pt", "", "not a checkpoint"),
    ("cut.safetensors", "", "truncated"),
    ("header.safetensors", "", "truncated"),
    ("headless.pt", "", "8.weight"),
    ("wide.pt", "", "another shape"),
    ("seven.pt", "", "7 classes, the model was built with 3"),
    ("several.pt", "--branch teacher", "has no branch 'teacher'"),
    ("good.pt", "--branch model_ema", "has no branch 'model_ema'"),
    # models
    ("good.pt", "--model nets", "names no callable"),
    ("good.pt", "--model absent.py:build", "there is no file 'absent.py'"),
    ("good.pt", "--model no_such_package.nets:build", "there is no module 'no_such_package.nets'"),
    ("good.pt", "--model {w}/nets.py:biuld", "did you mean 'build'"),
    ("good.pt", "--model {w}/empty.py:build", "has no 'build'"),
    ("good.pt", "--model {w}/syntax.py:build", "SyntaxError"),
    ("good.pt", "--model {w}/needs.py:build", "No module named 'a_package_that_is_not_there'"),
    ("good.pt", "--model {w}/leaves.py:build", "SystemExit"),
    ("good.pt", "--model {w}/nets.py:number", "is a int"),
    ("good.pt", "--model {w}/nets.py:raises", "ValueError: no such"),
    ("good.pt", "--model {w}/nets.py:leaves", "SystemExit: goodbye"),
    ("good.pt", "--model {w}/nets.py:nothing", "returned a NoneType"),
    ("good.pt", "--model {w}/nets.py:needs", "missing 1 required positional argument: 'depth'"),
    ("good.pt", "--model-arg widht=4", "did you mean 'width'"),
    ("good.pt", "--model-arg width=-1", "-1"),
    ("good.pt", "--model-arg width=wide", "failed: TypeError"),
    ("good.pt", "--model {w}/nets.py:instance --model-arg width=4", "was built already"),
    ("good.pt", "--model {w}/nets.py:without_weights", "has no weights"),
    ("good.pt", "--model torchvision:resnet51", "did you mean 'resnet"),
    ("good.pt", "--model torchvision:ResNet50_Weights.DEFAULT", "has no model"),
    ("good.pt", "--model torchvision:resnet18", "another architecture"),
    ("good.pt", "--model torchvision:squeezenet1_1 --model-arg pretrained=True", "leave out the argument 'pretrained'"),
    ("good.pt", "--model timm:", "timm"),
    ("changed.pt", "--model {w}/nets.py:fails", "first line"),
    ("grey.pt", "--model-arg channels=1", "channels"),
    # images
    ("good.pt", "--images {w}/phtos", "did you mean 'photos'"),
    ("good.pt", "--images {w}/void", "there are no files"),
    ("good.pt", "--images {w}/texts", "only files with the suffix .txt"),
    ("good.pt", "--images {w}/*.jpg", "no images in"),
    ("good.pt", "--images {w}/half", "aa.png' is broken"),
    ("good.pt", "--images {w}/half", "--skip-broken (skip_broken=True)"),
    ("good.pt", "--images {w}/broken --skip-broken", "none of 2 images can be read: 'a.png' is no image"),
    ("good.pt", "--images {w}/float.tiff", "floating point values"),
    ("good.pt", "--images {w}/good.pt", "is no image that can be read"),
    ("good.pt", "--images {w}/narrow --resize 256", "too narrow to resize to 256"),
    ("good.pt", "--images {w}/sizes --preprocess {w}/nets.py:batched", "returned torch.float32 (1, 3, 16, 16)"),
    # preprocessing
    ("good.pt", "--mean 0.5,0.5", "must both have 3 values"),
    ("good.pt", "--mean 127,127,127", "divide yours by 255"),
    ("good.pt", "--std 0,0,0", "std"),
    ("good.pt", "--std nan,1,1", "finite"),
    ("good.pt", "--mean ,", "is not a list of numbers"),
    ("good.pt", "--resize 0", "0 is not in the range"),
    ("good.pt", "--resize 16 --crop -4", "-4 is not in the range"),
    ("good.pt", "--resize 16 --crop x", "'x' is not a valid integer"),
    ("good.pt", "--interpolation bicubik", "did you mean 'bicubic'"),
    ("good.pt", "--resize 16 --crop 1000000", "crop 1000000 makes pictures of more than"),
    ("good.pt", "--preprocess nets", "names no callable"),
    ("good.pt", "--preprocess {w}/nets.py:scald", "did you mean 'scaled'"),
    ("good.pt", "--preprocess {w}/nets.py:number", "name a function"),
    ("good.pt", "--preprocess {w}/nets.py:integers", "must return a float tensor"),
    ("good.pt", "--preprocess {w}/nets.py:noisy", "gives another tensor each time"),
    ("good.pt", "--preprocess {w}/nets.py:no_number", "NaN or infinite"),
    ("good.pt", "--preprocess {w}/nets.py:crashes --skip-broken", "failed: KeyError: 'mean'"),
    ("good.pt", "--preprocess {w}/nets.py:grey", "channels"),
    # labels and class names
    ("good.pt", "--labels {w}/absent.csv", "absent.csv' cannot be read: No such file"),
    ("good.pt", "--labels {w}/void", "is a directory"),
    ("good.pt", "--labels {w}/header.csv", "must begin with the line 'file,label', not 'path,class'"),
    ("good.pt", "--labels {w}/short.csv", "no row for 1 of 3 images: dog/c.png"),
    ("good.pt", "--labels {w}/rooted.csv", "such as 'cat/a.png', not '/data/val/cat/a.png'"),
    ("good.pt", "--labels {w}/twice.csv", "gives 'cat/a.png' two labels, '0' and in line 3 '1'"),
    ("good.pt", "--labels {w}/latin.csv", "cannot be read as UTF-8 text"),
    ("good.pt", "--labels {w}/bytes.csv", "cannot be read as UTF-8 text"),
    ("good.pt", "--labels {w}/words.csv", "'cat' is no class number; give --class-names"),
    ("good.pt", "--labels {w}/beyond.csv --class-names {w}/names.txt", "none of the 3 classes (0 to 2)"),
    ("good.pt", "--labels {w}/typo.csv --class-names {w}/names.txt", "did you mean 'dog'"),
    ("good.pt", "--labels {w}/labels.csv --labels-from-folders", "not from both"),
    ("good.pt", "--images {w}/mixed --labels-from-folders", "lies in no class folder"),
    ("good.pt", "--images {w}/photos/cat/a.png --labels-from-folders", "need a folder as --images"),
    ("good.pt", "--images {w}/typo --labels-from-folders --class-names {w}/names.txt", "folder 'dgo'"),
    ("good.pt", "--labels {w}/beyond.csv", "label 99 of 'dog/c.png' is out of range: the model has 3 classes (0 to 2)"),
    ("seven.pt", "--model-arg classes=7 --class-names {w}/names.txt", "3 class names were given, but the model has 7"),
    ("good.pt", "--class-names {w}/gap.txt", "line 2 is empty"),
    ("good.pt", "--class-names {w}/none.txt", "is empty"),
    ("good.pt", "--class-names {w}/names.json", "is not valid JSON"),
    ("good.pt", "--class-names {w}/numbers.json", "class names as text"),
    ("good.pt", "--class-names {w}/index.json", "numbered 0, 1, 2"),
    ("good.pt", "--class-names {w}/good.pt", "cannot be read as UTF-8 text"),
    # targets, layers, methods, numbers
    ("good.pt", "--targets lable", "did you mean 'label'"),
    ("good.pt", "--targets label --methods grad-cam", "give labels"),
    ("good.pt", "--targets 3 --methods grad-cam", "out of range: the model has 3 classes (0 to 2)"),
    ("good.pt", "--targets 99999999999999999999 --methods grad-cam", "out of range"),
    ("good.pt", "--targets=-1 --methods grad-cam", "target class -1 is out of range"),
    ("good.pt", "--targets {w}/photos", "holds no evidence bundle"),
    ("good.pt", "--targets predicted,{w}/void", "holds no evidence bundle"),
    ("good.pt", "--layers 44", "44"),
    ("good.pt", "--layers layer4.*", "layer4.*"),
    ("good.pt", "--methods grad-can", "did you mean 'grad-cam'"),
    ("good.pt", "--methods grad-cam,none", "none"),
    ("good.pt", "--probe-count 0", "0 is not in the range"),
    ("good.pt", "--display-count -1", "-1 is not in the range"),
    ("good.pt", "--batch-size many", "'many' is neither a positive number nor"),
    ("good.pt", "--device cuda:99", "device 'cuda:99' cannot be used"),
    ("good.pt", "--device gpu", "device 'gpu' cannot be used"),
    ("good.pt", "--seed one", "'one' is not a valid integer"),
    ("good.pt", "--nonsense", "No such option"),
]  # fmt: skip


@pytest.mark.parametrize(("checkpoint", "options", "words"), REFUSED)
def test_an_audit_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path, checkpoint: str, options: str, words: str
) -> None:
    code = run("audit", *command(world, checkpoint, options), "--no-mlflow", "--out", tmp_path / "out")
    assert words in message(code, capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


SOUND: list[tuple[str, str]] = [
    ("good.safetensors", ""),
    ("模型 'v1'.pt", ""),
    ("nested.pt", "--branch state_dict"),
    ("parallel.pt", ""),
    ("half.pt", ""),
    ("several.pt", "--branch student"),
    ("nan.pt", "--methods grad-cam"),
    ("good.pt", "--model {w}/nets.py:instance"),
    ("good.pt", "--model {w}/nets.py:loud"),
    ("good.pt", "--model {w}/nets.py:half"),
    ("good.pt", "--model {w}/nets.py:double --methods grad-cam"),
    ("changed.pt", "--model {w}/nets.py:nan --methods grad-cam"),
    ("changed.pt", "--model {w}/nets.py:in_a_dict --methods grad-cam"),
    ("changed.pt", "--model {w}/nets.py:in_a_tuple --methods grad-cam"),
    ("changed.pt", "--model {w}/nets.py:per_pixel --methods grad-cam"),
    ("changed.pt", "--model {w}/nets.py:in_words --methods grad-cam"),
    ("grey.pt", "--model-arg channels=1 --mean 0.5 --std 0.5"),
    ("seven.pt", "--model-arg classes=7"),
    ("good.pt", "--images {w}/strange --methods grad-cam --display-count 9"),
    ("good.pt", "--images {w}/half --skip-broken"),
    ("good.pt", "--images {w}/half --skip-broken --labels-from-folders --probe-count 2"),
    ("good.pt", "--images {w}/one"),
    ("good.pt", "--images {w}/photos/*/a.png --probe-count 1000 --batch-size 1000"),
    ("good.pt", "--images {w}/sizes --preprocess {w}/nets.py:scaled"),
    ("good.pt", "--preprocess {w}/nets.py:constant --methods grad-cam"),
    ("good.pt", "--labels {w}/excel.csv"),
    ("good.pt", "--labels {w}/words.csv --class-names {w}/names.txt --targets label --methods grad-cam"),
    ("good.pt", "--display-count 0"),
    ("good.pt", "--layers 8 --layers 0 --methods grad-cam"),
    ("good.pt", "--layers * --methods grad-cam,hires-cam"),
    ("good.pt", "--targets ~1~,~predicted~ --methods grad-cam"),
    ("good.pt", "--seed -5"),
]  # fmt: skip


@pytest.mark.parametrize(("checkpoint", "options"), SOUND)
def test_what_is_unusual_but_sound_is_audited(
    capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path, checkpoint: str, options: str
) -> None:
    code = run("audit", *command(world, checkpoint, options), "--no-mlflow", "--out", tmp_path / "out", "--json")
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "Error" not in captured.err
    assert "Traceback" not in captured.err
    assert json.loads(captured.out)["status"] == "complete"  # and nothing else on stdout
    read_evidence(tmp_path / "out").verify()


def test_what_people_print_is_no_result(capsys: pytest.CaptureFixture[str], world: Path) -> None:
    arguments = ["--model", f"{world / 'nets.py'}:loud", "--input-shape", "3, 16, 16", "--json"]
    assert run("layers", world / "good.pt", *arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["totals"]["calls"] == 9
    assert "building" in captured.err


def test_broken_images_are_named_before_the_audit_goes_on(
    capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path
) -> None:
    options = "--images {w}/half --skip-broken --probe-count 3 --labels-from-folders --class-names {w}/names.txt"
    assert run("audit", *command(world, "good.pt", options), "--no-mlflow", "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("skipped 'cat/aa.png': it is broken (") for line in lines)
    assert "1 of 5 images are broken and left out; 3 are used" in lines
    inputs = read_evidence(tmp_path / "out").manifest.inputs
    assert inputs["names"] == ["cat/a.png", "cat/b.png", "dog/c.png"]
    assert inputs["labels"] == [0, 0, 1]
    (skipped,) = inputs["skipped"]
    assert skipped["name"] == "cat/aa.png"
    assert skipped["reason"].startswith("is broken (")


def test_broken_images_in_python(world: Path) -> None:
    model = model_and_space()[0]
    preprocessing = Preprocessing(16, 16)
    with pytest.raises(interpret.InterpretError, match=r"skip_broken=True"):
        interpret.audit(model, world / "half", preprocessing=preprocessing, methods=())
    with interpret.audit(model, world / "half", preprocessing=preprocessing, methods=(), skip_broken=True) as evidence:
        assert [entry["name"] for entry in evidence.manifest.inputs["skipped"]] == ["cat/aa.png", "dog/d.jpg"]


# ------------------------------------------------------------------------------------------------- where the audit goes


def test_out_is_a_file(capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    code = run("audit", *command(world, "good.pt", ""), "--no-mlflow", "--out", tmp_path / "out")
    assert "out" in message(code, capsys.readouterr())
    assert (tmp_path / "out").read_text() == "mine"


def test_out_is_not_empty(capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    code = run("audit", *command(world, "good.pt", ""), "--no-mlflow", "--out", tmp_path / "out")
    assert "is not empty; give a new or empty folder" in message(code, capsys.readouterr())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_empty_out_stays_empty_where_the_audit_is_refused(
    capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    arguments = command(world, "changed.pt", "--model {w}/nets.py:fails")
    code = run("audit", *arguments, "--no-mlflow", "--out", tmp_path / "out")
    assert "first line second line" in message(code, capsys.readouterr())
    assert list((tmp_path / "out").iterdir()) == []


def test_out_lies_below_a_file(capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    code = run("audit", *command(world, "good.pt", ""), "--no-mlflow", "--out", tmp_path / "file" / "out")
    assert "Not a directory" in message(code, capsys.readouterr())


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("modle = 'x'", "unknown option 'modle'; did you mean 'model'"),
        ("[model]\nspec = 'x'", "'model' takes one value, not a table"),
        ("resize = 'big'", "'big' is not a valid integer"),
        ("resize = [1, 2]", "is not a valid integer"),
        ("resize = ", "is not TOML"),
        ("config = 'other.toml'", "unknown option 'config'"),
        ("mean = ['a', 'b']", "is not a list of numbers"),
        ("skip-broken = 'perhaps'", "'perhaps' is not a valid boolean"),
        ("batch-size = 0", "'0' is neither a positive number nor"),
        ("model-arg = 'width'", "is not of the form NAME=VALUE"),
        ("checkpoint = 'x.pt'", "unknown option 'checkpoint'"),
        ("\ufeffcrop = 3\0", "is not TOML"),
    ],
)  # fmt: skip
def test_configuration_files_that_are_refused(
    capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "audit.toml").write_text(content)
    arguments = [str(world / "good.pt"), "--images", str(world / "photos"), "--no-mlflow", "--out", tmp_path / "out"]
    code = run("audit", *arguments, "--config", tmp_path / "audit.toml")
    assert words in message(code, capsys.readouterr())
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------- torchvision weights


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("torchvision:ResNet50_Weights.IMAGENET1K_V3", "did you mean 'ResNet50_Weights.IMAGENET1K_V"),
        ("torchvision:ResNet51_Weights.DEFAULT", "torchvision has no weights 'ResNet51_Weights.DEFAULT'"),
        ("torchvision:resnet50", "torchvision has no weights 'resnet50'"),
        ("torchvision:", "torchvision has no weights ''"),
        ("torchvision:SSD300_VGG16_Weights.COCO_V1", "weights of detection are not built here"),
        ("torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1", "cannot be downloaded (no route to host); fetch https://"),
    ],
)
def test_published_weights_that_are_not_to_be_had(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    world: Path,
    tmp_path: Path,
    weights: str,
    words: str,
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    arguments = ["--images", str(world / "photos"), "--no-mlflow", "--out", str(tmp_path / "out")]
    assert words in message(run("audit", weights, *arguments), capsys.readouterr())
    assert not (tmp_path / "out").exists()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_published_weights_that_were_half_downloaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, world: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(world / "good.pt", tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    code = run("layers", "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1")
    assert "does not match the digest in its name; delete it" in message(code, capsys.readouterr())


# --------------------------------------------------------------------------------------------------- layers, diff, show


@pytest.mark.parametrize(
    ("checkpoint", "options", "words"),
    [
        ("absent.pt", "", "does not exist"),
        ("wide.pt", "", "another shape"),
        ("good.pt", "--model", "requires an argument"),
        ("good.pt", "--input-shape 3", "(1, 3)"),
        ("good.pt", "--input-shape 1,16,16", "channels"),
        ("good.pt", "--input-shape 3,1,1", "(1, 3, 1, 1)"),
        ("good.pt", "--input-shape 3,0,16", "is not a list of sizes such as 3,224,224"),
        ("good.pt", "--input-shape 3,-16,16", "is not a list of sizes"),
        ("good.pt", "--input-shape 3,inf,16", "is not a list of sizes"),
        ("good.pt", "--input-shape 3,99999,99999", "is not a list of sizes"),
        ("good.pt", "--input-shape 16x16", "is not a list of sizes"),
        ("changed.pt", "--model {w}/nets.py:fails", "first line second line"),
    ],
)
def test_layers_are_refused(
    capsys: pytest.CaptureFixture[str], world: Path, checkpoint: str, options: str, words: str
) -> None:
    given = options.replace("{w}", str(world)).split()
    model = [] if "--model" in given else ["--model", f"{world / 'nets.py'}:build"]
    shape = [] if "--input-shape" in given else ["--input-shape", "3,16,16"]
    assert words in message(run("layers", world / checkpoint, *model, *shape, *given), capsys.readouterr())


@pytest.mark.parametrize(
    ("other", "options", "words"),
    [
        ("absent.pt", "", "absent.pt' does not exist"),
        ("wide.pt", "", "another shape"),
        ("good.pt", "--format pdf,docx", "docx"),
        ("good.pt", "--detail some", "'some' is not one of"),
        ("good.pt", "--templates {w}/absent", "does not exist"),
        ("good.pt", "--images {w}/half", "--skip-broken"),
    ],
)
def test_a_diff_is_refused(
    capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path, other: str, options: str, words: str
) -> None:
    arguments = [world / "good.pt", world / other, *command(world, "good.pt", options)[1:]]
    code = run("diff", *arguments, "--no-mlflow", "-o", tmp_path / "report")
    assert words in message(code, capsys.readouterr())
    assert list(tmp_path.rglob("*.html")) == []


def test_a_diff_without_broken_images(capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path) -> None:
    arguments = [world / "good.pt", world / "nan.pt", *command(world, "good.pt", "--images {w}/half --skip-broken")[1:]]
    code = run("diff", *arguments, "--no-mlflow", "-o", tmp_path / "report", "--format", "html", "--json")
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "Traceback" not in captured.err
    assert json.loads(captured.out)["runs"][0]["run"] == "nan"


@pytest.fixture(scope="module")
def sound_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "sound"
    bundle(network(), folder)
    return folder


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Damage to the manifest's content."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        change(content)
        (folder / "manifest.json").write_text(json.dumps(content))

    return damage


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "unfinished audit"),
    "empty folder": (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no evidence bundle"),
    "manifest cut": (cut("manifest.json"), "cannot be read as a manifest"),
    "manifest empty": (lambda folder: (folder / "manifest.json").write_text(""), "cannot be read as a manifest"),
    "manifest of bytes": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\0"), "cannot be read"),
    "manifest a list": (lambda folder: (folder / "manifest.json").write_text("[1]"), "cannot be read as a manifest"),
    "newer version": (rewritten(lambda content: content.update(schema_version=99)), "bundle version 99"),
    "version in words": (rewritten(lambda content: content.update(schema_version="1")), "bundle version 1"),
    "version 0": (rewritten(lambda content: content.update(schema_version=0)), "version 0"),
    "no calls": (rewritten(lambda content: content.pop("calls")), "lacks calls"),
    "calls are none": (rewritten(lambda content: content.update(calls=None)), "damaged"),
    "a call cut": (rewritten(lambda content: content["calls"][0].pop("kind")), "lacks kind"),
    "a call is text": (rewritten(lambda content: content["calls"].insert(0, "conv1")), "damaged"),
    "a shape is text": (rewritten(lambda content: content["calls"][0].update(output_shape=3)), "damaged"),
    "files are none": (rewritten(lambda content: content.update(files=None)), "damaged"),
    "model is text": (rewritten(lambda content: content.update(model="TinyNet")), "damaged"),
    "layers cut": (cut("layers.npz"), "layers.npz"),
    "layers gone": (lambda folder: (folder / "layers.npz").unlink(), "layers.npz is missing"),
    "weights changed": (lambda folder: (folder / "weights.json").write_text("{}"), "was changed after the audit"),
}


@pytest.mark.parametrize("command_name", ["show", "report"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bundles_are_refused(
    capsys: pytest.CaptureFixture[str], sound_bundle: Path, tmp_path: Path, damage: str, command_name: str
) -> None:
    inflict, words = DAMAGES[damage]
    shutil.copytree(sound_bundle, tmp_path / "bundle")
    inflict(tmp_path / "bundle")
    options = ["-o", tmp_path / "report", "--format", "html"] if command_name == "report" else []
    code = run(command_name, tmp_path / "bundle", *options)
    assert words in message(code, capsys.readouterr())
    assert not (tmp_path / "report").exists() or list((tmp_path / "report").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "{t}/file"], "file"),
        (["-o", "{t}/report", "--format", "docx"], "docx"),
        (["-o", "{t}/report", "--labels", "a,b"], "2 names for 1 runs"),
        (["-o", "{t}/report", "--reference", "{t}/empty"], "holds no evidence bundle"),
        ([], "'-o'"),
    ],
)
def test_reports_are_refused(
    capsys: pytest.CaptureFixture[str], sound_bundle: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    code = run("report", sound_bundle, *[option.replace("{t}", str(tmp_path)) for option in options])
    assert words in message(code, capsys.readouterr())
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "report").exists()


def test_the_same_run_twice_and_a_bundle_from_elsewhere(
    capsys: pytest.CaptureFixture[str], sound_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(sound_bundle, tmp_path / "花 'x' (2)" / "interpret")
    arguments = [sound_bundle, sound_bundle, tmp_path / "花 'x' (2)"]
    code = run("report", *arguments, "-o", tmp_path / "report", "--format", "html", "--json")
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert [row["verdict"] for row in json.loads(captured.out)["runs"]] == ["identical", "identical"]
