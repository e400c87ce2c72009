"""Maps that ask the network again: against closed forms, full forwards and peers; replays against whole runs."""

import math

import numpy as np
import pytest
import torch
from pytorch_grad_cam import AblationCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional
from torchcam.methods import CAM as TorchCAM

import interpret
from interpret import hooks
from interpret.errors import LayerError
from interpret.evidence import Call
from interpret.perturbation import CHUNK_BYTES, Scene, WholeNetwork, ablated_scores
from interpret.replay import Memory, Tail
from interpret.targets import resolve
from interpret.tracing import Forward, features, run, select, trace
from networks import lite0, lively, photos, trained_digits

peers_warn = pytest.mark.filterwarnings("ignore")


class Pooled(nn.Module):
    """Convolutions, a mean and a linear head: CAM is exact."""

    def __init__(self, head_bias: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3))
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 5)
        nn.init.constant_(self.head.bias, head_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.features(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def pooled() -> nn.Module:
    torch.manual_seed(0)
    return Pooled().eval()


IMAGES = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(3))


def activation(model: nn.Module, key: str, images: Tensor = IMAGES) -> Tensor:
    return interpret.capture(model, images, key)[key]


# Cam ------------------------------------------------------------------------------------------------------------------


def test_cam_is_the_linear_heads_weights_times_the_features(pooled: nn.Module) -> None:
    maps = interpret.class_activation_maps(pooled, IMAGES, ["cam", "hires-cam", "grad-cam"], layers=["act"])
    a, row = activation(pooled, "act"), pooled.head.weight[maps.targets[:, 0]]
    exact = torch.einsum("nk,nkhw->nhw", row.double(), a.double())
    torch.testing.assert_close(maps["cam", "act"].double(), exact, rtol=1e-5, atol=1e-6)
    logits = pooled(IMAGES).gather(1, maps.targets)[:, 0]
    torch.testing.assert_close(maps["cam", "act"].mean((1, 2)) + pooled.head.bias[maps.targets[:, 0]], logits)
    positions = a.shape[2] * a.shape[3]
    for method in ("hires-cam", "grad-cam"):
        torch.testing.assert_close(maps[method, "act"] * positions, exact.clamp_min(0).float(), rtol=1e-4, atol=1e-5)


def test_cam_finds_the_layer_that_the_head_reads() -> None:
    model = lively("resnet18")
    for layers in (None, "last"):
        maps = interpret.class_activation_maps(model, photos(), ["cam"], layers=layers)
        assert maps.layers == ("layer4",)
    with TorchCAM(model, target_layer="layer4", fc_layer="fc") as peer:
        model(photos())
        theirs = peer(maps.targets[:, 0].tolist(), normalized=False)[0]
    assert (maps["cam", "layer4"] - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_cam_of_one_logit() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    maps = interpret.class_activation_maps(net, IMAGES, ["cam"])
    sign = 2 * maps.targets[:, 0] - 1
    exact = torch.einsum("k,nkhw->nhw", net[4].weight[0], activation(net, "1")) * sign[:, None, None]
    torch.testing.assert_close(maps["cam", "1"], exact)


@pytest.mark.parametrize(
    ("build", "layers", "message"),
    [
        (lambda: lively("vgg11_bn"), None, "linear layer of the mean"),
        (lambda: lively("squeezenet1_1"), None, "linear layer of the mean"),
        (lambda: lively("convnext_tiny"), None, "linear layer of the mean"),
        (Pooled, ["features.3"], "whose mean over the positions"),
    ],
)
def test_cam_refuses_other_heads(build: object, layers: list[str] | None, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        interpret.class_activation_maps(build().eval(), photos(64), ["cam"], layers=layers)  # type: ignore[operator]


def test_cam_refuses_callable_targets(pooled: nn.Module) -> None:
    with pytest.raises(LayerError, match="explains classes"):
        interpret.class_activation_maps(pooled, IMAGES, ["cam"], targets=lambda output: output[:, 0])


# Ablation -------------------------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, layer: str, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N,) and with each channel of a layer zeroed in a run of the whole network, (N, C)."""
    module = model.get_submodule(layer)
    scores, ablated = [], []
    for image, target in zip(images, targets[:, 0].tolist(), strict=True):
        with torch.no_grad():
            scores.append(model(image[None])[0, target])
            count = activation(model, layer, image[None]).shape[1]
            rows = []
            for channel in range(count):

                def zero(module: nn.Module, inputs: object, output: Tensor, channel: int = channel) -> Tensor:
                    output = output.clone()
                    output[:, channel] = 0
                    return output

                handle = module.register_forward_hook(zero)
                rows.append(model(image[None])[0, target])
                handle.remove()
            ablated.append(torch.stack(rows))
    return torch.stack(scores), torch.stack(ablated)


@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.3", "act", "features"])
def test_ablation_is_what_whole_runs_give(pooled: nn.Module, layer: str) -> None:
    maps = interpret.class_activation_maps(pooled, IMAGES, ["ablation-cam"], layers=[layer])
    scores, ablated = by_hand(pooled, layer, IMAGES, maps.targets)
    weights = (scores[:, None] - ablated).double() / scores.abs()[:, None]
    exact = torch.einsum("nk,nkhw->nhw", weights, activation(pooled, layer).double()).clamp_min(0)
    assert (maps["ablation-cam", layer] - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_ablation_of_a_pooled_head_is_the_closed_form(pooled: nn.Module) -> None:
    maps = interpret.class_activation_maps(pooled, IMAGES, ["ablation-cam"], layers=["act"])
    a = activation(pooled, "act").double()
    logits = pooled(IMAGES).gather(1, maps.targets)[:, 0].double()
    weights = pooled.head.weight[maps.targets[:, 0]].double() * a.mean((2, 3)) / logits.abs()[:, None]
    exact = torch.einsum("nk,nkhw->nhw", weights, a).clamp_min(0)
    torch.testing.assert_close(maps["ablation-cam", "act"].double(), exact, rtol=1e-5, atol=1e-6)


def test_a_negative_score_keeps_the_sign_of_what_supports_it() -> None:
    torch.manual_seed(0)
    model = Pooled(head_bias=-50.0).eval()
    maps = interpret.class_activation_maps(model, IMAGES, ["ablation-cam", "cam"], layers=["act"], targets=1)
    support = model.head.weight[1] * activation(model, "act").mean((2, 3))
    exact = torch.einsum("nk,nkhw->nhw", support, activation(model, "act")).clamp_min(0)
    for ours, expected in zip(maps["ablation-cam", "act"], exact, strict=True):
        assert np.corrcoef(ours.flatten(), expected.detach().flatten())[0, 1] > 0.99999


@peers_warn
@pytest.mark.parametrize(("build", "layer"), [(trained_digits, "features.5"), (lambda: lively("resnet18"), "layer4.1")])
def test_ablation_agrees_with_pytorch_grad_cam_after_a_relu(build: object, layer: str) -> None:
    """Before a ReLU the peer does not set a channel to 0 but 1e7 below its minimum."""
    model = build()  # type: ignore[operator]
    images = (
        photos(64)[:2] if layer == "layer4.1" else torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    )
    maps = interpret.class_activation_maps(model, images, ["ablation-cam"], layers=[layer])
    targets = [ClassifierOutputTarget(int(target)) for target in maps.targets[:, 0]]
    with AblationCAM(model=model, target_layers=[model.get_submodule(layer)]) as peer:
        theirs = peer(images, targets=targets)
    ours = maps.heatmap("ablation-cam", layer, images.shape[2:]).numpy()
    assert np.abs(ours - theirs).max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer2.0.conv1"),
        ("resnet18", "layer4"),
        ("resnet18", "layer4.1.conv2"),
        ("vgg11_bn", "features.25"),
        ("densenet121", "features.denseblock4.denselayer16.conv2"),
        ("shufflenet_v2_x0_5", "stage4.3"),
        ("squeezenet1_1", "features.12"),
        ("swin_t", "features.7.0.norm1"),
        ("vit_b_32", "encoder.layers.encoder_layer_11.ln_1"),
    ],
)
def test_replaying_the_tail_is_running_the_whole(name: str, layer: str) -> None:
    """In-place, functional, attention and shared modules: some channels of one image, replayed and in full."""
    size = 224 if name.startswith(("vit", "swin")) else 96
    model = lively(name) if size == 96 else zoo_at_224(name)
    image = photos(size)[:1]
    with hooks.undisturbed(model), torch.no_grad():
        calls = trace(model, image, counted=False).calls
        call = select(calls, layer)[0]
        with Tail(model, image, call, calls) as tail:
            scene = Scene(model, image, resolve(tail.result, None), calls)
            whole = WholeNetwork(scene, call)
            assert torch.equal(tail.output, whole.output)
            copies = tail.output.repeat(6, *[1] * (tail.output.ndim - 1))
            channels = torch.linspace(0, features(copies, call).shape[1] - 1, 5).long()
            features(copies, call)[torch.arange(1, 6), channels] = 0
            replayed = scene.scores(tail(copies))
        scores = scene.scores(whole(copies))
    # convolutions before the call round otherwise for six copies than for one
    assert (replayed - scores).abs().max() <= (5e-6 if name == "densenet121" else 1e-6) * scores.abs().max()
    assert float((scores - scores[0]).abs().max()) > 0


def zoo_at_224(name: str) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    head = model.heads.head if name.startswith("vit") else model.head
    nn.init.normal_(head.weight, std=0.05)
    return model


@pytest.mark.parametrize("layer", ["layer4", "layer4.1.conv2", "layer3.1.conv2"])
def test_the_shortcut_equals_the_replay(layer: str) -> None:
    from interpret.perturbation import _separable_scores

    model, image = lively("resnet18"), photos(96)[:1]
    with hooks.undisturbed(model), torch.no_grad():
        calls = trace(model, image, counted=False).calls
        call = select(calls, layer)[0]
        with Tail(model, image, call, calls) as tail:
            scene = Scene(model, image, [[3, 7]], calls)
            short, full = _separable_scores(scene, call, tail), ablated_scores(scene, call, tail)
    if layer.startswith("layer3"):
        assert short is None  # convolutions mix the channels
    else:
        assert short is not None
        assert (short - full).abs().max() <= 1e-6 * full.abs().max()


class Shared(nn.Module):
    """One ReLU three times, a block whose output is written to in place, a tuple on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.inner = nn.Sequential(self.b, self.relu)
        self.pair = Pair()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        y = self.inner(x)
        y += x
        first, second = self.pair(y)
        z = self.c(first)
        z += second
        return self.head(self.relu(z).amax((2, 3)))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x + 1


class Careless(nn.Module):
    """Ignores what an in-place module returns, and goes on with what it wrote to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 3)
        self.writer = Writer()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.relu(x)
        y = self.writer(x)
        return self.head((x * y).mean((2, 3)))


class Writer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        return x + 1.0


@pytest.mark.parametrize("name", ["shared", "careless", "resnet18", "densenet121", "shufflenet_v2_x0_5", "vit_b_32"])
def test_a_remembered_forward_is_the_forward(name: str) -> None:
    """Every call's output is the same, to the hooks and in the answer; convolutions are not run again."""
    torch.manual_seed(0)
    size = 224 if name == "vit_b_32" else 96
    made = {"shared": Shared, "careless": Careless, "vit_b_32": lambda: zoo_at_224("vit_b_32")}
    model = made.get(name, lambda: lively(name))().eval()
    image, memory, ran = photos(size)[:1], Memory(), []

    def outputs(forward: Forward | None) -> dict[str, Tensor]:
        seen = {}

        def visit(call: Call, module: nn.Module, source: Tensor | None, output: Tensor) -> None:
            seen[call.key] = output.clone()

        with hooks.visiting(model, calls, visit):
            seen["answer"] = run(model, image, forward).clone()
        return seen

    with hooks.undisturbed(model), torch.no_grad():
        calls = trace(model, image, memory.first, counted=False).calls
        convolution = nn.Conv2d.forward
        nn.Conv2d.forward = lambda self, x: ran.append(self) or convolution(self, x)  # type: ignore[method-assign]
        try:
            plain, again = outputs(None), outputs(memory.again)
        finally:
            nn.Conv2d.forward = convolution  # type: ignore[method-assign]
    assert list(plain) == list(again)
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    times = [ran.count(module) for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert times.count(2) < len(times) / 2 or name in ("shared", "careless"), "most are remembered"


@pytest.mark.parametrize(
    "targets", [[3, 5, 7], [[1, 2], [3, 4], [5, 6]], ["predicted", 4], lambda output: output[:, 2]]
)
def test_targets_are_taken_image_by_image(targets: object) -> None:
    model, images = lively("resnet18"), photos(64)[:3]
    methods = ["ablation-cam", "cam"] if not callable(targets) else ["ablation-cam"]
    alone = interpret.class_activation_maps(model, images, methods, layers=["layer4"], targets=targets)
    beside = interpret.class_activation_maps(model, images, ["grad-cam", *methods], layers=["layer4"], targets=targets)
    assert torch.equal(alone.targets, beside.targets)
    for name in alone:
        torch.testing.assert_close(alone[name], beside[name], rtol=1e-5, atol=1e-7)
    if not callable(targets):
        with pytest.raises(LayerError, match="do not fit 3 images"):
            interpret.class_activation_maps(model, images, methods, layers=["layer4"], targets=[1, 2])


class Like:
    """A callable target by the documented protocol, without any guard against a second `of`."""

    def __init__(self, references: Tensor) -> None:
        self.references = references

    def __call__(self, output: Tensor) -> Tensor:
        return functional.cosine_similarity(output, self.references.expand_as(output))

    def of(self, image: int) -> "Like":
        return Like(self.references[image])


def test_a_callable_target_is_narrowed_once() -> None:
    model, images = lively("resnet18"), photos(64)[:3]
    target = Like(torch.randn((3, 1000), generator=torch.Generator().manual_seed(1)))
    alone = interpret.class_activation_maps(model, images, ["ablation-cam"], layers=["layer4"], targets=target)
    beside = interpret.class_activation_maps(
        model, images, ["grad-cam", "ablation-cam"], layers=["layer4"], targets=target
    )
    torch.testing.assert_close(alone["ablation-cam", "layer4"], beside["ablation-cam", "layer4"], rtol=1e-5, atol=1e-7)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return list(x.chunk(2, 1))


class Grown(nn.Module):
    """Appends to the list that a module gave."""

    def __init__(self) -> None:
        super().__init__()
        self.halves, self.conv = Halves(), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.halves(x)
        parts.append(self.conv(parts[-1]))
        return torch.stack(parts).sum(0)


def test_lists_that_the_model_changes_are_not_remembered_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), Grown(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    for method in ("eigen-cam", "ablation-cam"):
        alone = interpret.class_activation_maps(model, IMAGES[:1], [method], layers=["1"])
        beside = interpret.class_activation_maps(model, IMAGES[:1], ["grad-cam", method], layers=["1"])
        torch.testing.assert_close(alone[method, "1"], beside[method, "1"], rtol=1e-5, atol=1e-7)
    with hooks.undisturbed(model), torch.no_grad():
        calls = trace(model, IMAGES[:1], counted=False).calls
        call = select(calls, "2")[0]
        with Tail(model, IMAGES[:1], call, calls) as tail:
            again = tail(tail.output.repeat(2, 1, 1, 1))
        torch.testing.assert_close(again[0], tail.result[0], rtol=1e-5, atol=1e-6)


class Finder(nn.Module):
    """Detects what is bright, one box an image, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for score in self.conv(images).abs().mean((1, 2, 3)):
            keep = slice(0, int(score > 0.1))
            found.append(
                {
                    "boxes": torch.tensor([[1.0, 1.0, 6.0, 6.0]])[keep],
                    "labels": torch.tensor([1])[keep],
                    "scores": score[None][keep],
                }
            )
        return found


def test_one_image_without_detections_does_not_refuse_the_others() -> None:
    torch.manual_seed(0)
    model = Finder()
    nn.init.zeros_(model.conv.bias)
    images = torch.stack([IMAGES[0] + 1, torch.zeros_like(IMAGES[0])])
    for methods in (["ablation-cam"], ["grad-cam", "ablation-cam"]):
        maps = interpret.class_activation_maps(model, images, methods, layers=["conv"])
        assert maps.targets.tolist() == [[1], [-1]]
    for methods in (["ablation-cam"], ["grad-cam"]):
        with pytest.raises(LayerError, match="nothing was detected in these images"):
            interpret.class_activation_maps(model, images[1:], methods, layers=["conv"])


@pytest.mark.parametrize("layer", ["a", "relu", "b", "inner", "relu#1", "pair", "c", "relu#2"])
def test_replaying_shared_modules_and_in_place_sums(layer: str) -> None:
    torch.manual_seed(1)
    model = Shared()
    maps = interpret.class_activation_maps(model, IMAGES, ["ablation-cam"], layers=[layer])
    with hooks.undisturbed(model), torch.no_grad():
        calls = trace(model, IMAGES, counted=False).calls
        call = select(calls, layer)[0]
        for number in range(3):
            image = IMAGES[number : number + 1]
            scene = Scene(model, image, None, calls)
            ablated = ablated_scores(scene, call, WholeNetwork(scene, call))
            score = scene.scores(model(image.clone()))[0]
            a = scene.output_of(call)[0]
            exact = torch.einsum("k,khw->hw", (score - ablated)[:, 0] / score.abs(), a).clamp_min(0)
            torch.testing.assert_close(maps["ablation-cam", layer][number], exact, rtol=1e-4, atol=1e-6)


def test_a_network_that_runs_differently_each_time_is_run_whole() -> None:
    class Alternating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x) if len(x) == 1 else self.a(x.flip(0)).flip(0).neg()  # a batch is treated otherwise
            return self.head(torch.tanh(self.b(x)).mean((2, 3)))

    torch.manual_seed(0)
    maps = interpret.class_activation_maps(Alternating(), IMAGES[:1], ["ablation-cam"], layers=["b"])
    assert maps["ablation-cam", "b"].isfinite().all()


# Score ----------------------------------------------------------------------------------------------------------------


def test_score_cam_is_its_papers_formula(pooled: nn.Module) -> None:
    maps = interpret.class_activation_maps(pooled, IMAGES, ["score-cam"], layers=["features.3"])
    for image, target, ours in zip(IMAGES, maps.targets[:, 0], maps["score-cam", "features.3"], strict=True):
        a = activation(pooled, "features.3", image[None])[0]
        up = functional.interpolate(a[:, None], (16, 16), mode="bilinear", align_corners=False)[:, 0].double()
        masks = (up - up.amin((1, 2), keepdim=True)) / (up.amax((1, 2)) - up.amin((1, 2)))[:, None, None]
        with torch.no_grad():
            scores = pooled(image * masks[:, None].float())[:, target].double()
        exact = torch.einsum("k,khw->hw", scores.softmax(0), a.double()).clamp_min(0)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


@peers_warn
def test_score_cam_differs_from_pytorch_grad_cam_by_the_corners_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer up-samples masks with aligned corners, unlike the paper's own code; with those the maps are equal."""
    model, layer = trained_digits(), "features.5"
    images = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    ours = interpret.class_activation_maps(model, images, ["score-cam"], layers=[layer])
    with ScoreCAM(model=model, target_layers=[model.get_submodule(layer)]) as peer:
        theirs = peer(images, targets=[ClassifierOutputTarget(int(target)) for target in ours.targets[:, 0]])
    assert np.abs(ours.heatmap("score-cam", layer, (8, 8)).numpy() - theirs).max() > 1e-3
    plain = functional.interpolate

    def aligned(tensor: Tensor, size: tuple[int, int], mode: str, align_corners: bool) -> Tensor:
        return plain(tensor, size, mode=mode, align_corners=True)

    monkeypatch.setattr("interpret.functional.cam.functional.interpolate", aligned)
    ours = interpret.class_activation_maps(model, images, ["score-cam"], layers=[layer])
    monkeypatch.undo()
    assert np.abs(ours.heatmap("score-cam", layer, (8, 8)).numpy() - theirs).max() <= 1e-5


def test_constant_channels_have_no_weight_in_score_cam() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[2].zero_()
        net[0].bias[2] = 7.0
    maps = interpret.class_activation_maps(net, IMAGES, ["score-cam"], layers=["0"])
    a = activation(net, "0")
    assert (maps["score-cam", "0"] < 6.0).all(), "the constant channel would add 7 times its weight"
    assert (a[:, 2] == 7.0).all()


def test_chunks_are_bounded() -> None:
    model = lively("vgg11_bn")
    with hooks.undisturbed(model), torch.no_grad():
        calls = trace(model, photos(), counted=False).calls
        scene = Scene(model, photos()[:1], None, calls)
    largest = max(math.prod(call.output_shape) for call in calls)
    assert scene.chunk() == max(1, CHUNK_BYTES // (16 * largest))
    assert scene.chunk(calls[-2].position) > scene.chunk()


# Attention ------------------------------------------------------------------------------------------------------------


def test_rollout_is_the_product_of_attentions() -> None:
    """torchvision's ViT: the same matrices by asking its attention modules for them."""
    model, images = zoo_at_224("vit_b_32"), photos(224)[:2]
    maps = interpret.class_activation_maps(model, images, ["attention-rollout"])
    key = "encoder.layers.encoder_layer_11.self_attention"
    assert maps.layers == (key,)
    matrices: list[Tensor] = []
    handles = []
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):

            def ask(module: nn.Module, arguments: tuple, keywords: dict) -> tuple:
                return arguments, {**keywords, "need_weights": True}

            handles.append(module.register_forward_pre_hook(ask, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda m, i, output: matrices.append(output[1].double())))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    rollout = torch.eye(50, dtype=torch.float64).expand(2, 50, 50)
    for matrix in matrices:
        rollout = (matrix / 2 + torch.eye(50) / 2) @ rollout
    exact = rollout[:, 0, 1:].reshape(2, 7, 7)
    torch.testing.assert_close(maps["attention-rollout", key].double(), exact, rtol=1e-4, atol=1e-7)


def test_rollout_of_timm_and_up_to_a_block() -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", pretrained=False, depth=3).eval()
    maps = interpret.class_activation_maps(
        model, photos(224)[:1], ["attention-rollout"], layers=["blocks.0.attn", "blocks.2.attn"]
    )
    assert maps["attention-rollout", "blocks.2.attn"].shape == (1, 14, 14)
    first = maps["attention-rollout", "blocks.0.attn"]
    assert not torch.equal(first, maps["attention-rollout", "blocks.2.attn"])
    assert 0 < float(first.sum()) < 1


@pytest.mark.parametrize("name", ["resnet18", "swin_t"])
def test_rollout_refuses_networks_without_global_attention(name: str) -> None:
    model = lively("resnet18") if name == "resnet18" else zoo_at_224(name)
    with pytest.raises(LayerError, match="attention over all tokens"):
        interpret.class_activation_maps(model, photos(224)[:1], ["attention-rollout"])


def test_several_targets_and_default_layers() -> None:
    maps = interpret.class_activation_maps(
        lite0(), photos(96)[:2], ["grad-cam", "ablation-cam"], targets=[[281, 285], [1, 2]]
    )
    assert [key for method, key in maps if method == "ablation-cam"] == ["_conv_head"]
    assert maps["ablation-cam", "_conv_head"].shape == (2, 2, 3, 3)
    single = interpret.class_activation_maps(lite0(), photos(96)[:2], ["ablation-cam"], layers="last", targets=[285, 2])
    torch.testing.assert_close(
        maps["ablation-cam", "_conv_head"][:, 1], single["ablation-cam", "_conv_head"], rtol=1e-4, atol=1e-6
    )
