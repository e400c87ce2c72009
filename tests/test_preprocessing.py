import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.models import ResNet50_Weights, SqueezeNet1_1_Weights
from torchvision.models.segmentation import FCN_ResNet50_Weights
from torchvision.transforms import InterpolationMode

from interpret.errors import ImageError
from interpret.images import load_images
from interpret.preprocessing import Preprocessing, picture_of
from pictures import photo, written


def reference(preprocessing: Preprocessing, picture: Image.Image) -> torch.Tensor:
    steps: list[object] = []
    if preprocessing.resize is not None:
        steps.append(transforms.Resize(preprocessing.resize, InterpolationMode(preprocessing.interpolation)))
    if preprocessing.crop is not None:
        steps.append(transforms.CenterCrop(preprocessing.crop))
    steps += [transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    return transforms.Compose(steps)(picture)


@settings(deadline=None, max_examples=150)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.none() | st.integers(1, 70),
    crop=st.none() | st.integers(1, 80),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_equal_to_torchvision_to_the_bit(
    width: int, height: int, resize: int | None, crop: int | None, interpolation: str
) -> None:
    preprocessing = Preprocessing(resize, crop, interpolation=interpolation)
    picture = photo(width, height)
    expected = reference(preprocessing, picture)
    assert torch.equal(preprocessing(picture), expected)
    shown = preprocessing.picture(picture)
    assert shown.dtype == np.uint8
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    assert torch.equal((torch.from_numpy(shown).permute(2, 0, 1) / 255 - mean) / std, expected)


def test_a_line_of_pixels_is_not_blown_up() -> None:
    with pytest.raises(ImageError, match="a picture has 1 x 5000 pixels, too narrow to resize to 256; take it out"):
        Preprocessing()(Image.new("RGB", (1, 5000)))


def test_the_default_is_imagenets() -> None:
    tensor = Preprocessing()(photo(300, 270))
    assert tensor.shape == (3, 224, 224)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert Preprocessing().to_dict() == {
        "source": "default",
        "name": None,
        "resize": 256,
        "crop": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "picture": "before normalisation",
    }


def test_efficientnet_lite_normalises_by_127_and_128() -> None:
    lite = Preprocessing(None, None, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    picture = photo()
    expected = (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() - 127) / 128
    torch.testing.assert_close(lite(picture), expected, rtol=0, atol=3e-7)


def test_grey_networks() -> None:
    grey = Preprocessing(28, 28, mean=(0.1307,), std=(0.3081,))
    steps = [transforms.Grayscale(), transforms.Resize(28), transforms.CenterCrop(28), transforms.ToTensor()]
    expected = transforms.Compose([*steps, transforms.Normalize((0.1307,), (0.3081,))])(photo())
    assert torch.equal(grey(photo()), expected)
    assert grey.picture(photo()).shape == (28, 28, 3)


@pytest.mark.parametrize("weights", [ResNet50_Weights.IMAGENET1K_V2, SqueezeNet1_1_Weights.IMAGENET1K_V1])
def test_weights_are_taken_apart(weights: object) -> None:
    transform = weights.transforms()  # type: ignore[attr-defined]
    preprocessing = Preprocessing.from_weights(transform, str(weights))
    assert preprocessing.transform is None
    assert preprocessing.resize == transform.resize_size[0]
    assert torch.equal(preprocessing(photo(301, 77)), transform(photo(301, 77)))
    assert preprocessing.to_dict()["source"] == "weights"
    assert preprocessing.to_dict()["name"] == str(weights)


def test_weights_of_other_kinds() -> None:
    segmentation = FCN_ResNet50_Weights.DEFAULT.transforms(resize_size=40)
    preprocessing = Preprocessing.from_weights(segmentation)
    assert (preprocessing.resize, preprocessing.crop) == (40, None)
    assert torch.equal(preprocessing(photo()), segmentation(photo()))
    custom = Preprocessing.from_weights(transforms.ToTensor(), "mine")
    assert custom.to_dict() == {"source": "weights", "name": "mine", "picture": "minimum to maximum of the tensor"}
    assert torch.equal(custom(photo()), transforms.ToTensor()(photo()))


def python(path: Path, code: str) -> Path:
    path.write_text(textwrap.dedent(code))
    return path


def test_a_callable_of_the_users_own(tmp_path: Path) -> None:
    python(tmp_path / "sizes.py", "SIDE = 10")
    file = python(
        tmp_path / "prep.py",
        """
        import numpy, torch
        from sizes import SIDE

        def scaled(image):
            return torch.from_numpy(numpy.array(image.resize((SIDE, SIDE)))).permute(2, 0, 1).double() / 3 - 20
        def integers(image): return torch.zeros(3, 4, 4, dtype=torch.uint8)
        def batched(image): return torch.zeros(1, 3, 4, 4)
        def array(image): return numpy.zeros((3, 4, 4))
        def boom(image): raise RuntimeError("out of luck")
        def noisy(image): return torch.rand(3, 4, 4)
        def infinite(image): return torch.full((3, 4, 4), float("inf"))
        constant = 3
        """,
    )
    preprocessing = Preprocessing.from_callable(f"{file}:scaled")
    tensor = preprocessing(photo())
    assert (tensor.shape, tensor.dtype) == ((3, 10, 10), torch.float32)
    assert preprocessing.picture(photo()).shape == (10, 10, 3)
    assert preprocessing.picture(photo()).max() == 255
    assert preprocessing.to_dict() == {
        "source": "callable",
        "name": f"{file}:scaled",
        "picture": "minimum to maximum of the tensor",
    }
    for name, message in (
        ("integers", r"returned torch.uint8 \(3, 4, 4\); it must return a float tensor \(C, H, W\)"),
        ("batched", r"returned torch.float32 \(1, 3, 4, 4\)"),
        ("array", "returned ndarray"),
        ("boom", r"boom' failed: RuntimeError: out of luck \(prep.py, line 10\)"),
    ):
        with pytest.raises(ImageError, match=message):
            Preprocessing.from_callable(f"{file}:{name}")(photo())
    with pytest.raises(ImageError, match=r"constant' is a int; name a function"):
        Preprocessing.from_callable(f"{file}:constant")
    with pytest.raises(ImageError, match="did you mean 'scaled'"):
        Preprocessing.from_callable(f"{file}:scald")
    paths = written(tmp_path, "a.png")
    with pytest.raises(ImageError, match=r"noisy' gives another tensor each time; .*without augmentation"):
        load_images(paths, Preprocessing.from_callable(f"{file}:noisy"))
    with pytest.raises(ImageError, match=r"'a\.png' has NaN or infinite values"):
        load_images(paths, Preprocessing.from_callable(f"{file}:infinite"))
    with pytest.raises(ImageError, match=r"^'a\.png': .*boom' failed"):
        load_images(paths, Preprocessing.from_callable(f"{file}:boom"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5, 0.5)}, "must both have 3 values"),
        ({"mean": (0.5,)}, "must both have 3 values"),
        ({"std": (1.0, 0.0, 1.0)}, "must be finite and std .* positive"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "must be finite"),
        ({"mean": (127.0, 127.0, 127.0)}, "divide yours by 255"),
        ({"resize": 0}, "resize must be at least 1 pixel, not 0"),
        ({"crop": -1}, "crop must be at least 1 pixel, not -1"),
        ({"crop": 10_001}, "crop 10001 makes pictures of more than 100,000,000 pixels"),
        ({"resize": 10**6}, "resize 1000000 makes pictures of more than"),
        ({"interpolation": "bicubik"}, "unknown interpolation 'bicubik'; did you mean 'bicubic'"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Preprocessing(**options)  # type: ignore[arg-type]


def test_pictures_made_of_tensors() -> None:
    tensor = torch.tensor([[[-1.0, 3.0]], [[0.0, 1.0]], [[1.0, 2.0]]])  # (3, 1, 2), minimum -1, maximum 3
    assert picture_of(tensor).tolist() == [[[0, 64, 128], [255, 128, 191]]]
    assert picture_of(torch.tensor([[[0.0, 1.0]]])).tolist() == [[[0] * 3, [255] * 3]]
    assert picture_of(torch.tensor([[[0.0, 1.0]], [[0.0, 3.0]]])).tolist() == [[[0] * 3, [255] * 3]]
    assert picture_of(torch.full((3, 1, 1), 7.0)).tolist() == [[[0] * 3]]
