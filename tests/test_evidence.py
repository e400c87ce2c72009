"""The bundle: written last-manifest-first-never, read lazily, refused where it is not whole."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import interpret
from interpret.auditing import METHODS
from interpret.errors import EvidenceError
from interpret.evidence import (
    SCHEMA_VERSION,
    Evidence,
    EvidenceWriter,
    ReceptiveField,
    as_evidence,
    read_evidence,
    unique_labels,
)
from interpret.functional.cam import ATTRIBUTION_METHODS
from networks import digit_images, trained_digits

DATA = Path(__file__).parent / "data"
FORMAT = (Path(interpret.__file__).parent / "FORMAT.md").read_text("utf-8")


@pytest.fixture
def bundle() -> Evidence:
    return read_evidence(DATA / f"bundle-{SCHEMA_VERSION}")


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_every_old_bundle_reads(version: int) -> None:
    bundle = read_evidence(DATA / f"bundle-{version}")
    bundle.verify()
    assert bundle.manifest.schema_version == version
    assert bundle.manifest.checkpoint["others"] == {}
    assert bundle.manifest.inputs["skipped"] == []
    field = ReceptiveField(size=(3, 3), stride=(1, 1), start=(-1, -1))
    assert bundle.call["features.0"].receptive_field == (field if version > 1 else None)
    assert bundle.call["features.0"].weight_shape == ((8, 1, 3, 3) if version > 1 else None)
    assert [call.key for call in bundle.calls if call.last] == ["features.4"]
    assert all(call.reaches_output and call.token_grid is None for call in bundle.calls)
    assert bundle.manifest.settings["refused"].keys() == ({"attention-rollout"} if version > 2 else set())
    assert bundle.manifest.status == "complete"
    assert bundle.call["features.0"].kind == "convolution"
    assert "Conv2d" in bundle.summary
    assert bundle.journal["seconds"]
    assert len(bundle.tensors) == len({tensor.name for tensor in bundle.tensors})
    assert repr(bundle).startswith("Evidence('Digits'")
    assert as_evidence(bundle) is bundle


def tables(section: str) -> set[str]:
    """The names in backquotes in the first columns of a section's tables."""
    text = re.split(r"\n##+ ", FORMAT.split(f"# {section}\n")[1])[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_format_and_code_name_the_same_fields() -> None:
    images, labels = digit_images()
    options = {"methods": METHODS, "trust": True, "features": {"features.0": [1]}}
    with interpret.audit(trained_digits(), images[:4], labels=labels[:4].tolist(), display_count=1, **options) as fresh:
        manifest = json.loads((fresh.folder / "manifest.json").read_text("utf-8"))
        assert tables("manifest.json") == set(manifest)
        assert tables("An entry of `calls`") == set(manifest["calls"][0])
        for line in FORMAT.splitlines():
            for field in ("checkpoint", "model", "inputs", "settings"):
                if line.startswith(f"| `{field}` |"):
                    written = set(re.findall(r"`([a-z_0-9]+)`", line.split("|")[2]))
                    assert written - {"reference"} == set(manifest[field]), field
        entries = json.loads((fresh.folder / "weights.json").read_text("utf-8"))["tensors"]
        assert tables("weights.json, weights.npz") == {*entries[0], *fresh.keys("weights")}
        assert tables("layers.npz") == set(fresh.keys("layers"))
        assert tables("predictions.npz") == set(fresh.keys("predictions"))
        assert tables("inputs.npz") == set(fresh.keys("inputs"))
        assert {"targets", "scores", "gradient_square"} <= set(fresh.keys("maps")) & tables("maps.npz")
        assert {"METHOD", "METHOD/gap", "METHOD/steps"} == tables("attributions.npz")
        methods = {*ATTRIBUTION_METHODS}
        assert {method for method in fresh.keys("attributions") if "/" not in method} == methods
        assert {name.partition("/")[2] for name in fresh.keys("attributions")} == {"", "gap", "steps"}
        kinds = {name.partition("/")[0] for name in fresh.keys("trust")}
        assert kinds == {name.partition("/")[0] for name in tables("trust.npz, trust.json")}
        about = json.loads((fresh.folder / "trust.json").read_text("utf-8"))
        assert set(about) == {"steps", "keys", "methods", "stages"}
        curves = {name for name in fresh.keys("trust") if name.startswith("deletion/")}
        names = {f"deletion/{name}/input" for name in (*ATTRIBUTION_METHODS, "random", "gaussian")}
        assert names <= curves
        assert all(fresh.array("trust", name).shape == (1, about["steps"] + 1) for name in curves)
        assert fresh.array("trust", "randomization/grad-cam").shape == (len(about["stages"]), 1)
        kinds = {name.rpartition("/")[2] for name in fresh.keys("features") if not name.startswith("responses/")}
        written = tables("features.npz") - {"responses/CALL"}
        assert kinds == {name.removeprefix("C/K/") for name in written}
        assert fresh.has("features", "responses/features.0")


def test_fields_of_later_releases_are_passed_over(bundle: Evidence, tmp_path: Path) -> None:
    folder = copy(bundle, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["calls"][0]["later"] = manifest["later"] = 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert read_evidence(folder).calls == bundle.calls
    del manifest["calls"][0]["kind"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EvidenceError, match="an entry of calls lacks kind"):
        read_evidence(folder)


def test_ragged_arrays_split_by_call_and_tensor(bundle: Evidence) -> None:
    lengths = [len(bundle.channel("channel_mean", call.key)) for call in bundle.calls]
    assert lengths == bundle.array("layers", "channels").tolist()
    assert sum(lengths) == len(bundle.array("layers", "channel_mean"))
    for tensor in bundle.tensors:
        assert len(bundle.filters("filter_norm", tensor)) == tensor.filters
        if tensor.filters:
            norms = bundle.filters("filter_norm", tensor).astype(np.float64)
            assert np.linalg.norm(norms) == pytest.approx(tensor.norm, rel=1e-5)


def test_gram_is_symmetric_and_centred(bundle: Evidence) -> None:
    gram = bundle.gram("features.0")
    assert gram is not None
    assert np.array_equal(gram, gram.T)
    assert np.abs(gram.sum(0)).max() < 1e-4 * np.abs(gram).max()


def copy(bundle: Evidence, folder: Path) -> Path:
    for path in bundle.folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_changed_file_is_refused(bundle: Evidence, tmp_path: Path) -> None:
    folder = copy(bundle, tmp_path)
    with (folder / "layers.npz").open("r+b") as file:
        file.seek(5000)
        file.write(b"\x00\x01\x02")
    changed = read_evidence(folder)
    with pytest.raises(EvidenceError, match=r"layers\.npz .* was changed after the audit"):
        changed.array("layers", "gram")
    (folder / "layers.npz").unlink()
    with pytest.raises(EvidenceError, match=r"layers\.npz is missing"):
        read_evidence(folder).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "has bundle version 99, but this release reads up to 3; upgrade"),
        ({"schema_version": None}, "bundle version None"),
        ({"calls": None}, "lacks calls"),
    ],
)
def test_foreign_manifests_are_refused(
    bundle: Evidence, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = copy(bundle, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8")) | change
    (folder / "manifest.json").write_text(
        json.dumps({key: value for key, value in manifest.items() if value or key == "schema_version"})
    )
    with pytest.raises(EvidenceError, match=message):
        read_evidence(folder)


def test_folders_without_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="does not exist"):
        read_evidence(tmp_path / "nowhere")
    with pytest.raises(EvidenceError, match="holds no evidence bundle"):
        read_evidence(tmp_path)
    (tmp_path / "layers.npz").write_bytes(b"")
    with pytest.raises(EvidenceError, match="unfinished audit"):
        read_evidence(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(EvidenceError, match="cannot be read as a manifest"):
        read_evidence(tmp_path)


def test_bundle_below_the_folder_is_found(bundle: Evidence, tmp_path: Path) -> None:
    (tmp_path / "interpret").mkdir()
    copy(bundle, tmp_path / "interpret")
    assert read_evidence(tmp_path).digest == bundle.digest


def test_missing_array_says_why(bundle: Evidence) -> None:
    with pytest.raises(EvidenceError, match=r"array 'no-cam/x' is not in maps\.npz"):
        bundle.array("maps", "no-cam/x")
    assert not bundle.has("nothing", "x")
    assert bundle.keys("nothing") == ()


def test_writer_needs_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EvidenceError, match="is not empty"):
        EvidenceWriter(tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("existed", [False, True])
def test_unfinished_bundle_leaves_nothing(tmp_path: Path, existed: bool) -> None:
    folder = tmp_path / "out"
    if existed:
        folder.mkdir()
    with EvidenceWriter(folder) as writer:
        writer.text("summary.txt", "x")
        writer.arrays("layers", {"a": np.zeros(3)})
        assert len(list(folder.iterdir())) == 2
    assert folder.exists() is existed
    assert not existed or list(folder.iterdir()) == []


def test_strict_json(tmp_path: Path) -> None:
    with EvidenceWriter(tmp_path / "out") as writer, pytest.raises(ValueError, match="not JSON compliant"):
        writer.json("weights.json", {"norm": float("nan")})


def test_closing_keeps_a_folder_that_was_given(bundle: Evidence) -> None:
    with bundle:
        assert bundle.has("layers", "gram")
    assert bundle.folder.exists()


def test_unique_labels() -> None:
    assert unique_labels(["a", "a", "a (2)", "b"]) == ("a", "a (2)", "a (2) (2)", "b")
