"""Probe sets: what was frozen comes back to the bit, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import interpret
from interpret import cli
from interpret.errors import ImageError, InterpretError, LayerError
from interpret.evidence import Evidence, read_evidence
from interpret.images import ProbeImages, find_images, load_images, probe_from_tensor
from interpret.preprocessing import Preprocessing
from interpret.probes import ProbeSet, read_probe, write_probe
from networks import digit_images, trained_digits

NET = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )
"""
NAMES = ("Katze", "Hündin", "鳥")
FRAMING = ("--resize", "16", "--crop", "16")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.py, two checkpoints, class names, and six photos in two class folders, one of them broken."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "net.py").write_text(NET)
    space: dict[str, Any] = {}
    exec(NET, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("old", "new"):
            torch.save(space["build"]().state_dict(), folder / f"{name}.pt")
    pixels = np.random.default_rng(0)
    for number, name in enumerate(("Hündin/ä b.png", "Hündin/犬.png", "鳥/c.png", "鳥/d.png", "鳥/e.png")):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(0, 255, (20, 20 + number, 3), np.uint8)).save(folder / "photos" / name)
    (folder / "photos" / "鳥" / "broken.png").write_bytes(b"no picture")
    (folder / "names.txt").write_text("\n".join(NAMES), "utf-8")
    return folder


@pytest.fixture
def photos(inputs: Path, tmp_path: Path) -> Path:
    """A copy of the photos, to be changed or deleted."""
    return Path(shutil.copytree(inputs / "photos", tmp_path / "photos"))


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def audited(inputs: Path, name: str, out: Path, *options: str | Path) -> Evidence:
    model = ("--model", f"{inputs / 'net.py'}:build")
    assert run("audit", inputs / f"{name}.pt", *model, *options, "--no-mlflow", "--out", out) == 0
    return read_evidence(out)


def contents(evidence: Evidence) -> dict[str, bytes]:
    """Every file of a bundle that an audit repeats."""
    return {path.name: path.read_bytes() for path in evidence.folder.iterdir() if path.name != "journal.json"}


def frozen(folder: Path, **options: Any) -> ProbeSet:
    """Twelve digits, of which five have pictures."""
    images, labels = digit_images()
    probe = probe_from_tensor(images[:12], labels=labels[:12].tolist(), display_count=5)
    return write_probe(probe, folder, **options)


# ---------------------------------------------------------------------------------------------------------- repetition


@pytest.mark.parametrize("targets", ["predicted", "label", "2", "0,2", "label,predicted,1"])
def test_an_audit_is_repeated_to_the_bit_without_the_photos(
    inputs: Path, photos: Path, tmp_path: Path, targets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--labels-from-folders", "--class-names", inputs / "names.txt", *FRAMING, "--skip-broken"]
    asked = [*options, "--targets", targets, "--display-count", "3"]
    first = audited(inputs, "old", tmp_path / "first", "--images", photos, *asked)
    capsys.readouterr()
    assert run("probe", photos, *asked, "-o", tmp_path / "probe") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1:] == [f"sha256  {first.manifest.inputs['probe_sha256']}", "images  5 of 3x16x16, 3 with pictures"]
    shutil.rmtree(photos)
    again = audited(inputs, "old", tmp_path / "again", "--probe", tmp_path / "probe")
    assert contents(again) == contents(first)
    assert again.digest == first.digest
    assert again.manifest.inputs["labels"] == [1, 1, 2, 2, 2]
    assert again.manifest.inputs["names"][:2] == ["Hündin/ä b.png", "Hündin/犬.png"]
    assert [entry["name"] for entry in again.manifest.inputs["skipped"]] == ["鳥/broken.png"]
    assert again.manifest.model["class_names"] == list(NAMES)


def test_changed_photos_do_not_matter(inputs: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "鳥" / "broken.png").unlink()
    assert run("probe", photos, *FRAMING, "-o", tmp_path / "probe") == 0
    first = audited(inputs, "old", tmp_path / "first", "--images", photos, *FRAMING)
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        Image.new("RGB", (30, 30), (number, 0, 0)).save(path)
    changed = audited(inputs, "old", tmp_path / "changed", "--images", photos, *FRAMING)
    again = audited(inputs, "old", tmp_path / "again", "--probe", tmp_path / "probe")
    assert again.digest == first.digest != changed.digest


