"""What docs/comparison.md says: its names, its figures and its claims, with the script that measured them."""

import importlib.util
import json
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import interpret
from bundles import bundle, network
from networks import lite0, photos

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(f"script_{name}", str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


comparison = script("comparison")
PAGE = comparison.PAGE.read_text("utf-8")
FIGURES = json.loads(comparison.FIGURES.read_text("utf-8"))


def names_on_the_page() -> list[str]:
    """The first cells of the tables of numbers."""
    names: list[str] = []
    head = f"| {' | '.join(('name', 'what it is', 'range and unit', 'null', 'misleads when'))} |\n"
    for table in PAGE.split(head)[1:]:
        for line in table.splitlines()[1:]:
            if not line.startswith("|"):
                break
            assert len(re.findall(r"(?<!\\)\|", line)) == 6, line
            names += re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return names


def flat(value: Any, prefix: str = "") -> set[str]:
    """The names of all leaves, "*" for the places of a list."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(flat(item, f"{prefix}.*") for item in value))
    if isinstance(value, dict) and value:
        return set().union(*(flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items()))
    return {prefix}


@pytest.fixture(scope="module")
def written() -> set[str]:
    """The names of comparison.json, as the page writes them, of a comparison that has all of them."""
    weights = network()
    other = {
        **weights,
        "fc.weight": weights["fc.weight"][::-1].copy(),
        "conv1.weight": weights["conv1.weight"][::-1].copy(),
    }
    content = interpret.compare(bundle(weights), bundle(other), labels=("a", "b")).to_dict()
    names = set()
    for layer in content["layers"]:
        entry = layer["runs"]["b"]
        names |= flat(entry | {"maps": list(entry["maps"].values())})
    names |= flat({"predictions": content["predictions"]["b"], "comparable": content["comparable"]["b"]})
    assert {"kernels.matched", "maps.*.pearson", "predictions.flips.*.leaves_at"} <= names
    return names - {"maps", "tensors", "kernels", "predictions.flips"} | {"first_divergence", "mean_cka"}


def test_the_page_has_every_name_of_the_file_once(written: set[str]) -> None:
    names = names_on_the_page()
    assert sorted(names) == sorted(written)


def test_the_page_is_the_scripts() -> None:
    assert comparison.page(FIGURES) == PAGE, "run scripts/comparison"
    assert set(FIGURES) == set(comparison.PARTS)


def test_pictures() -> None:
    shown = re.findall(r"!\[[^]]+\]\(comparison/([^)]+)\)", PAGE)
    files = {comparison.picture_file(name) for name in comparison.PICTURES}
    assert sorted(shown) == sorted(file.name for file in files)
    assert len(shown) <= 10
    assert {file for file in comparison.FOLDER.iterdir() if file.suffix in (".png", ".jpg")} == files
    for file in files:
        assert file.stat().st_size <= 120_000, file
        with Image.open(file) as image:
            assert image.width == 1400


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_every_verdict_severity_and_rule_is_explained() -> None:
    for word in (*interpret.verdicts.VERDICTS, *interpret.findings.SEVERITIES, *interpret.findings.ADVICE):
        assert f"\n| `{word}` |" in PAGE, word


def test_what_the_prose_claims_holds_for_its_figures() -> None:
    one, many, noise = FIGURES["one-layer"], FIGURES["stands-out"], FIGURES["divergence"]
    rows, depth, chance = FIGURES["cases"]["rows"], FIGURES["depth"], FIGURES["chance"]
    assert one["first"] == one["layer"] != one["lowest"]
    assert one["upstream"] == 0
    assert one["rank"] > 1
    assert many["first"] == one["layer"] != many["first_divergence"]
    assert many["ratio"] > comparison.verdicts.STANDS_OUT > max(many["next"], many["int8"])
    assert noise["blind"] < 1e-9 < noise["spread"]
    assert noise["next"] != noise["layer"]
    assert noise["noise_share"] < 1
    assert noise["scaled_upstream"] == 0
    assert depth["last"] < depth["first"] < depth["stem"] < 1
    assert depth["above"] == depth["calls"]
    assert chance["at8"] < chance["p95_8"]
    assert chance["at32"] - chance["spread32"] > chance["p95_48"]
    assert chance["biased64"] > 0.9 > 0.1 > abs(chance["debiased64"])
    assert chance["outlier_leverage"] > comparison.alone.DOMINANT_IMAGE
    assert abs(chance["outlier_debiased"]) < 0.1 < chance["outlier_biased"]
    assert rows["copy"]["verdict"] == "identical"
    assert {rows[name]["verdict"] for name in ("permuted", "stem")} == {"same-function"}
    assert rows["tuned"]["logits"] > 0.99
    assert rows["tuned"]["top1"] == 0
    maps, flips, pairs, kernels = (FIGURES[name] for name in ("maps", "flips", "pairs", "kernels"))
    assert min(maps["int8_pearson"], maps["noise_pearson"]) >= comparison.compared.SAME_MAPS
    assert max(maps["tuned_pearson"], maps["untrained_pearson"]) < maps["null_gaussian"]
    assert maps["untrained_empty"] == 1  # "1 map of the random network is empty"
    assert flips["stayed_share"] < 0.2
    assert flips["share_of_calls"] < 0.1
    assert pairs["same_best"] < pairs["same_stage"]
    assert kernels["lite1_matched"] > kernels["lite1_null"] + comparison.matching.ABOVE_CHANCE
    assert kernels["untrained_by"] is None
    assert kernels["noise_by_index"] > 0.999
    assert kernels["noise_by"] == "index"
    assert abs(FIGURES["health"]["bgr_variance"] - FIGURES["health"]["right_variance"]) < 0.1


def test_biased_cka_by_the_literature() -> None:
    i = np.arange(10)[:, None]
    x = np.sin(i * np.arange(1, 5))
    y = np.cos(0.7 * i * np.arange(1, 4)) + 0.5 * x[:, :3]
    grams = [features @ features.T for features in (x, y)]
    assert comparison.biased_cka(*grams) == pytest.approx(0.543688517161, abs=1e-11)


def test_noise_is_measured_again() -> None:
    found = comparison.noise_cka(64)
    assert found["biased"].mean() == pytest.approx(FIGURES["chance"]["biased64"], abs=1e-5)
    assert found["debiased"].mean() == pytest.approx(FIGURES["chance"]["debiased64"], abs=1e-5)


def test_leaving_by_hand() -> None:
    """Of three images that moved by 1, 1 and 3 the last leaves the two others; nobody where rounding explains it."""
    moved, everyone = np.array([[1.0, 1.0, 3.0]]), np.arange(3)
    assert comparison.leaving(moved, np.zeros(1), everyone, everyone).tolist() == [[False, False, True]]
    assert not comparison.leaving(np.ones((1, 3)), np.full(1, 4.0), everyone, everyone).any()


def test_figures_as_json_holds_them() -> None:
    assert comparison.rounded({"a": np.float64(1 / 3), "b": (np.int64(2), None, True)}) == {
        "a": 0.333333,
        "b": [2, None, True],
    }


def test_a_reordered_stem_is_the_same_function() -> None:
    model, order = comparison.reordered_stem()
    assert order.tolist() != sorted(order.tolist())
    with torch.no_grad():
        torch.testing.assert_close(model(photos(64)), lite0()(photos(64)), rtol=0, atol=1e-4)
        assert torch.equal(model._conv_stem.weight, lite0()._conv_stem.weight[torch.from_numpy(order)])


def test_the_first_lesson_on_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shuffled convolution, audited here and now: the cause is where weights changed, not where CKA is lowest."""
    monkeypatch.setattr(comparison.tamper, "CACHE", tmp_path)
    images = torch.cat([photos(64), photos(64).flip(3), photos(64).flip(2)])
    reference, other = (
        comparison.tamper.audited(model, images) for model in (lite0(), comparison.CASES["shuffled"].model())
    )
    found = comparison.compared_evidence(reference, other)
    assert found.found.first_divergence == found.extreme("weight_change")[0] == comparison.SHUFFLED
    assert np.nansum(found.curve("weight_change") > 0) == 1
    assert found.extreme("cka", least=True)[0] != comparison.SHUFFLED
