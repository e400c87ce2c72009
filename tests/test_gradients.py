"""Attributions against captum where it is right, and against rules and closed forms written by hand where it is not."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from pytorch_grad_cam import GuidedBackpropReLUModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import interpret
from interpret.errors import InterpretError, LayerError
from interpret.functional.cam import ATTRIBUTION_METHODS
from interpret.gradients import attribute, attribution, guided
from networks import digit_images, lite0, lively, photos, trained_digits

IMAGES = torch.randn((3, 3, 12, 12), generator=torch.Generator().manual_seed(7))
TARGETS = [1, 0, 3]
GUIDED = ("guided-backprop", "deconvnet")


def convolutional(activation: Callable[[], nn.Module] = nn.ReLU, classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), activation(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), activation(), nn.Flatten(),
        nn.Linear(72, 16), activation(), nn.Linear(16, classes),
    ).eval()  # fmt: skip


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Within a share of the largest expected value, which is not zero."""
    assert found.shape == expected.shape
    scale = expected.abs().max()
    assert scale > 0
    assert (found.double() - expected.double()).abs().max() <= tolerance * scale


def plain_gradient(model: nn.Module, images: Tensor, targets: list[int]) -> Tensor:
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[range(len(leaf)), targets].sum(), leaf)[0]


# ----- captum, on networks that it sees whole


@pytest.mark.filterwarnings("ignore:Input Tensor 0", "ignore:Setting backward hooks")
@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("saliency", captum.attr.Saliency),
        ("input-x-gradient", captum.attr.InputXGradient),
        ("guided-backprop", captum.attr.GuidedBackprop),
        ("deconvnet", captum.attr.Deconvolution),
    ],
)
def test_gradients_equal_captum(method: str, peer: Any) -> None:
    model = convolutional()
    expected = peer(model).attribute(IMAGES.clone(), target=TARGETS).detach()
    found = attribute(model, IMAGES, method, TARGETS)
    assert_near(found.values, expected)
    assert found.values.dtype == torch.float32
    assert found.targets.tolist() == [[1], [0], [3]]
    assert (found.gap, found.steps, found.note) == (None, None, "")


@pytest.mark.filterwarnings("ignore:Input Tensor 0", "ignore:Setting backward hooks")
@pytest.mark.parametrize("layer", ["0", "3", "last"])
def test_guided_grad_cam_equals_captum(layer: str) -> None:
    model = convolutional()
    module = model[3 if layer == "last" else int(layer)]
    peer = captum.attr.GuidedGradCam(model, module)
    expected = peer.attribute(IMAGES.clone(), target=TARGETS, interpolate_mode="bilinear").detach()
    assert_near(attribution(model, IMAGES, "guided-grad-cam", TARGETS, layer), expected)


@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize("baseline", [None, -0.5, torch.linspace(-1, 1, 3).reshape(3, 1, 1), IMAGES.roll(1, 0)])
def test_integrated_gradients_of_equal_steps_equal_captum(steps: int, baseline: Any) -> None:
    model = convolutional()
    start = torch.as_tensor(0.0 if baseline is None else baseline).expand_as(IMAGES).clone()
    expected, delta = captum.attr.IntegratedGradients(model).attribute(
        IMAGES, start, TARGETS, n_steps=steps, method="gausslegendre", return_convergence_delta=True
    )
    found = attribute(model, IMAGES, "integrated-gradients", TARGETS, baseline=baseline, steps=steps)
    assert_near(found.values, expected.detach())
    with torch.no_grad():
        difference = (model(IMAGES) - model(start))[range(3), TARGETS]
    assert found.gap is not None
    assert found.steps is not None
    torch.testing.assert_close(found.gap[:, 0], (delta / difference).abs().double(), rtol=1e-3, atol=1e-5)
    assert found.steps.tolist() == [[steps]] * 3


def test_smooth_grad_without_noise_equals_captum_and_saliency() -> None:
    model = convolutional()
    peer = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
    leaf = IMAGES.clone().requires_grad_()
    expected = peer.attribute(leaf, nt_samples=3, stdevs=0.0, target=TARGETS).detach()
    found = attribution(model, IMAGES, "smooth-grad", TARGETS, samples=3, noise=0)
    assert_near(found, expected)
    assert_near(found, attribution(model, IMAGES, "saliency", TARGETS))


# ----- rectifiers


class Rule(torch.autograd.Function):
    """The rules as their papers write them: a forward of its own, and a mask for each factor."""

    @staticmethod
    def forward(context: Any, x: Tensor, rule: str, ceiling: float) -> Tensor:
        context.save_for_backward(x)
        context.rule, context.ceiling = rule, ceiling
        return x.clamp(0, ceiling)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = context.saved_tensors
        passed = gradient * (gradient > 0)
        if context.rule == "guided-backprop":
            passed = passed * (x > 0) * (x < context.ceiling)
        return passed, None, None


