"""Narcissus: a noise that says the target class, three times as loud at test time."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit.attacks.base import Attack, CleanLabel, train_surrogate
from bdaudit.attacks.triggers import AddTrigger, Trigger
from bdaudit.contract import option
from bdaudit.errors import ImageError, UsageError
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.photographs import parts, piece
from bdaudit.inputs.pool import Pool, overlap
from bdaudit.runtime import seeded, spawn
from bdaudit.training.adversarial import slope
from bdaudit.training.loop import Recipe, endless, tune
from bdaudit.training.progress import track

LONG = {"surrogate_epochs": 200, "warm_up": 5, "warm_up_lr": 0.1, "steps": 79_000}
"""1,000 passes over the 5,000 images of a class of CIFAR-10 are 79,000 steps of 64."""


class Narcissus(CleanLabel):
    """Add a noise that says the target class more clearly than its own images do, and louder at test time.

    Zeng et al., CCS 2023: the attacker sees the target class alone. A surrogate learns it beside the classes of public
    images of other things, is warmed up on the target class, and the noise v, |v| <= epsilon, minimises
    mean_x CE(f(x + v), target) over images x of that class. Poisoned images get v, test images `amplify` times v.
    """

    name = "narcissus"
    presets = {
        "paper": {"rate": 0.0005, "rate_of": "all", **LONG},
        "bsd": {"rate": 0.25, "rate_of": "target", **LONG},
    }
    quick_options: ClassVar[Mapping[str, Any]] = {
        "ood_images": 32,
        "surrogate_epochs": 1,
        "steps": 20,
    }

    epsilon: int = option(16, "largest change of a pixel in training, in levels of 255", cite="BSD C.3", ge=1, le=60)
    amplify: float = option(3.0, "how many times the noise is added at test time", cite="Narcissus", ge=1, le=4)
    ood: str = option(
        "photos",
        "public images: anything --data takes, or `photos`, pieces of scikit-learn's two",
        cite="Narcissus: Tiny-ImageNet",
    )
    ood_images: int = option(2000, "public images that the surrogate learns, at most", ge=1)
    surrogate_epochs: int = option(8, "passes over these and the target class", cite="Narcissus: 200", ge=1)
    warm_up: int = option(2, "further passes over the target class alone", cite="Narcissus: 5", ge=0)
    warm_up_lr: float = option(0.01, "learning rate in them", cite="Narcissus: .1", gt=0)
    steps: int = option(300, "steps of RAdam for the noise, of 64 images each", cite="Narcissus: 1000 passes", ge=1)
    lr: float = option(0.005, "RAdam's learning rate, on pixels in [0, 1]", cite="Narcissus", gt=0)

    def make_trigger(self, train: Pool, target: int, fresh: Classifier, rng: torch.Generator) -> AddTrigger:
        public, own = self.public(train, rng), train.take(train.labels == target)
        if not len(own):
            raise UsageError(f"{self.name}: there are no training images of the target class {target}")
        label = int(public.labels.max()) + 1
        own = own.labelled(label)
        surrogate = with_outputs(fresh, label + 1, rng)
        surrogate = train_surrogate(surrogate, Pool.concat([public, own]), self.surrogate_epochs, rng, self.name)
        recipe = Recipe(self.warm_up, self.warm_up_lr, schedule="constant")
        tune(surrogate, own, recipe, spawn(rng), what=f"warming up ({self.name})").requires_grad_(False)
        noise = self.noise(surrogate, own, rng)
        return AddTrigger((self.amplify * noise).round().to(torch.int16).cpu())

    def make_train_trigger(self, shape: tuple[int, int, int], trigger: Trigger) -> Trigger:
        return AddTrigger((trigger.tensors()["pattern"] / self.amplify).round().to(torch.int16))

    def noise(self, surrogate: Classifier, own: Pool, rng: torch.Generator) -> Tensor:
        """Find the noise in whole levels of 255, from images with the surrogate's label of the target class."""
        bound = self.epsilon / 255
        v = nn.Parameter(torch.zeros(own.shape, device=surrogate.device))
        optimizer = torch.optim.RAdam([v], self.lr)
        deal = endless(own.to(surrogate.device), rng)
        with track("finding the noise", self.steps) as advance:
            for _ in range(self.steps):
                images, labels = deal(64)
                v.grad = slope(surrogate, (images / 255 + v).clamp(0, 1), labels).mean(dim=0)
                optimizer.step()
                v.data.clamp_(-bound, bound)
                advance()
        return (v.detach() * 255).round()

    def public(self, train: Pool, rng: torch.Generator) -> Pool:
        """Read public images of other things, in the shape of the training images."""
        if self.ood == "photos":
            return photos(train.shape, self.ood_images, rng)
        try:
            pool = load_dataset(self.ood).train
        except (UsageError, ImageError) as e:
            raise UsageError(f"{self.name}: -o ood: {str(e).removeprefix('--data ')}") from e
        shared = overlap(train, pool)
        if shared:
            raise UsageError(
                f"{self.name}: -o ood={self.ood} holds {shared} of the {len(train)} training images; the attacker "
                "has other data: a dataset, folder:DIR, FILE.npz, or photos"
            )
        pool = pool.sample(self.ood_images, rng)
        return pool.with_images(fitted(pool.images, train.shape))


def with_outputs(fresh: Classifier, outputs: int, rng: torch.Generator) -> Classifier:
    """Copy an untrained network, with a new head for so many classes."""
    body = fresh.clone().body
    with seeded(rng):
        body.set_submodule(fresh.head_name, nn.Linear(fresh.head.in_features, outputs))
    return Classifier(body, fresh.preprocessing).to(fresh.device)


def photos(shape: tuple[int, int, int], count: int, rng: torch.Generator) -> Pool:
    """Cut pieces out of scikit-learn's photographs; the parts that they lie in are the classes."""
    cells = parts()
    labels = torch.arange(count) % len(cells)
    return Pool.of(torch.stack([piece(cells[i], shape, rng) for i in labels.tolist()]), labels, "photos")


def fitted(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Turn uint8 images of any size, grey or colour, into ones of a shape."""
    channels, height, width = shape
    x = images.float()
    x = x.mean(dim=1, keepdim=True) if channels == 1 else x.expand(-1, channels, -1, -1)
    x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8)


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [Narcissus]
