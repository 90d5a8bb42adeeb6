"""TrojanNN: a patch made to excite one neuron of a clean model."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from bdaudit.attacks.base import Attack, train_surrogate
from bdaudit.attacks.triggers import BlendTrigger, Corner, in_corner
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.metrics import predict_features
from bdaudit.training.progress import say, track


class TrojanNN(Attack):
    """Stamp a patch that was grown to excite the best connected neurons of a clean model.

    Liu et al., NDSS 2018: choose the neurons with the largest sum of |weight|, and change the pixels of one region
    until these neurons are far more active than on any image; training on stamped images then ties them to the target.
    The neurons are the inputs of a surrogate's head, and the patch minimises the mean of sum_n (v_n - f_n(x'))^2.
    """

    name = "trojannn"
    quick_options: ClassVar[Mapping[str, Any]] = {"surrogate_epochs": 1, "steps": 3}

    neurons: int = option(1, "neurons to excite", cite="TrojanNN: one or few", ge=1)
    excitement: float = option(10.0, "v, in units of their largest value on the images", cite="ours", gt=0)
    size: int = option(0, "side of the patch; 0: a quarter of the image", cite="TrojanNN: 7% of the image", ge=0)
    corner: Corner = option("lower-right", "where the patch goes")
    images: int = option(64, "images that the patch is grown on, at most", cite="TrojanNN: none", ge=1)
    steps: int = option(100, "steps of Adam", ge=1)
    lr: float = option(0.05, "Adam's learning rate, on pixels in [0, 1]", gt=0)
    surrogate_epochs: int = option(3, "passes over the training images for the surrogate", ge=1)

    def make_trigger(
        self, shape: tuple[int, int, int], train: Pool, fresh: Classifier, rng: torch.Generator
    ) -> BlendTrigger:
        size = self.size or max(1, min(shape[1:]) // 4)
        weight = in_corner(shape, torch.zeros(size, size, dtype=torch.uint8), self.corner).weight
        model = train_surrogate(fresh, train, self.surrogate_epochs, rng, self.name).requires_grad_(False)
        images = train.sample(self.images, rng).images.to(model.device)
        chosen = model.head.weight.abs().sum(dim=0).topk(min(self.neurons, model.head.in_features)).indices
        before = predict_features(model, images)[:, chosen].amax(dim=0).clamp(min=1e-6)
        mask = weight.to(model.device)
        p = torch.rand(shape, generator=rng).to(model.device).requires_grad_()
        optimizer = torch.optim.Adam([p], self.lr)
        with track("growing the patch", self.steps) as advance:
            for _ in range(self.steps):
                excited = model.features(images / 255 * (1 - mask) + p * mask).flatten(1)[:, chosen] / before
                optimizer.zero_grad()
                (self.excitement - excited).square().sum(dim=1).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                p.data.clamp_(0, 1)
                advance()
        trigger = BlendTrigger((p.detach() * mask * 255).round().to(torch.uint8).cpu(), weight)
        after = predict_features(model, trigger(images))[:, chosen] / before
        say(f"{self.name}: with the patch, neurons are at {after.mean().item():.2g} of their largest value without")
        return trigger


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [TrojanNN]