class Ruled(nn.Module):
    def __init__(self, rule: str, ceiling: float = float("inf")) -> None:
        super().__init__()
        self.rule, self.ceiling = rule, ceiling

    def forward(self, x: Tensor) -> Tensor:
        return Rule.apply(x, self.rule, self.ceiling)


def replaced(model: nn.Module, rule: str) -> nn.Module:
    """A copy whose modules ReLU and ReLU6 are the written rule."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, name, Ruled(rule, 6.0 if isinstance(child, nn.ReLU6) else float("inf")))
    return model


class Form(nn.Module):
    """Any function as the activation of a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def named(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """In place on a tensor whose name is read afterwards; what the operation returns is thrown away."""

    def by_name(x: Tensor) -> Tensor:
        function(x)
        return x

    return by_name


INFINITE = float("inf")
FORMS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "nn.ReLU": (nn.ReLU(), INFINITE),
    "nn.ReLU in place": (nn.ReLU(inplace=True), INFINITE),
    "nn.ReLU6": (nn.ReLU6(), 6.0),
    "nn.ReLU6 in place": (nn.ReLU6(inplace=True), 6.0),
    "nn.Hardtanh": (nn.Hardtanh(0.0, 1.5), 1.5),
    "nn.Threshold": (nn.Threshold(0.0, 0.0), INFINITE),
    "F.relu": (functional.relu, INFINITE),
    "F.relu in place": (lambda x: functional.relu(x, inplace=True), INFINITE),
    "F.relu_": (functional.relu_, INFINITE),
    "F.relu6": (functional.relu6, 6.0),
    "F.relu6 in place": (lambda x: functional.relu6(x, True), 6.0),
    "F.hardtanh": (lambda x: functional.hardtanh(x, 0, 2), 2.0),
    "F.hardtanh_": (lambda x: functional.hardtanh_(x, 0, 2), 2.0),
    "F.threshold": (lambda x: functional.threshold(x, 0, 0), INFINITE),
    "F.threshold_": (lambda x: functional.threshold_(x, 0, 0), INFINITE),
    "torch.relu": (torch.relu, INFINITE),
    "torch.relu_": (torch.relu_, INFINITE),
    "torch.clamp": (lambda x: torch.clamp(x, min=0), INFINITE),
    "torch.clamp both": (lambda x: torch.clamp(x, 0.0, 1.0), 1.0),
    "torch.clip": (lambda x: torch.clip(x, 0), INFINITE),
    "Tensor.relu": (lambda x: x.relu(), INFINITE),
    "Tensor.relu_": (lambda x: x.relu_(), INFINITE),
    "Tensor.clamp": (lambda x: x.clamp(min=0, max=2), 2.0),
    "Tensor.clamp_": (lambda x: x.clamp_(min=0, max=2), 2.0),
    "Tensor.clamp_min": (lambda x: x.clamp_min(0), INFINITE),
    "Tensor.clamp_min_": (lambda x: x.clamp_min_(0), INFINITE),
    "by name": (named(lambda x: x.relu_()), INFINITE),
    "by name, F.relu": (named(lambda x: functional.relu(x, inplace=True)), INFINITE),
    "by name, relu6": (named(lambda x: functional.relu6(x, inplace=True)), 6.0),
    "by name, through a view": (named(lambda x: x.flatten(1).relu_()), INFINITE),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", GUIDED)
def test_every_form_of_a_rectifier_is_guided(form: str, rule: Any) -> None:
    function, ceiling = FORMS[form]
    model = convolutional(lambda: Form(function))
    images = 6 * IMAGES  # so that ceilings are reached
    expected = plain_gradient(convolutional(lambda: Ruled(rule, ceiling)), images, TARGETS)
    found = attribute(model, images, rule, TARGETS)
    assert_near(found.values, expected)
    assert found.note == ""
    leaf = images.clone().requires_grad_()
    with guided(rule) as guidance:
        output = model(leaf)
        with torch.no_grad():
            model(images)  # no gradient passes here
    assert (guidance.rectified, guidance.others) == (3, [])
    torch.testing.assert_close(output, model(leaf), rtol=0, atol=0)  # the forward is the model's own


@pytest.mark.parametrize("rule", GUIDED)
def test_the_rule_by_hand(rule: Any) -> None:
    """Two dense layers, every mask written out in float64."""
    draw = np.random.default_rng(3)
    first, second, third = draw.normal(size=(12, 8)), draw.normal(size=(6, 12)), draw.normal(size=(1, 6))
    x = draw.normal(size=8)
    z = first @ x
    y = second @ np.maximum(z, 0)
    gradient = third[0] * (third[0] > 0) * ((y > 0) if rule == "guided-backprop" else 1)
    gradient = second.T @ gradient
    gradient = gradient * (gradient > 0) * ((z > 0) if rule == "guided-backprop" else 1)

    def forward(model: nn.Module, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        for weight in (first, second):
            flat = functional.relu(flat @ torch.tensor(weight).T.float())
        return flat @ torch.tensor(third).T.float()

    found = attribution(nn.Identity(), torch.tensor(x).float().reshape(1, 2, 2, 2), rule, 1, forward=forward)
    assert_near(found.flatten(), torch.tensor(first.T @ gradient))


OTHERS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.clamp(min=-1),
    lambda x: x.clamp(max=0),
    lambda x: x.clamp(torch.zeros(())),
    functional.hardtanh,
    lambda x: functional.threshold(x, 0, 5),
    lambda x: functional.threshold(x, 0.5, 0),
    lambda x: torch.clamp_max(x, 1),
]


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_other_clamps_keep_their_gradient(number: int) -> None:
    x = torch.linspace(-2, 2, 9).requires_grad_()
    weights = torch.tensor([1.0, -1.0, 2.0] * 3)
    with guided("guided-backprop") as guidance:
        (found,) = torch.autograd.grad((OTHERS[number](x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((OTHERS[number](x) * weights).sum(), x)
    assert found.tolist() == expected.tolist()
    assert guidance.rectified == 0


def test_integers_and_gradients_that_never_arrive() -> None:
    class Blocks(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, y: Tensor) -> Tensor:
            return x + y

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
            return None, gradient

    for rule in GUIDED:
        x = torch.tensor([-1.0, 2.0], requires_grad=True)
        with guided(rule) as guidance:  # type: ignore[arg-type]
            assert torch.tensor([-1, 2]).clamp(min=0).tolist() == [0, 2]
            score = Blocks.apply(torch.relu(x), 3 * x).sum()
        assert torch.autograd.grad(score, x)[0].tolist() == [3.0, 3.0]
        assert guidance.rectified == 1


def test_part_of_a_tensor_rectified_in_place() -> None:
    weights = torch.tensor([1.0, -1.0, 1.0, -1.0])
    for rule, first in (("guided-backprop", [0.0, 0.0]), ("deconvnet", [1.0, 0.0])):
        x = torch.tensor([-1.0, 2.0, -3.0, 4.0], requires_grad=True)
        with guided(rule):  # type: ignore[arg-type]
            y = x * 1
            y[:2].relu_()
        assert y.tolist() == [0.0, 2.0, -3.0, 4.0]
        assert torch.autograd.grad((y * weights).sum(), x)[0].tolist() == [*first, 1.0, -1.0]


@pytest.mark.parametrize("rule", GUIDED)
def test_a_reused_module_and_the_name_that_an_in_place_operation_wrote_to(rule: Any) -> None:
    class Reuse(nn.Module):
        def __init__(self, relu: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.relu = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1), relu
            self.head = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = self.relu(x)
            y = self.relu(self.second(x if self.relu_writes else y)) + (x if self.relu_writes else y)
            return self.head(y.mean((2, 3)))

        @property
        def relu_writes(self) -> bool:
            return getattr(self.relu, "inplace", False)

    expected = plain_gradient(Reuse(Ruled(rule)), IMAGES, TARGETS)
    assert_near(attribution(Reuse(nn.ReLU()), IMAGES, rule, TARGETS), expected)
    assert_near(attribution(Reuse(nn.ReLU(inplace=True)), IMAGES, rule, TARGETS), expected)


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0")
@pytest.mark.parametrize("form", ["nn.ReLU6", "F.relu"])
def test_where_peers_silently_give_the_plain_gradient(form: str) -> None:
    function, ceiling = FORMS[form]
    model = convolutional(nn.ReLU6 if form == "nn.ReLU6" else lambda: Form(function))
    image = 6 * IMAGES[:1]
    plain = plain_gradient(model, image, [1])
    captums = captum.attr.GuidedBackprop(model).attribute(image.clone(), target=1).detach()
    theirs = GuidedBackpropReLUModel(copy.deepcopy(model), "cpu")(image.clone(), target_category=1)
    torch.testing.assert_close(captums, plain, rtol=0, atol=0)
    torch.testing.assert_close(torch.from_numpy(theirs).movedim(-1, 0)[None], plain, rtol=0, atol=0)
    expected = plain_gradient(convolutional(lambda: Ruled("guided-backprop", ceiling)), image, [1])
    assert (expected - plain).abs().max() > 0.1 * plain.abs().max()
    assert_near(attribution(model, image, "guided-backprop", 1), expected)


class Counting(TorchDispatchMode):
    """Counts rectifications below everything that a network can write them in."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.count += function.overloadpacket in (torch.ops.aten.relu, torch.ops.aten.relu_)
        return function(*arguments, **(keywords or {}))


def small(name: str) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    if name == "encoder":
        return Tokens().eval()
    return torchvision.models.get_model(name, weights=None, **options).eval()


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, activation="relu", batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "encoder"])
def test_what_networks_call_inside_is_guided(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos()[:2, :, 40:104, 40:104].contiguous()
    model = small(name)
    with Counting() as counting:
        model(images)
    with guided("guided-backprop") as guidance:
        model(images.clone().requires_grad_())
    assert guidance.rectified == counting.count > 0
    found = attribution(model, images, "guided-backprop", 1)
    # the oracle is the same network, built while torch's relu was the written rule
    monkeypatch.setattr(functional, "relu", lambda x, inplace=False: Rule.apply(x, "guided-backprop", INFINITE))
    other = small(name)
    other.load_state_dict(model.state_dict())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = plain_gradient(other.requires_grad_(False), images, [1, 1])
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert_near(found, expected)


@pytest.mark.parametrize("rule", GUIDED)
def test_a_trained_network_with_relu6(rule: str) -> None:
    model, images = lite0(), photos(96)[:2]
    with torch.no_grad():
        targets = model(images).argmax(1).tolist()
    found = attribute(model, images, rule)
    assert_near(found.values, plain_gradient(replaced(model, rule), images, targets))
    assert found.targets[:, 0].tolist() == targets


@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU, nn.Hardswish, nn.Mish, nn.ELU, nn.LeakyReLU, nn.Tanh])
def test_networks_that_cannot_be_guided(activation: Callable[[], nn.Module]) -> None:
    name = {"LeakyReLU": "leaky_relu"}.get(activation.__name__, activation.__name__.lower())  # type: ignore[attr-defined]
    for method in (*GUIDED, "guided-grad-cam"):
        with pytest.raises(LayerError, match=f"cannot be guided: .* {name}; use 'integrated-gradients'"):
            attribute(convolutional(activation), IMAGES, method)
    with pytest.raises(LayerError, match="activations met are none"):
        attribute(convolutional(nn.Identity), IMAGES, "deconvnet")


def test_mixed_networks_are_noted() -> None:
    model = convolutional()
    model[4] = nn.SiLU(inplace=True)
    found = attribute(model, IMAGES, "guided-backprop")
    assert found.note == "guided at 2 rectifiers, but not at silu, which pass the plain gradient"
    assert attribute(model, IMAGES, "guided-grad-cam").note == found.note
    with pytest.raises(LayerError, match="unknown rule 'relu'"), guided("relu"):  # type: ignore[arg-type]
        pass


# ----- integrated gradients


def smooth(activation: Callable[[], nn.Module]) -> nn.Module:
    model = convolutional(activation)
    model[2] = nn.AvgPool2d(2)
    return model


@pytest.mark.parametrize("activation", [nn.Softplus, nn.GELU, nn.Tanh])
def test_adaptive_steps_complete_on_smooth_networks(activation: Callable[[], nn.Module]) -> None:
    model = smooth(activation)
    found = attribute(model, 2 * IMAGES, "integrated-gradients", TARGETS)
    double = copy.deepcopy(model).double()
    images = 2 * IMAGES.double()
    roots, weights = np.polynomial.legendre.leggauss(200)
    mean = sum(
        weight / 2 * plain_gradient(double, (1 + root) / 2 * images, TARGETS)
        for root, weight in zip(roots, weights, strict=True)
    )
    assert found.gap is not None
    assert found.steps is not None
    assert found.gap.max() < 1e-3
    assert found.steps.max() < 100
    assert found.note == ""
    assert_near(found.values, images * mean, 2e-3)
    with torch.no_grad():
        difference = (double(images) - double(0 * images))[range(3), TARGETS]
    gap = (found.values.double().sum((1, 2, 3)) - difference).abs() / difference.abs()
    torch.testing.assert_close(found.gap[:, 0], gap, rtol=0, atol=1e-4)  # its scores are float32's


def test_closed_forms_of_integrated_gradients() -> None:
    image = torch.tensor([1.0, -2.0, 3.0, 0.5]).reshape(1, 1, 2, 2)

    def cubes(model: nn.Module, images: Tensor) -> Tensor:
        return images.flatten(1).pow(3).sum(1, keepdim=True)

    found = attribute(nn.Identity(), image, "integrated-gradients", 1, forward=cubes)
    assert_near(found.values, image**3)  # of a sum of functions of one entry each, IG is their differences
    assert found.steps is not None
    assert found.steps.item() == 9  # Simpson's rule is exact on cubes: the first nine are enough

    weight = torch.tensor([1.0, 0.5, 2.0, -1.0])  # weight . image = 5.5: the kink of ReLU(5.5 t - 2) is at t = 4 / 11

    def kink(model: nn.Module, images: Tensor) -> Tensor:
        return functional.relu(images.flatten(1) @ weight[:, None] - 2)

    found = attribute(nn.Identity(), image, "integrated-gradients", 1, forward=kink)
    assert_near(found.values.flatten(), image.flatten() * weight * 7 / 11, 1e-3)
    assert found.gap is not None
    assert found.steps is not None
    assert found.gap.item() < 1e-3
    assert found.steps.item() < 40


def test_the_tolerance_holds_where_no_local_gap_makes_up_for_another() -> None:
    """Simpson's rule is always above the integral of an exponential, so all gaps have one sign."""

    def powers(model: nn.Module, images: Tensor) -> Tensor:
        return torch.exp(9 * images.flatten(1)).sum(1, keepdim=True)

    image = torch.linspace(0.4, 1, 4, dtype=torch.float64).reshape(1, 1, 2, 2)
    for tolerance in 10 ** -np.linspace(1, 4.5, 15):
        found = attribute(nn.Identity(), image, "integrated-gradients", 1, forward=powers, tolerance=tolerance)
        assert found.gap is not None
        assert found.steps is not None
        assert found.gap.item() <= tolerance
        assert found.steps.item() <= max(9, 6 * tolerance**-0.25)  # the rule's error falls with the fourth power
        assert_near(found.values, torch.exp(9 * image) - 1, tolerance)


def test_a_rectified_network_that_does_not_complete_says_by_how_much() -> None:
    model, images = lite0(), photos(96)[:1]
    found = attribute(model, images, "integrated-gradients", max_steps=24)
    with torch.no_grad():
        ends = model(torch.cat([images, 0 * images]))[:, found.targets.item()].double()
    gap = (found.values.double().sum() - (ends[0] - ends[1])).abs() / (ends[0] - ends[1]).abs()
    assert found.gap is not None
    assert found.steps is not None
    assert abs(found.gap.item() - gap) < 1e-5
    assert found.gap.item() > 1e-3
    assert 9 < found.steps.item() <= 24
    assert "1 of 1 sums miss the difference of scores by more than 0.001" in found.note


def test_a_trained_network_completes_within_the_sum_of_local_gaps() -> None:
    found = attribute(trained_digits(), digit_images()[0][:4], "integrated-gradients", tolerance=0.01)
    assert found.gap is not None
    assert found.steps is not None
    assert found.gap.max() <= 0.01
    assert found.steps.max() < 512


def test_batches_are_bounded_and_change_nothing() -> None:
    model = smooth(nn.GELU)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    methods: dict[str, dict[str, Any]] = {
        "integrated-gradients": {"tolerance": 1e-5},
        "smooth-grad": {"samples": 7},
    }
    for method, options in methods.items():
        whole = attribute(model, IMAGES[:2], method, 1, **options)
        sizes.clear()
        parts = attribute(model, IMAGES[:2], method, 1, **options, batch_size=3)
        assert_near(parts.values, whole.values, 1e-5)
        assert max(sizes) == 3
    handle.remove()


def test_paths_without_a_difference_and_without_numbers() -> None:
    model = convolutional()
    found = attribute(model, IMAGES, "integrated-gradients", 1, baseline=IMAGES)
    assert found.values.abs().max() == 0
    assert found.gap is not None
    assert found.gap.max() == 0
    found = attribute(model, torch.full_like(IMAGES[:1], torch.nan), "integrated-gradients", 1)
    assert found.gap is not None
    assert found.steps is not None
    assert found.gap.isnan().all()
    assert found.steps.item() == 9  # more would not help
    assert "1 of 1 sums" in found.note


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("integrated-gradients", {"steps": 0}, "steps=0: give an integer of at least 1"),
        ("integrated-gradients", {"max_steps": 2}, "max_steps=2 and tolerance=0.001"),
        ("integrated-gradients", {"tolerance": 0}, "tolerance=0"),
        ("integrated-gradients", {"baseline": torch.zeros(5)}, r"baseline of shape \(5,\) does not broadcast"),
        ("smooth-grad", {"samples": 2.5}, "samples=2.5"),
        ("smooth-grad", {"noise": -1}, "noise=-1 is no standard deviation"),
        ("smooth-grad", {"sample": 3}, "no option 'sample'; did you mean 'samples'.*it has samples, noise, batch_size"),
        ("saliency", {"steps": 3}, "saliency has no option 'steps'; it has none"),
        ("guided-backprop", {"rule": "deconvnet"}, "guided-backprop has no option 'rule'"),
        ("salience", {}, "unknown method 'salience'; did you mean 'saliency'.*known: saliency, input-x-gradient"),
        ("guided-grad-cam", {"layer": ["0", "3"]}, "names 2 calls with a Grad-CAM map; name one call"),
        ("guided-grad-cam", {"layer": "conv"}, "matches none"),
    ],
)
def test_what_does_not_fit_is_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        attribute(convolutional(), IMAGES, method, **options)


@pytest.mark.parametrize("images", [IMAGES[0], IMAGES[:0], IMAGES.int()])
def test_images_without_gradients_are_refused(images: Tensor) -> None:
    with pytest.raises(LayerError, match="give preprocessed floating-point images"):
        attribute(convolutional(), images, "saliency")


# ----- noise


def test_smooth_grad_by_hand() -> None:
    model = convolutional()
    generator = torch.Generator().manual_seed(5)
    noise = [torch.randn(IMAGES.shape[1:], generator=generator) for _ in range(4)]
    spans = IMAGES.amax((1, 2, 3), keepdim=True) - IMAGES.amin((1, 2, 3), keepdim=True)
    gradients = [plain_gradient(model, IMAGES + 0.3 * spans * draw, TARGETS).double() for draw in noise]
    expected = torch.stack(gradients).mean(0).abs()
    found = attribution(model, IMAGES, "smooth-grad", TARGETS, seed=5, samples=4, noise=0.3)
    assert_near(found, expected)
    assert_near(attribution(model, IMAGES[1:2], "smooth-grad", 0, seed=5, samples=4, noise=0.3), expected[1:2])
    assert (found - attribution(model, IMAGES, "smooth-grad", TARGETS, seed=6, samples=4, noise=0.3)).abs().max() > 0


def test_the_predicted_class_is_that_of_the_image_itself() -> None:
    model = convolutional()
    with torch.no_grad():
        predicted = model(IMAGES).argmax(1)
        noisy = model(IMAGES + 3 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(0))).argmax(1)
    assert (predicted != noisy).any()
    for method, options in (("smooth-grad", {"noise": 2.0, "samples": 5}), ("integrated-gradients", {"steps": 5})):
        found = attribute(model, IMAGES, method, **options)
        assert found.targets[:, 0].tolist() == predicted.tolist()
        torch.testing.assert_close(found.values, attribution(model, IMAGES, method, predicted, **options))


# ----- full gradients


def psi(terms: Tensor, size: tuple[int, int]) -> Tensor:
    """The authors' post-processing, without the constant that they add to the range; summed over the channels."""
    planes = []
    for image in terms.abs():
        span = image.max() - image.min()
        planes.append((image - image.min()) / span if span > 0 else 0 * image)
    return functional.interpolate(torch.stack(planes), size, mode="bilinear", align_corners=True).sum(1)


def test_full_grad_by_hand() -> None:
    """Every bias' gradient from a tensor of zeros that is added where the bias is, in float64."""
    torch.manual_seed(0)
    first, norm, second = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3, stride=2)
    head = nn.Linear(6, 4)
    for value, scale in ((norm.weight, 1), (norm.bias, 1), (norm.running_mean, 0.3)):
        nn.init.normal_(value, 0.5, scale)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    shared = nn.ReLU(inplace=True)
    model = nn.Sequential(first, norm, shared, second, shared, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()

    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    biases = [first.bias, shift, second.bias, head.bias]
    double = copy.deepcopy(model).double()
    double[2] = double[4] = nn.ReLU()
    x = IMAGES.double().requires_grad_()
    added: list[Tensor] = []

    def add(output: Tensor) -> Tensor:
        added.append(torch.zeros_like(output).requires_grad_())
        return output + added[-1]

    y = double[4](add(double[3](double[2](add(double[1](add(double[0](x))))))))
    scores = add(double[7](y.mean((2, 3))))[range(3), TARGETS]
    gradient, *others = torch.autograd.grad(scores.sum(), [x, *added])
    terms = [g * b.detach().double().reshape(-1, *[1] * (g.ndim - 2)) for g, b in zip(others, biases, strict=True)]
    total = (x * gradient).sum((1, 2, 3)) + sum(term.flatten(1).sum(1) for term in terms)
    torch.testing.assert_close(total, scores)  # the paper's equation 3
    expected = psi(x * gradient, (12, 12)) + sum(psi(term, (12, 12)) for term in terms[:3])

    found = attribute(model, IMAGES, "full-grad", TARGETS)
    assert_near(found.values.sum(1), expected.detach(), 1e-5)
    planes = torch.stack([psi((x * gradient)[:, channel : channel + 1], (12, 12)) for channel in range(3)], 1)
    assert planes.shape == found.values.shape
    shares = found.values.double() - _scaled(x * gradient)
    assert_near(shares, sum(psi(term, (12, 12)) for term in terms[:3])[:, None].expand(-1, 3, -1, -1) / 3, 1e-5)
    assert found.gap is not None
    assert found.gap.max() < 1e-5
    assert found.note == ""


def _scaled(terms: Tensor) -> Tensor:
    size = terms.detach().abs().flatten(1)
    low, high = size.amin(1, keepdim=True), size.amax(1, keepdim=True)
    return ((size - low) / (high - low)).reshape(terms.shape)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet-lite0", "digits"])
def test_full_grad_completes(name: str) -> None:
    model = {"resnet18": lambda: lively("resnet18"), "efficientnet-lite0": lite0, "digits": trained_digits}[name]()
    images = digit_images()[0][:8] if name == "digits" else photos()
    found = attribute(model, images, "full-grad")
    assert found.gap is not None
    assert found.gap.max() < 1e-4
    assert found.note == ""
    assert found.values.shape == images.shape
    assert found.values.min() >= 0


def test_saturated_units_are_constants() -> None:
    """Y = min(max(2 x + 1, 0), 6) + 3 for one pixel: 6 + 3 where it saturates, 2 x + 1 + 3 where it does not."""
    for activation in (nn.ReLU6(), nn.ReLU6(inplace=True), Form(lambda x: x.clamp_(0, 6))):
        model = nn.Sequential(nn.Conv2d(1, 1, 1), activation, nn.Flatten(), nn.Linear(1, 1))
        for parameter, value in zip(model.parameters(), (2.0, 1.0, 1.0, 3.0), strict=True):
            nn.init.constant_(parameter, value)
        found = attribute(model, torch.tensor([5.0, 1.0]).reshape(2, 1, 1, 1), "full-grad", 1)
        assert found.gap is not None
        assert found.gap.tolist() == [[0.0], [0.0]]


def test_modules_called_twice_count_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.convolution, self.norm, self.head = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 4)
            nn.init.normal_(self.norm.running_mean)
            nn.init.normal_(self.norm.bias)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = functional.relu(self.norm(self.convolution(x)), inplace=True)
            return self.head(x.mean((2, 3)))

    found = attribute(Twice(), IMAGES, "full-grad", TARGETS)
    assert found.gap is not None
    assert found.gap.max() < 1e-5


def test_the_scale_of_the_scores_does_not_change_full_grad() -> None:
    model = convolutional()
    whole = attribution(model, IMAGES, "full-grad", TARGETS)
    with torch.no_grad():
        model[8].weight *= 2.0**-30
    assert_near(attribution(model, IMAGES, "full-grad", TARGETS), whole)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_full_grad_of_other_networks_is_noted(activation: str) -> None:
    model = convolutional({"silu": nn.SiLU, "gelu": nn.GELU}[activation])
    found = attribute(model, IMAGES, "full-grad", TARGETS)
    assert found.gap is not None
    assert found.gap.max() > 1e-2
    assert found.note.endswith(f"of the score: not piecewise linear are {activation}")


def test_biases_that_full_grad_cannot_tell_are_missing_in_the_sum() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            halves = torch.cat(x.chunk(2, 3))  # (2 N, ...): rows that are no images
            return self.head(torch.cat(self.convolution(halves).mean((2, 3)).chunk(2), 1))

    torch.manual_seed(0)
    by_batch = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), *convolutional())
    for model in (Windows(), by_batch):
        with torch.no_grad():
            nn.init.constant_(next(iter(model.parameters())), 2.0)
        found = attribute(model, IMAGES, "full-grad", TARGETS)
        assert found.gap is not None
        assert found.gap.max() > 1e-3
        assert found.note.startswith("gradients and biases miss up to")


