"""VGG-19 with batch normalisation for small images.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015),
table 1, column E. On 32x32 images five poolings leave one pixel, so the classifier is as wide as the last
convolution.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# Per group of convolutions: how many, and their channels as multiples of the width. A pooling ends each
# group.
GROUPS = ((2, 1), (2, 2), (4, 4), (4, 8), (4, 8))


class VGG19BN(nn.Module):
    """VGG-19-BN: (N, channels, H, W) of any size from 32x32 up -> logits (N, num_classes).

    width: channels of the first group (64 in the paper). linears: 3 as in the paper, with dropout, or 1 as in
    many CIFAR checkpoints.
    """

    def __init__(self, *, num_classes: int, channels: int, width: int = 64, linears: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential()
        before = channels
        for count, multiple in GROUPS:
            after = width * multiple
            for _ in range(count):
                self.features.append(nn.Conv2d(before, after, 3, padding=1))
                self.features.append(nn.BatchNorm2d(after))
                self.features.append(nn.ReLU(inplace=True))
                before = after
            self.features.append(nn.MaxPool2d(2))
        head = nn.Linear(before, num_classes)
        if linears == 1:
            self.classifier: nn.Module = head
        else:
            hidden = [
                layer
                for _ in range(linears - 1)
                for layer in (nn.Dropout(), nn.Linear(before, before), nn.ReLU(inplace=True))
            ]
            # Dropout stands before each hidden layer, which puts the linear layers at 1, 4 and 6.
            self.classifier = nn.Sequential(*hidden, head)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images to logits."""
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits
