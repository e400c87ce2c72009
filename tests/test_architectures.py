import hashlib
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from checkpoints import saved
from interpret.architectures import build_model, weights_of
from interpret.errors import CheckpointError
from interpret.loading import load_state


def failure_of(spec: str, **arguments: object) -> str:
    with pytest.raises(CheckpointError) as error:
        build_model(spec, arguments)
    return str(error.value)


def test_torchvision_builders_never_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    with torch.device("meta"):
        assert build_model("torchvision:resnet18", {"num_classes": "5"}).fc.out_features == 5
        assert type(build_model("torchvision:fcn_resnet50", {"num_classes": "2"})).__name__ == "FCN"
        assert type(build_model("torchvision:googlenet")).__name__ == "GoogLeNet"
    assert type(build_model("torchvision:ssdlite320_mobilenet_v3_large")).__name__ == "SSD"


def test_torchvision_mistakes() -> None:
    assert "torchvision has no model 'resnet19'; did you mean 'resnet1" in failure_of("torchvision:resnet19")
    assert "give weights as the CHECKPOINT" in failure_of("torchvision:ResNet50_Weights.DEFAULT")
    assert "leave out the argument 'weights'" in failure_of("torchvision:resnet18", weights="DEFAULT")
    assert "'torchvision:resnet18' failed: TypeError: " in failure_of("torchvision:resnet18", clases=3)


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def create_model(name: str, **arguments: object) -> nn.Module:
        calls.append((name, arguments))
        return nn.Linear(1, 1)

    monkeypatch.setitem(sys.modules, "timm", None)
    assert "needs timm, which is not installed; run `pip install timm`" in failure_of("timm:resnet18")
    timm = types.SimpleNamespace(
        is_model=lambda name: name == "resnet18", list_models=lambda: ["resnet18"], create_model=create_model
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    build_model("timm:resnet18", {"num_classes": "5"})
    assert calls == [("resnet18", {"num_classes": 5, "pretrained": False})]
    assert "did you mean 'resnet18'" in failure_of("timm:resnet81")
    assert "leave out the argument 'pretrained'" in failure_of("timm:resnet18", pretrained="true")


def python(path: Path, code: str) -> Path:
    path.write_text(textwrap.dedent(code))
    return path


def test_a_callable_in_a_file(tmp_path: Path) -> None:
    python(tmp_path / "parts.py", "def width(): return 7")
    file = python(
        tmp_path / "random.py",  # a name that must not hide the standard library's
        """
        from dataclasses import dataclass
        from torch import nn
        import parts

        @dataclass
        class Setting:
            width: "int" = 2

        def build(classes=3, bias=True, widths=(), name="x"):
            from parts import width
            build.seen = (classes, bias, widths, name)
            return nn.Linear(width(), classes, bias=bias)

        class Zoo:
            small = staticmethod(lambda: nn.Linear(1, 1))

        ready = nn.Linear(2, 2)
        number = 5
        def wrong(): return {"a": 1}
        def boom(): raise ValueError("no width")
        """,
    )
    import random

    path, modules = list(sys.path), set(sys.modules)
    model = build_model(f"{file}:build", {"classes": "5", "bias": "false", "widths": "[1, 2]", "name": "a b"})
    assert (model.in_features, model.out_features, model.bias) == (7, 5, None)
    assert build_model(f"{file}:build", {"classes": 4, "name": "None"}).out_features == 4
    assert build_model(f"{file}:Zoo.small").in_features == 1
    assert build_model(f"{file}:ready").in_features == 2
    assert sys.path == path
    assert {name for name in set(sys.modules) - modules if not name.startswith("_interpret_")} == set()
    assert sys.modules["random"] is random

    assert f"'{file}:boom' failed: ValueError: no width (random.py, line " in failure_of(f"{file}:boom")
    assert "returned a dict; it must return an nn.Module" in failure_of(f"{file}:wrong")
    assert "is a int; name a function" in failure_of(f"{file}:number")
    assert "has no argument 'clases'; did you mean 'classes'" in failure_of(f"{file}:build", clases=3)
    assert "built already: it takes no a" in failure_of(f"{file}:ready", a=3)
    assert "has no 'biuld'; did you mean 'build'" in failure_of(f"{file}:biuld")


def test_two_files_may_have_neighbours_of_one_name(tmp_path: Path) -> None:
    for width in (1, 2):
        folder = tmp_path / str(width)
        (folder / "blocks").mkdir(parents=True)
        python(folder / "blocks" / "__init__.py", f"WIDTH = {width}")
        python(folder / "net.py", "import blocks, torch\ndef build(): return torch.nn.Linear(blocks.WIDTH, 1)")
    assert [build_model(f"{tmp_path}/{width}/net.py:build").in_features for width in (1, 2, 1)] == [1, 2, 1]


def test_files_that_cannot_be_imported(tmp_path: Path) -> None:
    assert "there is no file" in failure_of(f"{tmp_path}/none.py:build")
    broken = python(tmp_path / "broken.py", "def build(:")
    assert "cannot be imported: SyntaxError" in failure_of(f"{broken}:build")
    leaving = python(tmp_path / "leaving.py", "raise SystemExit(3)")
    assert "cannot be imported: SystemExit: 3" in failure_of(f"{leaving}:build")
    needy = python(tmp_path / "needy.py", "import not_installed_anywhere")
    assert "No module named 'not_installed_anywhere' (needy.py, line 1)" in failure_of(f"{needy}:build")
    assert not [
        name for name in sys.modules if name.startswith("_interpret_") and not hasattr(sys.modules[name], "__file__")
    ]


def test_a_callable_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_model("torch.nn:Linear", {"in_features": "2", "out_features": "3"}).out_features == 3
    (tmp_path / "zoo_of_this_test").mkdir()
    python(tmp_path / "zoo_of_this_test" / "small.py", "import torch\ndef build(): return torch.nn.ReLU()")
    monkeypatch.chdir(tmp_path)  # the console command does not have the current folder on its path
    assert isinstance(build_model("zoo_of_this_test.small:build"), nn.ReLU)
    assert "there is no module 'zoo_of_that_test'; install it, or run in the folder" in failure_of(
        "zoo_of_that_test:build"
    )
    python(tmp_path / "needs_of_this_test.py", "import not_installed_anywhere")
    assert "No module named 'not_installed_anywhere'" in failure_of("needs_of_this_test:build")
    for spec in ("resnet18", "torch.nn:", ":build"):
        assert "names no callable; write package.module:callable" in failure_of(spec)


def test_what_weights_imply_is_known_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    weights = weights_of("torchvision:ResNet50_Weights.IMAGENET1K_V2")
    assert (weights.spec, weights.arguments) == ("torchvision:resnet50", {"num_classes": 1000})
    assert weights.transform.resize_size == [232]
    assert weights.class_names is not None
    assert weights.class_names[:2] == ("tench", "goldfish")
    assert weights_of("torchvision:ResNet50_Weights.DEFAULT").weights is weights.weights
    with pytest.raises(CheckpointError, match="weights of detection are not built here"):
        weights_of("torchvision:FasterRCNN_ResNet50_FPN_Weights.COCO_V1")
    for wrong in ("torchvision:ResNet50_Weights.IMAGENET1K_V3", "ResNet50_Weigths.IMAGENET1K_V2"):
        with pytest.raises(CheckpointError, match=r"did you mean 'ResNet50_Weights\.IMAGENET1K_V2'"):
            weights_of(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "ResNet18_Weights.IMAGENET1K_V1",
        "GoogLeNet_Weights.IMAGENET1K_V1",
        "Inception_V3_Weights.IMAGENET1K_V1",
        "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1",
        "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
        "LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1",
    ],
)
def test_the_model_of_weights_is_the_one_torchvision_builds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from torchvision import models

    weights = weights_of(f"torchvision:{name}")
    monkeypatch.setattr(type(weights.weights), "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    with torch.device("meta"):
        ours = build_model(weights.spec, weights.arguments)
        theirs = models.get_model_builder(weights.spec.removeprefix("torchvision:"))(weights=weights.weights)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert [getattr(ours, key, None) for key in ("transform_input", "image_size")] == [
        getattr(theirs, key, None) for key in ("transform_input", "image_size")
    ]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Weights of torchvision that are served from a folder instead of the web."""
    from torchvision.models import SqueezeNet1_1_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    model = build_model("torchvision:squeezenet1_1")
    path = saved(tmp_path / "weights.pth", model.state_dict())

    def serve(digest: str | None = None, name: str = "weights"):
        digest = digest or hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        served = tmp_path / f"{name}-{digest}.pth"
        served.write_bytes(path.read_bytes())
        weights = SqueezeNet1_1_Weights.IMAGENET1K_V1
        monkeypatch.setattr(weights._value_, "url", served.as_uri())
        return model, weights_of("torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1")

    return serve


def test_weights_are_downloaded_once_and_read_safely(published, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = published()
    for _ in range(2):
        target = build_model(weights.spec, weights.arguments)
        loaded = load_state(target, weights.read())
        assert loaded.uri == weights.uri
        torch.testing.assert_close(dict(target.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert capsys.readouterr().err.count("Downloading") == 1


def test_downloads_that_are_not_what_they_should_be(published, tmp_path: Path) -> None:
    _, weights = published(digest="0123456789")
    with pytest.raises(CheckpointError, match="was not downloaded correctly: invalid hash value"):
        weights.read()
    _, weights = published()
    cached = tmp_path / "hub" / "checkpoints" / Path(weights.weights.url).name
    saved(cached, nn.Linear(1, 1).state_dict())
    with pytest.raises(CheckpointError, match="does not match the digest in its name; delete it"):
        weights.read()


def test_offline(published, tmp_path: Path) -> None:
    _, weights = published()
    Path(weights.weights.url.removeprefix("file://")).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be downloaded \(.*\); fetch file:.* elsewhere and put it at"):
        weights.read()
