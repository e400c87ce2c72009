"""Functional operations as layers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import interpret
from interpret.errors import LayerError
from interpret.reporting import write_report
from networks import lively, photos

ADDITION = "fx:layer3.1.add"


class Block(nn.Module):
    """F.relu and an addition, once as functions and once as modules."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.functional = functional
        if not functional:
            self.relu, self.add = nn.ReLU(), Add()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.functional:
            y = torch.nn.functional.relu(x)
            return self.head((self.b(y) + y).mean((2, 3)))
        y = self.relu(x)
        return self.head(self.add(self.b(y), y).mean((2, 3)))


class Add(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


IMAGES = torch.rand((2, 3, 9, 9), generator=torch.Generator().manual_seed(0))
METHODS = ("grad-cam", "grad-cam++", "hires-cam", "eigen-cam", "ablation-cam", "score-cam", "cam")


def twins() -> tuple[Block, Block]:
    torch.manual_seed(0)
    functional, modular = Block(True), Block(False)
    modular.load_state_dict(functional.state_dict())
    return functional, modular


@pytest.mark.parametrize("method", METHODS)
def test_an_operation_has_the_maps_of_the_module_that_would_do_it(method: str) -> None:
    functional, modular = twins()
    pairs = {"fx:relu": "relu", "fx:add": "add"}
    if method == "cam":
        pairs.pop("fx:relu")  # the head does not read it
    ours = interpret.class_activation_maps(functional, IMAGES, [method], layers=list(pairs))
    expected = interpret.class_activation_maps(modular, IMAGES, [method], layers=list(pairs.values()))
    assert set(ours.layers) == set(pairs)
    for operation, module in pairs.items():
        torch.testing.assert_close(ours[method, operation], expected[method, module])


def test_captures_equal_torchvisions_extractor() -> None:
    """The addition of a ResNet's block, which an in-place ReLU overwrites."""
    model = lively("resnet18")
    ours = interpret.capture(model, photos(64), [ADDITION, "layer3.1.conv2"])
    theirs = create_feature_extractor(model, [ADDITION.removeprefix("fx:"), "layer3.1.relu_1"])(photos(64))
    assert set(ours) == {ADDITION, "layer3.1.conv2"}
    assert torch.equal(ours[ADDITION].relu(), theirs["layer3.1.relu_1"])
    assert float(ours[ADDITION].min()) < 0, "as it was before the ReLU, where the extractor shows what is left of it"
    captured = interpret.capture(model, photos(64), ADDITION, gradients=True)[ADDITION]
    assert captured.gradient is not None


def test_globs_and_suggestions() -> None:
    maps = interpret.class_activation_maps(lively("resnet18"), photos(64), layers=["fx:layer4.*.add", "layer4.1.conv2"])
    assert maps.layers == ("fx:layer4.0.add", "layer4.1.conv2", "fx:layer4.1.add")
    with pytest.raises(LayerError, match=r"'fx:layer4.1.ad' is no operation of the traced model; did you mean"):
        interpret.class_activation_maps(lively("resnet18"), photos(64), layers="fx:layer4.1.ad")
    with pytest.raises(LayerError, match="get_graph_node_names lists them"):
        interpret.capture(lively("resnet18"), photos(64), "fx:zzzz")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x.relu() if x.sum() > 0 else x).mean((2, 3))


def test_models_that_are_no_graph_say_so() -> None:
    with pytest.raises(LayerError, match=r"Branching cannot be traced as a graph.*choose modules"):
        interpret.class_activation_maps(Branching(), IMAGES, layers="fx:relu")
    with pytest.raises(LayerError, match=r"Branching cannot be traced as a graph.*choose modules"):
        interpret.audit(Branching(), IMAGES, layers=["fx:relu"])


def test_an_audit_records_operations(tmp_path: Path) -> None:
    """Its maps are those of the public call; the model keeps its name, its weights and what does not run."""
    model, images, wanted = lively("resnet18"), photos(64), ["fx:layer4.*.add", "layer4.1.conv2"]
    model.spare = nn.Conv2d(1, 2, 3)
    model.layer1[0].register_parameter("loose", nn.Parameter(torch.ones(3)))  # of a container that does not run
    model.layer1[1].register_buffer("counter", torch.zeros(2))
    model.second = model.spare
    with interpret.audit(model, images, layers=wanted, methods=["grad-cam", "ablation-cam"]) as evidence:
        plain = interpret.audit(model, images, layers=["layer4.1.conv2"], methods=["grad-cam"])
        assert evidence.manifest.status == "complete"
        assert evidence.manifest.model["name"] == "ResNet"
        assert evidence.manifest.model["parameters"] == plain.manifest.model["parameters"]
        assert evidence.manifest.checkpoint["state_sha256"] == plain.manifest.checkpoint["state_sha256"]
        assert {"spare.weight", "second.bias"} <= set(evidence.manifest.unused)
        found = interpret.compare(plain, evidence)
        (label,) = found.others
        assert found.verdict[label] == "identical", "a graph is the same network without containers"
        maps = interpret.class_activation_maps(model, images, ["grad-cam", "ablation-cam"], layers=wanted)
        for method, key in maps:
            stored = torch.from_numpy(evidence.array("maps", f"{method}/{key}"))[:, 0]
            torch.testing.assert_close(stored, maps[method, key], rtol=1e-5, atol=1e-7)
        page = write_report(evidence, tmp_path / "report", ("html",))["html"]
        assert "fx:layer4.0.add" in page.read_text()


def test_the_model_stays_as_it_is() -> None:
    functional, _ = twins()
    functional.train()
    before = [(name, module.training, set(vars(module))) for name, module in functional.named_modules()]
    interpret.class_activation_maps(functional, IMAGES, layers=["fx:add"])
    assert [(name, module.training, set(vars(module))) for name, module in functional.named_modules()] == before
