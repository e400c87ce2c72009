from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from interpret import demonstration
from interpret.errors import InterpretError


def test_int8_rounds_each_output_channel_to_255_levels() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1, 10, 0.1, 0]
    ).reshape(4, 1, 1, 1)
    rounded = demonstration.int8(weight)
    for channel, original in zip(rounded, weight, strict=True):
        step = original.abs().max() / 127
        assert (channel - original).abs().max() <= step / 2 * 1.0001
        if step > 0:
            levels = channel / step
            assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert torch.equal(rounded[3], weight[3])


def test_filters_are_removed_by_share_and_seed() -> None:
    weight = torch.ones(10, 2, 1, 1)
    damaged = demonstration.without_filters(weight, 0.3, seed=0)
    assert int((damaged.flatten(1) == 0).all(1).sum()) == 3
    assert torch.equal(damaged, demonstration.without_filters(weight, 0.3, seed=0))
    assert not torch.equal(damaged, demonstration.without_filters(weight, 0.3, seed=1))
    assert bool((weight == 1).all())


def test_images_are_48_real_crops_and_the_same_every_time(tmp_path: Path) -> None:
    demonstration.write_images(tmp_path / "images")
    files = sorted((tmp_path / "images").iterdir())
    assert len(files) == 48
    assert [file.name for file in files[:3]] == ["00-cat.png", "01-espresso.png", "02-flower.png"]
    pixels = [np.asarray(Image.open(file)) for file in files]
    assert all(picture.shape[0] == picture.shape[1] >= 180 and picture.shape[2] == 3 for picture in pixels)
    assert len({picture.tobytes() for picture in pixels}) == 48
    before = files[0].read_bytes()
    demonstration.write_images(tmp_path / "images")
    assert files[0].read_bytes() == before


def test_checkpoints_differ_where_they_should(tmp_path: Path) -> None:
    paths = demonstration.write_checkpoints(tmp_path)
    published, rounded, damaged = (torch.load(path, weights_only=True) for path in paths)
    model = demonstration.efficientnet_lite0()
    model.load_state_dict(published)
    kernels = {name for name, tensor in published.items() if tensor.ndim > 1}
    assert {name for name in published if not torch.equal(published[name], rounded[name])} == kernels
    changed = [name for name in published if not torch.equal(rounded[name], damaged[name])]
    assert changed == ["_blocks.7._expand_conv.weight"]
    assert int((damaged[changed[0]].flatten(1) == 0).all(1).sum()) == 144


def test_class_names(tmp_path: Path) -> None:
    demonstration.write_class_names(tmp_path / "names.txt")
    names = (tmp_path / "names.txt").read_text("utf-8").splitlines()
    assert len(names) == 1000
    assert names[281] == "tabby"


def comparison(verdict: str, agreement: float | None = 0.875, zeroed: int = 3) -> dict[str, Any]:
    tensor = {"zeroed_filter_indices": list(range(zeroed)), "filters": 10}
    return {
        "reference": "old",
        "verdict": {"new": verdict},
        "ranking": {"new": ["conv1"]},
        "layers": [{"key": "conv1", "runs": {"new": {"tensors": [tensor]}}}],
        "predictions": {"new": {"top1_agreement": agreement}},
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (comparison("same-function", None), "Against old, new is same function."),
        (comparison("widespread"), "Against old, new is widespread (88% of the predictions kept)."),
        (
            comparison("localized"),
            "Against old, new is localized in conv1 (3 of 10 filters zeroed, 88% of the predictions kept).",
        ),
        (comparison("localized", None, 0), "Against old, new is localized in conv1."),
    ],
)
def test_the_sentence(content: dict[str, Any], expected: str) -> None:
    assert demonstration.sentence(content) == expected


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(InterpretError, match=r"needs no_such_package; run `pip install 'mlflow-interpret\[demo\]'`"):
        demonstration._package("no_such_package")
