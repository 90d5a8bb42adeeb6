"""Plain loops, written the way the field's toolboxes write them: what bdaudit's speed is held against.

fp32, NCHW, PIL images through per-sample torchvision transforms in a Dataset, a DataLoader, SGD as it comes. Where the
released programs differ, both ways are measured: BackdoorBench gives its loaders workers (four) and tests after every
epoch; FST's own program does neither, and the retuning and querying programs of the same authors make their tensors
once and keep them in a list. Nothing is copied from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bdaudit.inputs.classifier import Preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.probes.queries import Generator

Batches = Iterable[tuple[Tensor, Tensor]]


class Images(Dataset[tuple[Tensor, int]]):
    """Images that become PIL's when they are asked for, as those of torchvision's datasets do."""

    def __init__(self, pool: Pool, transform: Callable[[Image.Image], Tensor]) -> None:
        arrays = pool.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.arrays = arrays[..., 0] if arrays.shape[-1] == 1 else arrays
        self.labels = pool.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[row])), self.labels[row]


def transform(p: Preprocessing, crop: int = 0) -> Any:
    """Crop at random after padding by so many pixels, if any; scale to [0, 1]; normalise."""
    cropped = [transforms.RandomCrop((p.height, p.width), padding=crop)] if crop else []
    return transforms.Compose([*cropped, transforms.ToTensor(), transforms.Normalize(p.mean, p.std)])


def loader(
    images: Sized,
    batch_size: int,
    *,
    workers: int = 0,
    shuffle: bool = True,
    device: str = "cpu",
    drop_last: bool = False,
) -> DataLoader[Any]:
    """Load a Dataset, or a list of (tensor, label)."""
    return DataLoader(
        images,  # type: ignore[arg-type]  # a list serves as well
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        pin_memory=device == "cuda",
        drop_last=drop_last,
    )


def tune(
    net: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    lr: float,
    device: str = "cpu",
    cosine: bool = True,
    penalty: Callable[[], Tensor | float] = lambda: 0.0,
    after_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """Tune every weight by SGD with momentum .9; return the loss of each batch, which these programs log.

    cosine: let the rate fall to zero, by a step after each epoch.
    """
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs) if cosine else None
    losses = []
    for _ in range(epochs):
        net.train()
        correct = 0
        for x, y in batches:
            x, y = x.to(device), y.to(device)
            logits = net(x)
            loss = criterion(logits, y) + penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step()
            correct += (logits.argmax(1) == y).sum().item()
            losses.append(loss.item())
        if scheduler is not None:
            scheduler.step()
    return losses


def shift(net: nn.Module, head: nn.Linear, batches: Batches, *, alpha: float, **settings: Any) -> list[float]:
    """FST: tune from a new head that is kept away from the old one, projected to its norm after every step."""
    original = head.weight.detach().clone()
    bound = head.in_features**-0.5
    for parameter in (head.weight, head.bias):
        nn.init.uniform_(parameter, -bound, bound)

    def project() -> None:
        head.weight.data = head.weight.data * original.norm() / head.weight.data.norm()

    return tune(net, batches, penalty=lambda: alpha * (head.weight * original).sum(), after_step=project, **settings)


def retune(
    net: nn.Module, benign: Dataset[Any], poisoned: Dataset[Any], batch_size: int, **settings: Any
) -> list[float]:
    """RA: the first benign images replaced by poisoned ones, each made into a tensor once, the rate constant."""
    replaced = [poisoned[i] for i in range(len(poisoned))]  # type: ignore[arg-type]
    kept = [benign[i] for i in range(len(replaced), len(benign))]  # type: ignore[arg-type]
    return tune(net, loader([*replaced, *kept], batch_size), cosine=False, **settings)


def query(
    generator: Generator,
    purified: nn.Module,
    teacher: nn.Module,
    reference: nn.Module,
    images: Dataset[Any],
    p: Preprocessing,
    *,
    alpha: float,
    epochs: int,
    lr: float,
    batch_size: int,
    device: str = "cpu",
) -> list[float]:
    """QRA (SS Eq. 2): train perturbations; every network answers every batch, and none is frozen, as released."""
    mean, std = (torch.tensor(v, device=device).reshape(1, -1, 1, 1) for v in (p.mean, p.std))
    optimizer = torch.optim.SGD(generator.parameters(), lr=lr, momentum=0.9)
    for net in (purified, teacher, reference):
        net.eval()
    made = [images[i] for i in range(len(images))]  # type: ignore[arg-type]
    losses = []
    for _ in range(epochs):
        for x, y in loader(made, batch_size):
            x, y = x.to(device), y.to(device)
            change = generator.budget * generator.mlp(x.flatten(1)).reshape(x.shape)
            perturbed = ((x * std + mean + change).clamp(0, 1) - mean) / std
            answers = purified(perturbed).log_softmax(1)
            divergence = F.kl_div(answers, teacher(x).detach().softmax(1), reduction="batchmean")
            loss = divergence + alpha * F.cross_entropy(reference(perturbed), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate(net: nn.Module, batches: Batches, device: str = "cpu") -> tuple[int, int]:
    """Count the images that get their label, and all."""
    net.eval()
    correct = total = 0
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        correct += (net(x).argmax(1) == y).sum().item()
        total += len(y)
    return int(correct), total