def test_targets_of_a_run_are_frozen(inputs: Path, photos: Path, tmp_path: Path) -> None:
    asked = ("--images", photos, "--skip-broken", *FRAMING, "--display-count", "4")
    reference = audited(inputs, "old", tmp_path / "reference", *asked, "--targets", "predicted,1")
    direct = audited(inputs, "new", tmp_path / "direct", *asked, "--targets", reference.folder)
    freeze = ("probe", photos, "--skip-broken", *FRAMING, "--targets", reference.folder, "-o", tmp_path / "probe")
    assert run(*freeze, "--display-count", "4") == 0
    rows = reference.array("maps", "targets").tolist()
    shutil.rmtree(reference.folder)
    shutil.rmtree(photos)
    again = audited(inputs, "new", tmp_path / "again", "--probe", tmp_path / "probe")
    assert again.array("maps", "targets").tolist() == rows
    assert again.manifest.files == direct.manifest.files
    assert again.manifest.settings["targets"] == "given class indices"
    assert json.loads((tmp_path / "probe" / "probe.json").read_text("utf-8"))["targets"] == [rows]


def test_images_that_a_run_did_not_display_have_no_target(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = inputs / "photos" / "鳥" / "[cde].png"
    reference = audited(inputs, "old", tmp_path / "reference", "--images", photos, *FRAMING, "--display-count", "1")
    freeze = ("probe", photos, *FRAMING, "--targets", reference.folder, "-o", tmp_path / "probe")
    assert run(*freeze) == 2
    assert "image 'd.png' was not displayed in the audit" in capsys.readouterr().err
    assert not (tmp_path / "probe").exists()
    assert run(*freeze, "--display-count", "0") == 0
    assert audited(inputs, "old", tmp_path / "again", "--probe", tmp_path / "probe").manifest.inputs["displayed"] == 0


def test_targets_and_display_count_of_the_command_line_win(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (inputs / "photos", "--skip-broken", *FRAMING)
    assert run("probe", *asked, "--display-count", "3", "--targets", "1", "-o", tmp_path / "probe") == 0
    other = ("--targets", "0", "--display-count", "2")
    direct = audited(inputs, "old", tmp_path / "direct", "--images", *asked, *other)
    again = audited(inputs, "old", tmp_path / "again", "--probe", tmp_path / "probe", *other)
    assert contents(again) == contents(direct)
    assert run("audit", inputs / "old.pt", "--model", f"{inputs / 'net.py'}:build", "--probe", tmp_path / "probe",
               "--display-count", "4", "--no-mlflow", "--out", tmp_path / "more") == 2  # fmt: skip
    assert "holds pictures of 3 of 5 images, not of 4" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


def test_two_checkpoints_on_a_probe_set(inputs: Path, tmp_path: Path) -> None:
    model = ("--model", f"{inputs / 'net.py'}:build")
    assert run("probe", inputs / "photos", "--skip-broken", *FRAMING, "--targets", "2", "-o", tmp_path / "probe") == 0
    both = (inputs / "old.pt", inputs / "new.pt", *model, "--no-mlflow", "--format", "html")
    assert run("diff", *both, "--probe", tmp_path / "probe", "-o", tmp_path / "report") == 0
    evidence = [read_evidence(tmp_path / "report" / "evidence" / name) for name in ("old", "new")]
    assert [entry.array("maps", "targets").tolist() for entry in evidence] == [[[2]] * 4] * 2
    assert len({entry.manifest.inputs["probe_sha256"] for entry in evidence}) == 1
    written = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert written["comparable"]["new"]["activations"] == "exact"


def test_published_weights_give_preprocessing_and_class_names_without_a_download(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1"
    photos = inputs / "photos" / "鳥" / "[cde].png"
    assert run("probe", photos, "--weights", weights, "-o", tmp_path / "probe", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["shape"] == [3, 3, 224, 224]
    probe = read_probe(tmp_path / "probe")
    assert probe.class_names is not None
    assert probe.class_names[281] == "tabby"
    assert probe.images.preprocessing["name"] == weights
    for unknown, message in (("best.pt", "are no published weights"), (f"{weights}2", "has no weights")):
        assert run("probe", photos, "--weights", unknown, "-o", tmp_path / "other") == 2
        assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- from Python


def test_grey_digits_in_python(tmp_path: Path) -> None:
    images, labels = digit_images()
    known = [*labels[:6].tolist(), *[None] * 6]
    pictures = np.random.default_rng(1).integers(0, 255, (3, 8, 8, 3), np.uint8)
    probe = probe_from_tensor(
        images[:12],
        names=[f"Ziffer {number}/٣ \U0001f600" for number in range(12)],
        pictures=pictures,
        labels=known,
        preprocessing={"scale": 1 / 3, "range": (0, 1)},
    )
    names = [str(digit) for digit in range(10)]
    returned = interpret.write_probe(probe, tmp_path / "probe", targets=labels[:12], class_names=names)
    read = interpret.read_probe(tmp_path / "probe")
    assert read.images.images.dtype == torch.float32
    assert read.images.images.numpy().tobytes() == images[:12].numpy().tobytes()
    assert np.array_equal(read.images.pictures, pictures)
    for field in ("names", "source_sha256", "tensor_sha256", "probe_sha256", "labels", "skipped"):
        assert getattr(read.images, field) == getattr(probe, field), field
    assert read.images.preprocessing == {"source": "tensor", "picture": "given", "scale": 1 / 3, "range": [0, 1]}
    assert read.targets.tolist() == returned.targets.tolist() == labels[:12, None].tolist()
    assert read.class_names == returned.class_names == tuple(names)
    model = trained_digits()
    with (
        interpret.audit(model, probe, targets=labels[:12], class_names=names) as first,
        interpret.audit(model, read.images, targets=read.targets, class_names=read.class_names) as again,
    ):
        assert contents(again) == contents(first)
        assert first.array("maps", "targets").tolist() == labels[:3, None].tolist()


def test_the_digests_are_those_of_the_tensors(tmp_path: Path) -> None:
    """Recomputed from what lies on the disk, by the definition in the contract of the images."""
    probe = frozen(tmp_path / "probe").images
    with np.load(tmp_path / "probe" / "images.npz", allow_pickle=False) as archive:
        assert archive["pictures"].shape == (5, 8, 8, 3)
        tensors = [archive[f"{number:06d}"] for number in range(12)]
    digests = [hashlib.sha256(b"(1, 8, 8)\n" + tensor.astype("<f4").tobytes()).hexdigest() for tensor in tensors]
    index = json.loads((tmp_path / "probe" / "probe.json").read_text("utf-8"))
    assert index["tensor_sha256"] == digests == list(probe.tensor_sha256)
    assert index["probe_sha256"] == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    archive_sha256 = hashlib.sha256((tmp_path / "probe" / "images.npz").read_bytes()).hexdigest()
    assert index["files"] == {"images.npz": archive_sha256}


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        frozen(tmp_path / name, targets=[3, "label"])
    for file in ("probe.json", "images.npz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["images.npz", "probe.json"]


def test_the_format_names_the_fields_that_are_written(tmp_path: Path) -> None:
    frozen(tmp_path / "probe")
    text = (Path(interpret.__file__).parent / "FORMAT.md").read_text("utf-8").split("## probe.json\n")[1]
    rows = [line.split("|")[1] for line in text.split("\n## ")[0].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named == set(json.loads((tmp_path / "probe" / "probe.json").read_text("utf-8")))


def test_bits_that_compare_equal_or_not_at_all_survive(tmp_path: Path) -> None:
    """-0.0, subnormal numbers and the largest floats; also where the tensor lies channels last."""
    values = torch.tensor([-0.0, 0.0, 1e-45, -1e-40, 3.4028235e38, 0.1]).repeat(16).reshape(2, 3, 4, 4)
    probe = probe_from_tensor(values.to(memory_format=torch.channels_last))
    write_probe(probe, tmp_path / "probe")
    read = read_probe(tmp_path / "probe").images.images
    assert read.is_contiguous()
    assert torch.equal(read.view(torch.int32), values.view(torch.int32))


def test_large_sets_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = frozen(tmp_path / "probe")
    asked: list[int] = []
    monkeypatch.setattr("interpret.images.MEMORY_BUDGET", 12 * 64 * 4 - 1)
    mapped = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *a, **k: (asked.append(k["size"]), mapped(*a, **k))[1])
    read = read_probe(tmp_path / "probe").images.images
    assert asked == [12 * 64]
    assert torch.equal(read, written.images.images)


@pytest.mark.parametrize(
    ("targets", "stored", "read"),
    [
        (None, ["predicted"], "predicted"),
        ("label", ["label"], "label"),
        (7, [7], 7),
        (np.int32(7), [7], 7),
        (list(range(9)) + [0] * 3, [[[n] for n in [*range(9), 0, 0, 0]]], [[n] for n in [*range(9), 0, 0, 0]]),
        (torch.ones(5, 2, dtype=torch.uint8), [[[1, 1]] * 5], [[1, 1]] * 5),
        (["label", 3, np.arange(5)], ["label", 3, [[0], [1], [2], [3], [4]]], None),
    ],
)
def test_targets_of_every_form(tmp_path: Path, targets: Any, stored: Any, read: Any) -> None:
    frozen(tmp_path / "probe", targets=targets)
    assert json.loads((tmp_path / "probe" / "probe.json").read_text("utf-8"))["targets"] == stored
    probe = read_probe(tmp_path / "probe")
    if read is not None:
        assert (probe.targets.tolist() if isinstance(probe.targets, np.ndarray) else probe.targets) == read
    given = "predicted" if targets is None else targets
    with (
        interpret.audit(trained_digits(), probe.images, targets=given, methods=("grad-cam",)) as direct,
        interpret.audit(trained_digits(), probe.images, targets=probe.targets, methods=("grad-cam",)) as again,
    ):
        assert again.array("maps", "targets").tolist() == direct.array("maps", "targets").tolist()
        assert again.digest == direct.digest


# ------------------------------------------------------------------------------------------------------------- refusals


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def relabel(path: Path) -> None:
    path.write_text(path.read_text("utf-8").replace('"labels": [\n    0,', '"labels": [\n    1,'), "utf-8")


def newer(path: Path) -> None:
    path.write_text(path.read_text("utf-8").replace('"schema_version": 1', '"schema_version": 2'), "utf-8")


def write(text: str) -> Any:
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("images.npz", flip, r"images\.npz' was changed after it was frozen: its sha256 does not match"),
        ("images.npz", cut, r"images\.npz' was changed after it was frozen"),
        ("images.npz", Path.unlink, r"images\.npz' is missing; copy the whole probe set again"),
        ("probe.json", relabel, r"probe\.json' was changed after it was frozen"),
        ("probe.json", cut, r"probe\.json' cannot be read as the index of a probe set"),
        ("probe.json", write("[1]"), r"probe\.json' cannot be read as the index of a probe set"),
        ("probe.json", write("\ud800".encode("utf-8", "surrogatepass").decode("latin-1")), r"cannot be read as"),
        ("probe.json", write('{"schema_version": 1}'), r"probe\.json' was changed after it was frozen"),
        ("probe.json", write('{"schema_version": 1, "mean": NaN}'), r"probe\.json' cannot be read as the index"),
        (
            "probe.json",
            write('{"schema_version": 1, "names": ["\\ud800"]}'),
            r"probe\.json' was changed after it was frozen",
        ),
        ("probe.json", write('{"schema_version": "1"}'), r"version '1', but this release reads up to 1"),
        ("probe.json", newer, r"is a probe set of version 2, but this release reads up to 1; upgrade"),
        ("probe.json", Path.unlink, r"holds no probe set \(no probe\.json\); `interpret probe PATH -o FOLDER` makes"),
    ],
)
def test_what_was_changed_is_refused_by_name(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, change: Any, message: str
) -> None:
    frozen(tmp_path / "probe")
    before = (tmp_path / "probe" / file).read_bytes()
    change(tmp_path / "probe" / file)
    assert not (tmp_path / "probe" / file).exists() or (tmp_path / "probe" / file).read_bytes() != before
    with pytest.raises(ImageError, match=message):
        read_probe(tmp_path / "probe")
    model = ("--model", f"{inputs / 'net.py'}:build")
    options = (*model, "--probe", tmp_path / "probe", "--no-mlflow", "--out", tmp_path / "never")
    capsys.readouterr()
    assert run("audit", inputs / "old.pt", *options) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert re.search(message, error[0])


def signed(folder: Path, **changes: Any) -> None:
    """Change the index as its author could: with digests that match."""
    index = json.loads((folder / "probe.json").read_text("utf-8"))
    del index["sha256"]
    index |= changes
    index["files"] = {"images.npz": hashlib.sha256((folder / "images.npz").read_bytes()).hexdigest()}
    index = {key: value for key, value in index.items() if value is not ...}
    digest = hashlib.sha256((json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()).hexdigest()
    (folder / "probe.json").write_text(json.dumps({**index, "sha256": digest}), "utf-8")


@pytest.mark.parametrize(
    "changes", [{"count": 13}, {"count": "many"}, {"names": None}, {"shape": [2, 8, 9]}, {"targets": ...}]
)
def test_what_does_not_hold_together_is_damaged(tmp_path: Path, changes: dict[str, Any]) -> None:
    frozen(tmp_path / "probe")
    signed(tmp_path / "probe")
    read_probe(tmp_path / "probe")
    signed(tmp_path / "probe", **changes)
    with pytest.raises(ImageError, match=r"probe' is damaged \(.*\); freeze it again"):
        read_probe(tmp_path / "probe")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    frozen(tmp_path / "probe")
    with zipfile.ZipFile(tmp_path / "probe" / "images.npz", "w") as archive, archive.open("pictures.npy", "w") as file:
        np.lib.format.write_array(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    signed(tmp_path / "probe")
    with pytest.raises(ImageError, match=r"damaged \(Object arrays cannot be loaded"):
        read_probe(tmp_path / "probe")


def test_folders_without_a_probe_set(tmp_path: Path) -> None:
    frozen(tmp_path / "probe")
    with pytest.raises(ImageError, match=r"does not exist; did you mean 'probe'\?"):
        read_probe(tmp_path / "prob")
    with pytest.raises(ImageError, match="holds no probe set"):
        read_probe(tmp_path)
    with pytest.raises(ImageError, match="is a frozen probe set; give it as --probe"):
        find_images(tmp_path / "probe")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "lable"}, "unknown target 'lable'"),
        ({"targets": lambda output: output}, "a callable target cannot be frozen"),
        ({"targets": [1.5] * 12}, "targets of type float64 are no class indices"),
        ({"targets": [0, 1]}, r"targets of shape \(2,\) do not fit 12 images"),
        ({"targets": np.zeros((12, 0), int)}, r"targets of shape \(12, 0\) do not fit"),
        ({"targets": [[1], [1, 2]]}, "are no array of class indices"),
        ({"targets": -1}, "target class -1 is out of range"),
        (
            {"targets": ["predicted", 10], "class_names": "0123456789"},
            "target class 10 is out of range: 10 class names",
        ),
        ({"class_names": "abc"}, r"label 3 of 'image-003' is out of range: 3 class names were given \(0 to 2\)"),
        ({"class_names": ["\ud800"] * 10}, "must be plain JSON"),
    ],
)
def test_what_cannot_be_frozen_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ImageError, LayerError), match=message):
        frozen(tmp_path / "probe", **options)
    assert not (tmp_path / "probe").exists()


