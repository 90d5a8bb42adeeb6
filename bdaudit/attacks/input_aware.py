"""Input-aware: a generator draws each image's own trigger, and learns with the model."""

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from bdaudit.attacks.base import Attack
from bdaudit.attacks.networks import NetworkTrigger
from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime, seeded, spawn
from bdaudit.training.loop import Recipe, descend, endless, tune
from bdaudit.training.progress import say
from bdaudit.training.unet import UNet, resolutions


class MaskedPattern(nn.Module):
    """x, z -> x + (p(z) - x) m(z): the trigger of z on x. Without a z, the trigger of the image itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, height: int, width: int, wide: int) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, momentum=0.05)
        widths = [wide, 2 * wide, 4 * wide, 4 * wide][: resolutions((height, width), 4)]
        self.pattern, self.mask = (
            nn.Sequential(UNet(channels, out, widths, norm=norm), norm(out)) for out in (channels, 1)
        )
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def normalised(self, z: Tensor) -> Tensor:
        """Pixels as the two networks take them."""
        return (z - self.mean) / self.std

    def settle(self, network: nn.Module, images: Tensor) -> None:
        """Take BatchNorm's statistics of one of the two networks from images (uint8), for its use in eval mode."""
        parts = images.to(self.mean.device).tensor_split(-(-len(images) // 128))
        update_bn((self.normalised(part / 255) for part in parts), network)

    def patterns(self, z: Tensor) -> Tensor:
        """What the triggers of pixels z (N, C, H, W) look like, in [0, 1]."""
        drawn: Tensor = self.pattern(self.normalised(z))
        return drawn.tanh() / 2 + 0.5

    def masks(self, z: Tensor) -> Tensor:
        """Where the triggers of z are: (N, 1, H, W) in [0, 1], almost all of it near 0 or near 1."""
        soft: Tensor = self.mask(self.normalised(z)).tanh() / 2 + 0.5
        return (20 * soft - 10).tanh() / 2 + 0.5

    def plant(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The triggers of z on x, and their patterns."""
        patterns = self.patterns(z)
        return x + (patterns - x) * self.masks(z), patterns

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        return self.plant(x, x if z is None else z)[0]


class InputAwareTrigger(NetworkTrigger):
    """Put each image's own pattern where its own mask is."""

    kind: ClassVar[str] = "input-aware"
    network: MaskedPattern

    @staticmethod
    def build(*layout: int) -> MaskedPattern:
        return MaskedPattern(*layout)

    def crossed(self, images: Tensor, others: Tensor) -> Tensor:
        """Put on each image the trigger of another (uint8 in and out)."""
        return self.run(images, others)


class InputAware(Attack):
    """Train a generator of triggers with the model, such that one image's trigger does nothing on another.

    Nguyen and Tran, NeurIPS 2020: b(x, z) = x + (p(z) - x) m(z). First m alone learns, by
    100 mean(relu(m - density)) + |x - z| / |m(x) - m(z)|. Then the model and p learn together: b(x, x) gets the target,
    b(x, z) keeps its label (cross rows), and |x - z| / |p(x) - p(z)| makes triggers differ. Both kinds of rows are
    drawn from every batch; what the run marks as poisoned and as cover is one more draw, with the final p.
    """

    name = "input-aware"
    sample_specific = True
    trigger_kinds: ClassVar[Mapping[str, type[Trigger]]] = {InputAwareTrigger.kind: InputAwareTrigger}
    quick_options: ClassVar[Mapping[str, Any]] = {"mask_steps": 3, "norm_weight": 1, "width": 2}
    presets = {"d3": {"rate": 0.1, "width": 32, "mask_steps": 9775}}

    rate: float = option(0.1, "poison rate, as a share of the whole training set", cite="released", gt=0, le=1)
    cross_ratio: float = option(1.0, "cross rows for each poisoned one", cite="released", ge=0)
    density: float = option(0.032, "share of the image above which masks are drawn back", cite="released", gt=0, lt=1)
    norm_weight: float = option(100.0, "weight of the masks' density", cite="released", ge=0)
    diversity: float = option(1.0, "weight of the difference between two images' triggers", cite="released", ge=0)
    mask_steps: int = option(160, "steps of 128 images in which masks learn alone", cite="released: 25 epochs", ge=1)
    lr: float = option(
        0.01,
        "learning rate of the generators' Adam; the pattern's follows the recipe's schedule",
        cite="released",
        gt=0,
    )
    width: int = option(12, "channels of the generators at full resolution", cite="released: 32", ge=1, le=256)

    def make_trigger(self, train: Pool, fresh: Classifier, rng: torch.Generator) -> InputAwareTrigger:
        """Train the masks; the pattern is still random."""
        layout = (*train.shape, self.width)
        with seeded(rng):
            made = Runtime.of(fresh.device).place(MaskedPattern(*layout))
        made.mean.copy_(fresh.mean[0])
        made.std.copy_(fresh.std[0])
        deal = endless(train.to(fresh.device), spawn(rng))

        def loss() -> Tensor:
            x = deal(128)[0] / 255
            masks = made.masks(x).float()
            return self.norm_weight * (masks - self.density).relu().mean() + self.diversity * alike(x, masks)

        descend(self.optimizer(made.mask), loss, self.mask_steps, fresh.device, what="training masks (input-aware)")
        sample = train.sample(512, spawn(rng)).images
        made.settle(made.mask, sample)
        trigger = InputAwareTrigger(made, layout)
        density = torch.cat([trigger.network.masks(x / 255).flatten(1).mean(1) for x in torch.split(sample, 64)]).mean()
        say(f"input-aware: masks cover {density:.1%} of an image")
        return trigger

    def optimizer(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), self.lr, betas=(0.5, 0.9))

    def cover_count(self, poisoned: int, rows: int) -> int:
        return round(self.cross_ratio * poisoned)

    def plant_cover(self, images: Tensor, others: Tensor, trigger: Trigger, rng: torch.Generator) -> Tensor:
        return self.own(trigger, InputAwareTrigger).crossed(images, others)

    def train_both(
        self, fresh: Classifier, train: Pool, trigger: Trigger, goal: Goal, recipe: Recipe, rng: torch.Generator
    ) -> tuple[Classifier, Trigger]:
        start = self.own(trigger, InputAwareTrigger)
        made = Runtime.of(fresh.device).place(copy.deepcopy(start.network))
        made.pattern.train().requires_grad_(True)
        optimizer, steps = self.optimizer(made.pattern), recipe.steps(len(train))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.factor(step, steps))

        def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            # Batches come in random order, so the first rows are as good as any, and the one before each is another's.
            own, cross = self.draw(len(x))
            if not own + cross:
                return F.cross_entropy(model(x), y)
            x = x / 255
            z = torch.cat([x[:own], x.roll(1, 0)[own : own + cross]])
            planted, patterns = made.plant(x[: len(z)], z)
            labels = torch.cat([goal.wanted(y[:own]), y[own:]])
            attack = F.cross_entropy(model(torch.cat([planted.to(x.dtype), x[len(z) :]])), labels)
            return attack + self.diversity * alike(z, patterns.float())

        def after_step() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()

        what = f"training ({self.name})"
        model = tune(fresh, train, recipe, spawn(rng), loss=loss, after_step=after_step, what=what)
        made.settle(made.pattern, train.sample(512, rng).images)
        return model, InputAwareTrigger(made, start.layout)

    def draw(self, size: int) -> tuple[int, int]:
        """How many rows of a batch to poison and to cross, rounded at random: low rates come true on average."""
        shares = (self.rate, self.rate * self.cross_ratio)
        own, cross = (int(share * size + torch.rand(()).item()) for share in shares)
        return own, cross


def alike(x: Tensor, made: Tensor) -> Tensor:
    """How little differs of what was made of two images: the mean of d(x, x') / d(made, made'), d being the RMSE.

    Each image is compared with the one before it.
    """
    of_images, of_made = ((t - t.roll(1, 0)).square().flatten(1).mean(dim=1) for t in (x, made))
    return (of_images.sqrt() / ((of_made + 1e-12).sqrt() + 1e-7)).mean()


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [InputAware]
