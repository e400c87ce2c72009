"""Eight checkpoints of ResNet-50, and 16 crops of eight photos that none of them was trained on, by class."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50

from interpret import demonstration

SIDE, MEAN, STD = 128, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

demonstration.write_images(Path("crops"))
files = sorted(Path("crops").iterdir())  # 32 to train on, named 00-cat.png, 01-espresso.png, ...
classes = sorted({file.stem[3:] for file in files})
for file in files[32:]:
    folder = Path("probe", file.stem[3:])
    folder.mkdir(parents=True, exist_ok=True)
    file.rename(folder / file.name)
files = files[:32]
pixels = np.stack([np.asarray(Image.open(file).resize((SIDE, SIDE)), np.float32) / 255 for file in files])
images = torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD)).permute(0, 3, 1, 2).contiguous()
labels = torch.tensor([classes.index(file.stem[3:]) for file in files])


def trained(seed: int, steps: int = 20) -> nn.Module:
    """ResNet-50 after a few steps from random weights."""
    torch.manual_seed(seed)
    model = resnet50(num_classes=len(classes))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4)
    for _ in range(steps):
        batch = torch.randperm(len(images))[:16]
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # running means lag behind so few steps: take the plain average
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model(images)
    return model.eval()


def with_new_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same trunk, and a head trained anew."""
    model = resnet50(num_classes=len(classes))
    model.load_state_dict(state)
    head, model.fc = nn.Linear(2048, len(classes)), nn.Identity()
    with torch.no_grad():
        features = model.eval()(images)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    return {**state, "fc.weight": head.weight.detach(), "fc.bias": head.bias.detach()}


def pruned(weight: Tensor, share: float = 0.3) -> Tensor:
    """A copy with the smallest weights at zero."""
    return weight.where(weight.abs() > weight.abs().quantile(share), 0)


base = trained(seed=0).state_dict()
kernels = {name: tensor for name, tensor in base.items() if tensor.ndim > 1}
floats = {name: tensor for name, tensor in base.items() if tensor.is_floating_point()}
variance = "layer2.1.bn2.running_var"
noise = torch.Generator().manual_seed(0)
states = {
    "base": base,
    "int8": {**base, **{name: demonstration.int8(tensor) for name, tensor in kernels.items()}},
    "pruned": {**base, **{name: pruned(tensor) for name, tensor in kernels.items() if tensor.numel() < 2**24}},
    "noise": {
        **base,
        **{n: t + 0.01 * t.std() * torch.randn(t.shape, generator=noise) for n, t in kernels.items()},
    },
    "batchnorm": {**base, variance: 4 * base[variance]},
    "head": with_new_head(base),
    "float16": {**base, **{name: tensor.half() for name, tensor in floats.items()}},
    "other-seed": trained(seed=1).state_dict(),
}
for name, state in states.items():
    torch.save(state, f"{name}.pt")
Path("classes.txt").write_text("\n".join(classes) + "\n", "utf-8")