def test_labels_as_targets_need_labels(tmp_path: Path) -> None:
    images, _ = digit_images()
    for labels in (None, [1, None, 2]):
        probe = probe_from_tensor(images[:3], labels=labels)
        with pytest.raises(LayerError, match="target 'label' needs a label for every displayed image"):
            write_probe(probe, tmp_path / "probe", targets="label")
    write_probe(
        probe_from_tensor(images[:3], labels=[1, None, 2], display_count=1), tmp_path / "probe", targets="label"
    )


def test_a_callable_target_of_a_run_has_no_class(tmp_path: Path) -> None:
    images, _ = digit_images()
    probe = probe_from_tensor(images[:3])

    def total(output: Tensor) -> Tensor:
        return output.sum(1)

    with (
        interpret.audit(trained_digits(), probe, targets=total, methods=("grad-cam",)) as evidence,
        pytest.raises(LayerError, match=r"classes count from 0 \(callable targets have none\)"),
    ):
        write_probe(probe, tmp_path / "probe", targets=evidence)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, inputs: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ImageError, match="is not empty; give a new or empty folder"):
        frozen(tmp_path)
    with pytest.raises(ImageError, match="is not empty"):
        frozen(tmp_path / "mine.txt")
    assert run("probe", inputs / "photos", "--skip-broken", *FRAMING, "-o", tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool, error: BaseException
) -> None:
    folder = tmp_path / "probe"
    if existed:
        folder.mkdir()
    written = np.lib.format.write_array
    done: list[int] = []

    def fail(stream: Any, array: Any, **options: Any) -> None:
        if len(done) == 7:
            raise error
        done.append(len(array))
        written(stream, array, **options)

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(type(error)):
        frozen(folder)
    assert len(done) == 7
    assert folder.exists() is existed
    assert not existed or list(folder.iterdir()) == []


