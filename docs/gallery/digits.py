"""A training on scikit-learn's digits, audited at twelve of its steps; the first block is frozen halfway."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from interpret.integrations import Auditor


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Digits(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 16)
        self.body = nn.Sequential(nn.MaxPool2d(2), block(16, 32), nn.MaxPool2d(2), block(32, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ten digits, (N, 10)."""
        return self.head(self.body(self.stem(x)).mean((2, 3)))


digits = load_digits()
small = torch.tensor(digits.images).float()[:, None] / 16
images = nn.functional.interpolate(small, scale_factor=4, mode="bilinear")  # (1797, 1, 32, 32)
labels = torch.tensor(digits.target)
probe, pictures = images[-32:], (images[-32:] * 255).byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()

torch.manual_seed(0)
network = Digits()
optimizer = torch.optim.Adam(network.parameters(), 2e-3)
auditor = Auditor(
    probe,
    every=20,
    out="evidence",
    publish=False,
    labels=labels[-32:].tolist(),
    display_images=pictures[:4],
    class_names=list("0123456789"),
)
auditor.audit(network, 0)
for step in range(1, 221):
    if step == 101:
        network.stem.requires_grad_(False)
        network.stem.eval()
    batch = torch.randint(0, 1500, (64,))
    loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    auditor(network, step)
