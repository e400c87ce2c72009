"""What maps explain: classes, one logit, segmentations, detections, embeddings, callables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpret
from interpret.errors import LayerError
from interpret.targets import Box, Region, Similarity, resolve, target_scores
from networks import photos

IMAGES = torch.rand((3, 3, 12, 12), generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """A small network whose output takes a form of choice."""

    def __init__(self, form: Callable[[Tensor, nn.Module], Any], channels: int = 4) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, channels, 1)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.head(torch.relu(self.conv(x))), self)


def net(form: Callable[[Tensor, nn.Module], Any], channels: int = 4) -> Net:
    torch.manual_seed(0)
    return Net(form, channels)


@dataclass
class Named:
    logits: Tensor
    extra: int = 0


@pytest.mark.parametrize(
    "form",
    [
        lambda x, _: {"logits": x.mean((2, 3)), "features": x},
        lambda x, _: {"out": x.mean((2, 3))},
        lambda x, _: (x.mean((2, 3)), x),
        lambda x, _: [x.mean((2, 3))],
        lambda x, _: Named(x.mean((2, 3))),
    ],
    ids=["logits", "out", "tuple", "list", "dataclass"],
)
def test_outputs_of_every_form(form: Callable[[Tensor, nn.Module], Any]) -> None:
    plain = interpret.class_activation_maps(net(lambda x, _: x.mean((2, 3))), IMAGES, layers=["conv"])
    maps = interpret.class_activation_maps(net(form), IMAGES, layers=["conv"])
    assert torch.equal(maps.targets, plain.targets)
    assert torch.equal(maps["grad-cam", "conv"], plain["grad-cam", "conv"])


# One logit ------------------------------------------------------------------------------------------------------------


def test_one_logit_answers_for_two_classes() -> None:
    output = torch.tensor([[2.0], [-3.0], [0.5]])
    scores, indices = target_scores(output, None)
    assert indices.tolist() == [[1], [0], [1]]
    assert scores.tolist() == [[2.0], [3.0], [0.5]]
    assert target_scores(output, 0)[0].tolist() == [[-2.0], [3.0], [-0.5]]
    with pytest.raises(LayerError, match="target class 2 is out of range: the model has 2 classes"):
        target_scores(output, 2)


def test_maps_of_one_logit_are_those_of_two() -> None:
    """The logit z against the pair (-z, z): the same class, and the same explanation of it."""
    one = net(lambda x, _: x.mean((2, 3))[:, :1])
    two = net(lambda x, _: torch.cat([-x.mean((2, 3))[:, :1], x.mean((2, 3))[:, :1]], 1))
    single, pair = (interpret.class_activation_maps(model, IMAGES, layers=["conv"]) for model in (one, two))
    assert torch.equal(single.targets, pair.targets)
    torch.testing.assert_close(single["grad-cam", "conv"], pair["grad-cam", "conv"])
    evidence = interpret.audit(one, IMAGES)
    logits = evidence.array("predictions", "logits")
    assert logits.shape == (3, 2)
    assert logits.argmax(1).tolist() == single.targets[:, 0].tolist()
    probability = torch.from_numpy(logits).softmax(1)[:, 1]
    torch.testing.assert_close(probability, one(IMAGES)[:, 0].sigmoid())


# Segmentation ---------------------------------------------------------------------------------------------------------


def test_a_segmentation_is_scored_over_the_predicted_region() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    logits[0, 1, 0] = torch.tensor([5.0, 7.0])  # class 1 in the first row of image 0, background below
    logits[0, 0, 1] = 1.0
    logits[1, 0] = 4.0  # background everywhere in image 1
    scores, indices = target_scores({"out": logits}, None)
    assert indices.tolist() == [[1], [0]]
    assert scores.tolist() == [[6.0], [4.0]]
    scores, indices = target_scores(logits, 2)  # predicted nowhere: over all pixels
    assert indices.tolist() == [[2], [2]]
    assert scores.tolist() == [[0.0], [0.0]]


def test_the_region_stays_when_the_image_changes() -> None:
    logits = torch.zeros(2, 2, 2, 2)
    logits[0, 1, 0, 0] = 3.0
    logits[1, 1, 1] = 2.0
    target = resolve(logits, None)
    copies = torch.arange(24.0).reshape(3, 2, 2, 2)
    assert target.scores(copies, 0)[:, 0].tolist() == copies[:, 1, 0, 0].tolist()
    assert target.scores(copies, 1)[:, 0].tolist() == copies[:, 1, 1].mean(1).tolist()


def test_one_logit_per_pixel() -> None:
    logits = torch.tensor([[[[2.0, -1.0], [4.0, -3.0]]]])
    scores, indices = target_scores(logits, None)
    assert (indices.item(), scores.item()) == (1, 3.0)
    assert target_scores(logits, 0)[0].item() == 2.0


@pytest.mark.parametrize("method", ["grad-cam", "ablation-cam", "score-cam"])
def test_maps_of_a_segmentation(method: str) -> None:
    model = net(lambda x, _: {"out": x})
    maps = interpret.class_activation_maps(model, IMAGES, [method], layers=["conv"])
    assert maps[method, "conv"].isfinite().all()
    assert (maps[method, "conv"].amax((1, 2)) > 0).any()


def test_a_region_of_ones_own() -> None:
    model = net(lambda x, _: x)
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[:, 2:5, 3:7] = True
    maps = interpret.class_activation_maps(model, IMAGES, ["hires-cam"], layers=["conv"], targets=Region(2, masks))
    outside = maps["hires-cam", "conv"] * ~masks
    assert not outside.any(), "pixels outside the region have no gradient"
    single = Region(2, masks[0])
    assert torch.equal(single(model(IMAGES)), Region(2, masks)(model(IMAGES)))
    assert Region(2, masks).of(1).masks.shape == (10, 10)


# Detection ------------------------------------------------------------------------------------------------------------


def detections(scores: list[float], labels: list[int], boxes: list[list[float]]) -> dict[str, Tensor]:
    return {
        "scores": torch.tensor(scores).requires_grad_(),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "boxes": torch.tensor(boxes).reshape(-1, 4),
    }


FULL, LEFT = [0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 4.0]


def test_a_detector_is_scored_by_its_most_certain_detection() -> None:
    output = [detections([0.3, 0.9], [5, 7], [FULL, LEFT]), detections([], [], [])]
    target = resolve(output, None)
    assert target.indices.tolist() == [[7], [-1]]
    assert target.scores(output).tolist() == [[pytest.approx(0.9)], [0.0]]
    altered = [detections([0.8, 0.6, 0.9], [7, 7, 5], [FULL, LEFT, LEFT])] * 2
    assert target.scores(altered, 0).tolist() == [[pytest.approx(0.6)]] * 2, "0.8 overlaps by a half only"
    assert target.scores(altered, 1).tolist() == [[0.0]] * 2
    assert resolve(output, 5).scores(output).tolist() == [[pytest.approx(0.3)], [0.0]]
    with pytest.raises(LayerError, match="nothing was detected"):
        resolve([detections([], [], [])], None)


def test_a_box_of_ones_own() -> None:
    output = [detections([0.3, 0.9], [5, 7], [FULL, LEFT]), detections([0.5], [5], [LEFT])]
    box = Box([5, 5], torch.tensor([FULL, FULL]))
    assert box(output).tolist() == [pytest.approx(0.3), pytest.approx(0.25)]
    assert box.of(1)(output * 2).tolist() == [pytest.approx(0.3), pytest.approx(0.25)] * 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_detectors_of_torchvision(name: str) -> None:
    """With random weights: the smallest threshold, and small images, keep this short."""
    import torchvision

    torch.manual_seed(0)
    extra = {"min_size": 96, "max_size": 96}
    extra |= {"score_thresh": 0.0, "topk_candidates": 20} if "retina" in name else {"box_score_thresh": 0.0}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **extra).eval()
    images = (photos(96)[:1] + 1) / 2
    maps = interpret.class_activation_maps(model, images, ["grad-cam", "eigen-cam"], layers="last")
    assert maps.layers[0].startswith("backbone.body")
    for found in maps.values():
        assert found.isfinite().all()
    assert float(maps["eigen-cam", maps.layers[0]].std()) > 0
    assert maps.targets.shape == (1, 1)
    assert int(maps.targets) > 0


# Callables ------------------------------------------------------------------------------------------------------------


def test_similarity_to_an_embedding() -> None:
    model = net(lambda x, _: x.mean((2, 3)))
    with torch.no_grad():
        embeddings = model(IMAGES)
    assert torch.allclose(Similarity(embeddings)(embeddings), torch.ones(3))
    one = Similarity(embeddings[0])
    assert one.of(2) is one
    assert torch.equal(Similarity(embeddings).of(2).references, embeddings[2])
    maps = interpret.class_activation_maps(
        model, IMAGES, ["grad-cam", "ablation-cam"], layers=["conv"], targets=Similarity(embeddings.flip(0))
    )
    assert maps.targets.tolist() == [[-1], [-1], [-1]]
    assert maps["ablation-cam", "conv"].isfinite().all()


def test_regression_by_a_callable() -> None:
    model = net(lambda x, _: x.mean((2, 3))[:, :1])
    up = interpret.class_activation_maps(model, IMAGES, layers=["conv"], targets=lambda output: output[:, 0])
    assert up.targets.tolist() == [[-1]] * 3
    classes = interpret.class_activation_maps(model, IMAGES, layers=["conv"], targets=1)
    assert torch.equal(up["grad-cam", "conv"], classes["grad-cam", "conv"])


def test_several_classes_from_one_forward() -> None:
    forwards = 0
    model = net(lambda x, _: x.mean((2, 3)))

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal forwards
        forwards += 1

    model.register_forward_hook(count)
    maps = interpret.class_activation_maps(model, IMAGES, layers=["conv"], targets=[[0, 1, 2]] * 3)
    assert forwards == 2, "one to see the calls, one for all classes"
    assert maps["grad-cam", "conv"].shape == (3, 3, 10, 10)
    for target in range(3):
        alone = interpret.class_activation_maps(model, IMAGES, layers=["conv"], targets=target)
        torch.testing.assert_close(maps["grad-cam", "conv"][:, target], alone["grad-cam", "conv"])
