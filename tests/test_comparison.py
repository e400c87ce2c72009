import json
import math
import subprocess
import sys

import numpy as np
import pytest

from bundles import bundle, int8, network, noisy, permuted, probe, scaled, zeroed_filters
from interpret.comparison import compare
from interpret.errors import EvidenceError, InterpretError
from interpret.findings.advice import ADVICE
from interpret.language import Catalogue, Message

WEIGHTS = network()
DAMAGED = zeroed_filters(int8(WEIGHTS), "layer2.conv.weight", share=0.3)
VERDICTS = {"identical", "same-function", "localized", "widespread", "different-architecture", "not-comparable"}


@pytest.fixture(scope="module")
def comparison():
    targets = bundle(WEIGHTS).array("maps", "targets")
    runs = [bundle(weights, targets=targets) for weights in (WEIGHTS, int8(WEIGHTS), DAMAGED, WEIGHTS)]
    return compare(*runs, labels=["float", "int8", "damaged", "again"])


@pytest.fixture(scope="module")
def content(comparison):
    return comparison.to_dict()


def test_the_three_runs_of_the_main_job(content):
    assert content["verdict"] == {"int8": "widespread", "damaged": "localized", "again": "identical"}
    assert content["ranking"]["damaged"][0] == "layer2.conv"
    assert content["ranking"]["again"] == []
    assert content["first_divergence"] == {"int8": "conv1", "damaged": "conv1", "again": None}
    assert content["predictions"]["again"]["top1_agreement"] == 1
    assert content["predictions"]["again"]["churn"] == 0


def test_the_shape_that_users_rely_on(content):
    assert list(content)[:4] == ["schema_version", "reference", "runs", "comparable"]
    assert (content["schema_version"], content["reference"]) == (1, "float")
    assert [run["label"] for run in content["runs"]] == ["float", "int8", "damaged", "again"]
    assert {"run_id", "run_name", "step", "device", "state_sha256", "model", "n_images"} <= set(content["runs"][0])
    others = ["int8", "damaged", "again"]
    for part in ("comparable", "ranking", "first_divergence", "verdict", "predictions"):
        assert list(content[part]) == others
    for entry in content["comparable"].values():
        assert {"weights", "activations", "maps", "predictions", "reasons"} <= set(entry)
        assert (entry["weights"], entry["activations"], entry["maps"]) == (True, "exact", "exact")
    for layer in content["layers"]:
        assert {"key", "position", "type", "kind", "runs"} <= set(layer)
        assert list(layer["runs"]) == ["float", *others]
        for entry in layer["runs"].values():
            assert entry["presence"] in ("paired", "added", "removed")
            assert entry["weights"] in ("identical", "changed", "reshaped", "none")
            assert entry["aligned_by"] in ("name", "order", "similarity", None)
            assert {"call", "weight_change", "divergence", "noise_floor", "cka", "dead_units", "maps"} <= set(entry)
            for found in entry["maps"].values():
                assert {"pearson", "iou20", "centre_shift", "null_other_image", "null_gaussian"} <= set(found)
    promised = {"top1_agreement", "kl_mean", "churn", "negative_flips", "positive_flips"}
    assert promised <= set(content["predictions"]["int8"])
    assert set(content["verdict"].values()) <= VERDICTS
    for finding in content["findings"]:
        assert set(finding) == {"severity", "run", "layer", "rule", "message", "meaning", "next", "place"}


def test_the_reference_appears_with_its_own_values(content, comparison):
    relu = content["layers"][2]["runs"]
    assert relu["float"]["call"] == "relu"
    assert relu["float"]["presence"] == "paired"
    assert relu["float"]["dead_units"] == int(comparison.evidence["float"].array("layers", "dead_units")[2])
    assert relu["float"]["noise_floor"] == 1e-8
    conv = content["layers"][0]["runs"]
    own = conv["float"]
    assert (own["weights"], own["weight_change"], own["divergence"]) == ("identical", None, None)
    assert (relu["float"]["weights"], relu["float"]["maps"]) == ("none", {})


def test_calls_come_in_order(content):
    assert [layer["position"] for layer in content["layers"]] == list(range(20))
    assert content["layers"][12]["key"] == "pool#1"


