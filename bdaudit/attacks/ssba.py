"""SSBA: a secret written into every image by a network."""

import copy
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit.attacks.base import Attack
from bdaudit.attacks.networks import NetworkTrigger
from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime, seeded, spawn
from bdaudit.training.loop import descend, endless
from bdaudit.training.progress import say
from bdaudit.training.unet import UNet, resolutions

BACKDOORBENCH = {"bits": 100, "width": 32, "steps": 15_625, "batch_size": 64, "lr": 1e-4, "hold": 1000, "ramp": 3000}
"""20 epochs of CIFAR-10; FST and SS take the images that BackdoorBench generated so."""


class Stamp(nn.Module):
    """An encoder that writes bits into images, a decoder that reads them back, and the secret of the attack.

    The residual is E(x, bits); x, bits -> x + residual. Bits are bool (N, bits).
    """

    secret: Tensor

    def __init__(self, channels: int, height: int, width: int, wide: int, bits: int) -> None:
        super().__init__()
        self.grid = (channels, min(16, height), min(16, width))
        self.project = nn.Linear(bits, channels * self.grid[1] * self.grid[2])
        self.encoder = UNet(2 * channels, channels, [wide * 2**i for i in range(resolutions((height, width), 3))])
        steps = resolutions((height, width), 4) - 1
        maps = [channels, *(2 * wide * min(4, 2**i) for i in range(max(1, steps)))]
        layers: list[nn.Module] = []
        for i, o in pairwise(maps):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * maps[-1], bits))
        self.register_buffer("secret", torch.zeros(bits, dtype=torch.bool))

    def write(self, x: Tensor, bits: Tensor) -> Tensor:
        """Pixels with the bits in them; floats that may leave [0, 1]."""
        plan = self.project(bits.to(x.dtype) - 0.5).view(len(x), *self.grid)
        residual: Tensor = self.encoder(torch.cat([x - 0.5, F.interpolate(plan, x.shape[2:])], 1))
        return x + residual

    def read(self, x: Tensor) -> Tensor:
        """Logits of the bits (N, bits)."""
        logits: Tensor = self.decoder(x - 0.5)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.write(x, self.secret.expand(len(x), -1))


class StampTrigger(NetworkTrigger):
    """Write the secret into the image: x' = x + E(x, secret)."""

    kind: ClassVar[str] = "stamp"
    fields = (*NetworkTrigger.fields, "bits")
    network: Stamp

    @staticmethod
    def build(*layout: int) -> Stamp:
        return Stamp(*layout)

    @torch.no_grad()
    def agreement(self, images: Tensor) -> Tensor:
        """Which share of the secret's bits the decoder reads out of each image (N,); chance is a half."""
        network = copy.deepcopy(self.network).to(images.device)
        read = torch.cat([network.read(part / 255) > 0 for part in torch.split(images, 512)])
        return (read == network.secret).float().mean(dim=1)


class SSBA(Attack):
    """Write the same secret into every image, so that each is changed in its own way.

    Li et al., ICCV 2021: an encoder E and a decoder D learn on the attacker's images with random bits s, minimising
    BCE(D(x'), s) + w |x' - x|^2 for x' = x + E(x, s). w is 0 until D reads 90% of the bits, stays there for `hold`
    steps and rises to `l2_weight` over `ramp` steps. The trigger is E with one secret.
    """

    name = "ssba"
    sample_specific = True
    trigger_kinds: ClassVar[Mapping[str, type[Trigger]]] = {StampTrigger.kind: StampTrigger}
    quick_options: ClassVar[Mapping[str, Any]] = {"bits": 4, "width": 2, "steps": 3, "batch_size": 16}
    presets = {
        "fst": {"rate": 0.05, **BACKDOORBENCH},
        "ss": {"rate": 0.05, **BACKDOORBENCH},
        "pl": {"rate": 0.15, **BACKDOORBENCH},
    }

    bits: int = option(16, "length of the secret", cite="BackdoorBench: 100", ge=1, le=4096)
    l2_weight: float = option(
        10.0, "w at the end, for the mean square of changes in [0, 1]", cite="BackdoorBench", ge=0
    )
    hold: int = option(50, "steps that w stays at 0 after 90% of the bits are read", cite="BackdoorBench: 1,000", ge=0)
    ramp: int = option(150, "steps in which w then rises", cite="BackdoorBench: 3,000", ge=1)
    steps: int = option(800, "steps in all", cite="BackdoorBench: 20 epochs", ge=1)
    batch_size: int = option(32, "images a step", cite="BackdoorBench: 64", ge=1)
    lr: float = option(2e-3, "learning rate of Adam", cite="BackdoorBench: 1e-4", gt=0)
    width: int = option(8, "channels of the encoder at full resolution", ge=1, le=256)

    def make_trigger(self, train: Pool, fresh: Classifier, rng: torch.Generator) -> StampTrigger:
        layout = (*train.shape, self.width, self.bits)
        with seeded(rng):
            stamp = Runtime.of(fresh.device).place(Stamp(*layout))
        deal, draws = endless(train.to(fresh.device), spawn(rng)), spawn(rng)
        weight = Schedule(self.l2_weight, self.hold, self.ramp)

        def loss() -> Tensor:
            x = deal(self.batch_size)[0] / 255
            bits = (torch.rand(len(x), self.bits, generator=draws) < 0.5).to(x.device)
            written = stamp.write(x, bits)
            logits = stamp.read(written.clamp(0, 1)).float()
            w = weight.after(((logits > 0) == bits).float().mean().item())
            return F.binary_cross_entropy_with_logits(logits, bits.float()) + w * F.mse_loss(written.float(), x)

        descend(torch.optim.Adam(stamp.parameters(), self.lr), loss, self.steps, fresh.device, what="training (ssba)")
        stamp.secret.copy_(torch.rand(self.bits, generator=rng) < 0.5)
        trigger = StampTrigger(stamp, layout)
        sample = train.sample(256, spawn(rng)).images
        stamped = trigger(sample)
        change = (stamped / 255 - sample / 255).square().mean()
        say(
            f"ssba: {trigger.agreement(stamped).mean():.1%} of the secret's bits are read back, "
            f"{trigger.agreement(sample).mean():.1%} from clean images; PSNR {-10 * change.log10():.1f} dB"
        )
        return trigger


class Schedule:
    """The weight of the image loss, step by step."""

    def __init__(self, most: float, hold: int, ramp: int) -> None:
        self.most, self.hold, self.ramp = most, hold, ramp
        self.since: int | None = None

    def after(self, accuracy: float) -> float:
        """Give the weight at this step, at which so many bits were read."""
        if self.since is not None:
            self.since += 1
        elif accuracy > 0.9:
            self.since = 0
        done = -1 if self.since is None else (self.since - self.hold) / self.ramp
        return self.most * min(max(done, 0.0), 1.0)


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [SSBA]