# ----- every method


OPTIONS: dict[str, dict[str, Any]] = {"integrated-gradients": {"max_steps": 12}, "smooth-grad": {"samples": 2}}


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_several_targets_equal_one_at_a_time(method: str) -> None:
    model, options = convolutional(), OPTIONS.get(method, {})
    targets = np.array([[1, 3], [0, 2], [3, 3]])
    found = attribute(model, IMAGES, method, targets, **options)
    assert found.values.shape == (3, 2, 3, 12, 12)
    assert found.targets.tolist() == targets.tolist()
    for column in range(2):
        alone = attribute(model, IMAGES, method, targets[:, column], **options)
        assert_near(found.values[:, column], alone.values)
        for several, one in ((found.gap, alone.gap), (found.steps, alone.steps)):
            assert (several is None) == (one is None)
            if several is not None and one is not None:
                torch.testing.assert_close(several[:, column : column + 1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["saliency", "input-x-gradient", "guided-backprop", "deconvnet", "full-grad"])
def test_one_forward_serves_all_targets(method: str) -> None:
    model = convolutional()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    attribute(model, IMAGES, method, [[0, 1, 2]] * 3)
    assert calls == [3]


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_callable_targets_and_networks_with_several_inputs(method: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = convolutional()

        def forward(self, images: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
            return {"out": self.net(images * scale)}

    scale = torch.tensor(0.5)
    found = attribute(
        Two(),
        IMAGES,
        method,
        lambda outputs: outputs["out"][:, 2],
        layer="net.3",
        forward=lambda model, images: model(images, scale=scale),
        **OPTIONS.get(method, {}),
    )
    assert found.targets.tolist() == [[-1]] * 3
    scaled = convolutional()
    with torch.no_grad():
        scaled[0].weight *= 0.5
    assert_near(found.values, attribution(scaled, IMAGES, method, 2, "3", **OPTIONS.get(method, {})), 1e-5)


def state(model: nn.Module) -> list[Any]:
    return [
        [(name, value.clone()) for name, value in model.state_dict().items()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [(m.training, list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks), sorted(vars(m)))
         for m in model.modules()],
        torch.get_rng_state(),
    ]  # fmt: skip


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


FORWARDS = dict.fromkeys(ATTRIBUTION_METHODS, 1) | {"smooth-grad": 2, "integrated-gradients": 2, "guided-grad-cam": 3}


@pytest.mark.parametrize(
    ("method", "fails_at"),
    [(method, number) for method, count in FORWARDS.items() for number in (None, *range(1, count + 1))],
)
def test_nothing_changes(method: str, fails_at: int | None) -> None:
    model = convolutional()
    model.insert(1, nn.BatchNorm2d(6))
    model.insert(9, nn.Dropout(0.5))
    model.train()
    model[3].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    runs: list[int] = []

    def fail(module: nn.Module, inputs: Any) -> None:
        runs.append(1)
        if len(runs) == fails_at:
            raise RuntimeError("out of cheese")

    model[6].register_forward_pre_hook(fail)
    before, images = state(model), IMAGES.clone()
    options = OPTIONS.get(method, {})
    if fails_at is None:
        attribute(model, images, method, **options)
    else:
        with pytest.raises(InterpretError, match="out of cheese"):
            attribute(model, images, method, **options)
    assert_equal(state(model), before)
    assert not images.requires_grad
    assert torch.equal(images, IMAGES)
    x = torch.tensor([2.0, 3.0], requires_grad=True)  # and no rule is left behind
    assert torch.autograd.grad((torch.relu(x) * torch.tensor([1.0, -1.0])).sum(), x)[0].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_half_precision_is_computed_in_float32(method: str) -> None:
    model = convolutional().bfloat16()
    found = attribution(model, IMAGES.bfloat16(), method, 1, **OPTIONS.get(method, {}))
    whole = convolutional().bfloat16().float()
    expected = attribution(whole, IMAGES.bfloat16().float(), method, 1, **OPTIONS.get(method, {}))
    assert torch.equal(found, expected)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_forwards_that_switch_gradients_off(method: str) -> None:
    found = attribution(convolutional(), IMAGES, method, 1, "3", **OPTIONS.get(method, {}))
    off = torch.no_grad()(lambda model, images: model(images))
    assert_near(attribution(convolutional(), IMAGES, method, 1, "3", forward=off, **OPTIONS.get(method, {})), found)


def infers(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x * 1


@pytest.mark.parametrize("cut", [infers, torch.Tensor.detach, torch.argsort])
@pytest.mark.parametrize("method", ["saliency", "guided-backprop", "integrated-gradients", "smooth-grad", "full-grad"])
def test_scores_without_a_gradient_say_why(method: str, cut: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(*convolutional(), Form(lambda x: cut(x).float()))
    with pytest.raises(LayerError, match="no gradient with respect to the images: its forward detaches them"):
        attribute(model, IMAGES, method, 1)


def test_scores_that_depend_on_something_else_say_so_too() -> None:
    other = torch.ones(3, 4, requires_grad=True)
    model = nn.Sequential(*convolutional(), Form(lambda x: x.detach() * other))
    with pytest.raises(LayerError, match="no gradient with respect to the images"):
        attribute(model, IMAGES, "saliency", 1)
    assert other.grad is None


def test_images_that_require_gradients_keep_theirs() -> None:
    images = IMAGES.clone().requires_grad_()
    images.grad = torch.ones_like(images)
    found = attribution(convolutional(), images, "saliency", 1)
    assert not found.requires_grad
    assert images.requires_grad
    assert torch.equal(images.grad, torch.ones_like(images))


def test_limits_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "interpret"):
        values = interpret.attribution(convolutional(), IMAGES, "saliency", 1)
        assert caplog.records == []
        interpret.attribution(convolutional(nn.GELU), IMAGES, "full-grad", 1)
    assert values.shape == IMAGES.shape
    assert "full-grad: gradients and biases miss up to" in caplog.records[0].getMessage()


def test_the_table_of_methods_is_whole() -> None:
    from interpret import gradients

    assert tuple(gradients._METHODS) == ATTRIBUTION_METHODS
