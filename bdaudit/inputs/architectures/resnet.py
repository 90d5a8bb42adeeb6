"""ResNet-18 and PreAct-ResNet-18 for small images.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016, section 4.2 for small images) and
"Identity Mappings in Deep Residual Networks" (ECCV 2016). The 3x3 stem without max-pooling and the attribute
names are those of the CIFAR checkpoints that circulate in the backdoor literature, so that these load.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

MULTIPLES = (1, 2, 4, 8)
BLOCKS = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each normalised afterwards, added to a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.append(nn.Conv2d(before, after, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, before, H, W) to (N, after, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each normalised beforehand, added to a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.projects = stride != 1 or before != after
        self.shortcut = nn.Sequential()
        if self.projects:
            self.shortcut.append(nn.Conv2d(before, after, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, before, H, W) to (N, after, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        # A projection sees the activated input, an identity the raw one (ECCV 2016, figure 4e and section
        # 4.1).
        kept: Tensor = self.shortcut(active) if self.projects else x
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + kept


class _Staged(nn.Module):
    """Four stages of two blocks, global average pooling and a linear head."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def _add_stages(self, block: type[BasicBlock | PreActBlock], width: int, num_classes: int) -> None:
        before = width
        for stage, multiple in enumerate(MULTIPLES, start=1):
            after = width * multiple
            blocks = nn.Sequential()
            for i in range(BLOCKS):
                blocks.append(block(before, after, stride=2 if stage > 1 and i == 0 else 1))
                before = after
            self.add_module(f"layer{stage}", blocks)
        self.linear = nn.Linear(before, num_classes)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class ResNet18(_Staged):
    """ResNet-18 with a 3x3 stem: (N, channels, H, W) of any size from 8x8 up -> logits (N, num_classes)."""

    def __init__(self, *, num_classes: int, channels: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self._add_stages(BasicBlock, width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images to logits."""
        return self._logits(F.relu(self.bn1(self.conv1(x))))


class PreActResNet18(_Staged):
    """PreAct-ResNet-18 with a 3x3 stem: (N, channels, H, W) from 8x8 up -> logits (N, num_classes).

    As in the checkpoints in circulation, and unlike the paper, nothing normalises the last stage's output.
    """

    def __init__(self, *, num_classes: int, channels: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self._add_stages(PreActBlock, width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images to logits."""
        return self._logits(self.conv1(x))