def test_damaged_filters_are_counted(content):
    entry = content["layers"][8]["runs"]["damaged"]
    (tensor,) = entry["tensors"]
    assert len(tensor["zeroed_filter_indices"]) == 5
    assert (tensor["filters"], tensor["changed_filters"], tensor["changed_filter_indices"]) == (16, 16, None)
    assert entry["weight_ratio"] > 50
    assert content["layers"][8]["runs"]["again"]["tensors"][0]["changed_filter_indices"] == []


def test_what_json_says_in_words_can_still_be_translated(content):
    german = Catalogue("de", {"{change}.": "{change}!"})
    (finding,) = [item for item in content["findings"] if item["rule"] == "layers-stand-out"]
    assert finding["message"].endswith("of convolution calls.")
    assert german(finding["message"]) == f"{finding['message'][:-1]}!"
    assert all(
        isinstance(item[name], Message) for item in content["findings"] for name in ("message", "meaning", "next")
    )


def numbers(content):
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, (list, tuple)):
        for item in content:
            yield from numbers(item)
    else:
        yield content


def test_json_is_strict_and_nothing_is_rounded(content, comparison):
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text) == content
    kinds = {type(value) for value in numbers(content)}
    assert kinds <= {str, Message, int, float, bool, type(None)}
    pair = next(pair for pair in comparison.measures["int8"].calls if pair.key == "fc")
    assert content["layers"][-1]["runs"]["int8"]["cka"] == pair.cka


def broken(parts):
    layers = parts["layers"]
    layers["gram_scale"][3:] = np.nan
    layers["nonfinite"][3:] = 5
    layers["channel_mean"][24:] = np.nan
    layers["batchnorm_log_variance"][4] = np.inf
    parts["predictions"]["logits"][:] = np.nan
    parts["maps"]["grad-cam/conv1"][:] = np.nan


def test_values_that_are_not_finite_never_reach_the_json():
    content = compare(bundle(WEIGHTS), bundle(WEIGHTS, edit=broken), labels=["a", "b"]).to_dict()
    assert all(math.isfinite(value) for value in numbers(content) if isinstance(value, float))
    json.dumps(content, allow_nan=False)
    entry = content["layers"][5]["runs"]["b"]
    assert (entry["divergence"], entry["cka"], entry["threshold"]) == (None, None, None)
    assert content["predictions"]["b"]["top1_agreement"] is None
    assert any(f["rule"] == "non-finite-values" and f["layer"] == "layer1.conv" for f in content["findings"])


def test_the_same_evidence_gives_the_same_bytes(comparison, content):
    again = compare(*comparison.evidence.values(), labels=comparison.labels)
    assert json.dumps(again.to_dict()) == json.dumps(content)


def test_findings_name_their_runs_and_the_worst_comes_first(content):
    severities = [finding["severity"] for finding in content["findings"]]
    assert severities == sorted(severities, key=["critical", "warning", "notice", "info"].index)
    assert content["findings"][0] == {
        "severity": "critical",
        "run": "damaged",
        "layer": "layer2.conv",
        "rule": "layers-stand-out",
        "message": content["findings"][0]["message"],
        "meaning": ADVICE["layers-stand-out"].meaning,
        "next": ADVICE["layers-stand-out"].next,
        "place": "chapters",
    }
    assert {finding["run"] for finding in content["findings"]} <= {"float", "int8", "damaged", "again"}


def test_warnings_that_the_reference_gives_too_are_not_repeated():
    images = probe() * np.float32(3)
    found = compare(bundle(WEIGHTS, images=images), bundle(int8(WEIGHTS), images=images), labels=["a", "b"]).findings
    assert [finding.run for finding in found if finding.rule == "preprocessing-mismatch"] == ["a"]


def test_added_calls_follow_their_predecessor():
    whole, without, other = (
        bundle(WEIGHTS),
        bundle(WEIGHTS, drop_calls=("bn1", "fc")),
        bundle(WEIGHTS, drop_calls=("fc",)),
    )
    comparison = compare(without, whole, other, labels=["without", "whole", "other"])
    layers = comparison.to_dict()["layers"]
    assert [layer["key"] for layer in layers][:3] == ["conv1", "bn1", "relu"]
    assert [layer["position"] for layer in layers][:3] == [0, None, 1]
    assert layers[-1]["key"] == "fc"
    runs = layers[1]["runs"]
    assert [(runs[label]["presence"], runs[label]["call"]) for label in comparison.labels] == [
        ("removed", None),
        ("added", "bn1"),
        ("added", "bn1"),
    ]
    assert runs["whole"]["dead_units"] == 0
    assert layers[-1]["runs"]["other"]["presence"] == "removed"
    assert comparison.verdict["whole"] == "different-architecture"