@pytest.mark.parametrize("command", ["audit", "diff"])
@pytest.mark.parametrize(
    "options",
    [
        ["--images", "photos"],
        ["--labels", "labels.csv"],
        ["--labels-from-folders"],
        ["--class-names", "names.txt"],
        ["--skip-broken"],
        ["--preprocess", "net.py:crop"],
        ["--resize", "16"],
        ["--crop", "16"],
        ["--mean", "0,0,0"],
        ["--std", "1,1,1"],
        ["--interpolation", "bilinear"],
        ["--probe-count", "64"],
    ],
)
def test_what_a_probe_set_has_settled_cannot_be_given_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, options: list[str]
) -> None:
    which = ["audit", "old.pt", "--out", "out"] if command == "audit" else ["diff", "old.pt", "new.pt", "-o", "out"]
    assert run(*which, "--no-mlflow", "--probe", tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert error.count("Error") == 1
    assert error.strip().endswith(f"has its own images, preprocessing, labels and class names; leave out {options[0]}")


@pytest.mark.parametrize("which", [["audit", "old.pt", "--out", "out"], ["diff", "old.pt", "new.pt", "-o", "out"]])
def test_an_audit_of_nothing_is_refused(capsys: pytest.CaptureFixture[str], which: list[str]) -> None:
    assert run(*which, "--no-mlflow") == 2
    assert "give images as --images PATH, or a probe set as --probe DIR" in capsys.readouterr().err


def test_more_pictures_than_there_are_images_is_no_error(tmp_path: Path) -> None:
    images, _ = digit_images()
    write_probe(probe_from_tensor(images[:3]), tmp_path / "probe")
    assert len(read_probe(tmp_path / "probe", display_count=8).images.pictures) == 3
    assert read_probe(tmp_path / "probe", display_count=0).images.pictures.shape == (0, 8, 8, 3)
    with pytest.raises(InterpretError, match="not of -1"):
        read_probe(tmp_path / "probe", display_count=-1)


def test_images_from_files_in_python(inputs: Path, tmp_path: Path) -> None:
    paths = find_images(inputs / "photos" / "Hündin")
    probe: ProbeImages = load_images(paths, Preprocessing(resize=9, crop=9, mean=(0.5,), std=(0.25,)))
    write_probe(probe, tmp_path / "probe")
    read = read_probe(tmp_path / "probe").images
    assert read.images.shape == (2, 1, 9, 9)
    assert torch.equal(read.images, probe.images)
    assert read.source_sha256 == probe.source_sha256 != read.tensor_sha256
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with interpret.audit(model, read) as again, interpret.audit(model, probe) as first:
        assert again.digest == first.digest
