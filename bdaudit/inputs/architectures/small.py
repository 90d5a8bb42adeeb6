"""A small convolutional network for tests and for the demo on 8x8 to 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SmallCNN(nn.Module):
    """Three convolutions with BatchNorm: (N, channels, H, W) from 8x8 up -> logits (N, num_classes).

    The channels are width, 2 width, 4 width; a pooling follows the first two, global averaging the last.
    """

    def __init__(self, *, num_classes: int, channels: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images to logits."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.conv3(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