# Labels, inputs


def test_labels_come_from_the_folder_and_are_made_unique(tmp_path):
    bundle(WEIGHTS, tmp_path / "first")
    bundle(int8(WEIGHTS), tmp_path / "second" / "interpret")
    bundle(DAMAGED, tmp_path / "elsewhere" / "first")
    comparison = compare(tmp_path / "first", str(tmp_path / "second"), tmp_path / "elsewhere" / "first")
    assert comparison.labels == ("first", "second", "first (2)")
    assert comparison.reference == "first"
    assert comparison.others == ("second", "first (2)")


def test_labels_of_temporary_bundles_are_the_model_names():
    assert compare(bundle(WEIGHTS), bundle(WEIGHTS, name="Other")).labels == ("TinyNet", "Other")


def test_what_mlflow_says_of_the_runs():
    origins = [{"run_id": "a1", "run_name": "calm-fox", "step": 3}, {"run_id": "b2"}]
    runs = compare(bundle(WEIGHTS), bundle(WEIGHTS), origins=origins).to_dict()["runs"]
    assert [(run["label"], run["run_id"], run["run_name"], run["step"]) for run in runs] == [
        ("calm-fox", "a1", "calm-fox", 3),
        ("TinyNet", "b2", None, None),
    ]


def test_mistakes_of_the_caller(tmp_path):
    evidence = bundle(WEIGHTS)
    with pytest.raises(InterpretError, match="at least one other run"):
        compare(evidence)
    with pytest.raises(InterpretError, match="1 labels were given for 2 runs"):
        compare(evidence, evidence, labels=["a"])
    with pytest.raises(InterpretError, match="3 origins were given for 2 runs"):
        compare(evidence, evidence, origins=[{}, {}, {}])
    with pytest.raises(EvidenceError, match="does not exist"):
        compare(evidence, tmp_path / "nothing")


# Matrices


def test_mean_cka_between_all_runs(content, comparison):
    matrix = np.array(content["mean_cka"], float)
    assert matrix.shape == (4, 4)
    assert np.diag(matrix) == pytest.approx(np.ones(4))
    assert matrix[0, 3] == pytest.approx(1)
    expected = np.mean([pair.cka for pair in comparison.measures["damaged"].calls])
    assert matrix[0, 2] == pytest.approx(expected, abs=1e-9)


def test_every_call_with_every_call(comparison):
    matrix = comparison.cka_matrix("damaged")
    assert matrix.shape == (20, 20)
    assert np.diag(matrix) == pytest.approx([pair.cka for pair in comparison.measures["damaged"].calls], abs=1e-9)
    apart = compare(bundle(WEIGHTS), bundle(WEIGHTS, images=probe(8, seed=9)), labels=["a", "b"])
    assert apart.cka_matrix("b") is None


def test_other_images_leave_the_weights():
    content = compare(bundle(WEIGHTS), bundle(DAMAGED, images=probe(8, seed=9)), labels=["a", "b"]).to_dict()
    assert content["comparable"]["b"]["activations"] == "no"
    assert content["verdict"]["b"] == "localized"
    assert content["predictions"]["b"]["images"] == 0
    assert content["mean_cka"] == [[None, None], [None, None]]


def test_verdicts_of_quiet_changes():
    runs = {
        "gamma": scaled(WEIGHTS, "layer3.bn.weight", 1.01),
        "permuted": permuted(WEIGHTS),
        "noise": noisy(WEIGHTS, 0.01),
    }
    comparison = compare(bundle(WEIGHTS), *(bundle(weights) for weights in runs.values()), labels=["float", *runs])
    assert dict(comparison.verdict) == {"gamma": "localized", "permuted": "same-function", "noise": "widespread"}
    assert comparison.ranking["gamma"] == ("layer3.bn",)


def test_comparing_imports_neither_torch_nor_mlflow():
    code = (
        "import sys, interpret.comparison; print([name for name in ('torch', 'mlflow', 'PIL') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
