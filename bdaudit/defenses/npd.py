"""NPD: neural polarizer."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.adversarial import away_from
from bdaudit.training.loop import tune
from bdaudit.training.polarizer import Polarizer, places


class NPD(Tuning):
    """Learn one linear layer that lets benign features pass and stops those that adversaries lean on.

    Zhu et al., NeurIPS 2023, the rest of the network frozen: the inner problem moves each image towards the class
    that comes second, min CE(f(x'), t) over ||x' - x|| <= bound, and the layer learns (polarizing_loss) to give such
    images their classes back. It stands behind a convolution, into which it is folded at the end.
    """

    name = "npd"

    epochs: int = option(20, "passes over the clean pool", cite="NPD: 50", ge=1)
    crop: int = option(
        0, "random crop after padding by so many pixels; -1: an eighth of colour images", cite="BackdoorBench", ge=-1
    )
    from_end: int = option(2, "which convolution it stands behind, counted from the end", cite="ours", ge=1)
    bound: float = option(3.0, "L2 norm of the change of an image in [0, 1], at most", cite="NPD", gt=0)
    step: float = option(0.1, "sign step of the inner problem", cite="NPD", gt=0)
    steps: int = option(2, "steps of the inner problem", cite="NPD", ge=1)
    weight: float = option(0.4, "weight of each of the three losses on moved images", cite="NPD", ge=0)
    weight_decay: float = option(5e-4, "SGD's weight decay", cite="NPD", ge=0)

    def obstacle(self, model: Classifier) -> str:
        found = len(places(model))
        few = f"finds {found} of its {self.from_end} places" if found else "finds none"
        return "" if found >= self.from_end else f"stands behind a convolution with a BatchNorm, and {few}"

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        polarizer = Polarizer(model, places(model)[-self.from_end])

        def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            pixels = x / 255
            with torch.no_grad():
                z = model(pixels).float()
            target = z.scatter(1, y[:, None], float("-inf")).argmax(1)
            moved = self.move(model, pixels, target)
            on_x, on_moved = model(torch.cat([pixels, moved])).float().chunk(2)
            return F.cross_entropy(on_x, y) + self.weight * polarizing_loss(on_moved, y, z.argmax(1), target)

        recipe = self.recipe(clean, weight_decay=self.weight_decay, as_in_use=True)
        tune(model, clean, recipe, rng, loss=loss, what=self.name)
        return polarizer.fold(clean.images)

    def move(self, model: Classifier, x: Tensor, target: Tensor) -> Tensor:
        """Step towards the targets within the ball around each image."""
        d = torch.zeros_like(x)
        for _ in range(self.steps):
            d.requires_grad_()
            towards = F.cross_entropy(model((x + d).clamp(0, 1)), target, reduction="sum")
            d = (d - self.step * torch.autograd.grad(towards, [d])[0].sign()).detach()
            norms = torch.linalg.vector_norm(d, dim=(1, 2, 3), keepdim=True)
            d *= self.bound / norms.clamp(min=self.bound)
        return (x + d).clamp(0, 1)


def polarizing_loss(z: Tensor, y: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """CE(z, the prediction on x) - log(1 - p[the largest class but y]) - log(1 - p[target])."""
    rival = z.scatter(1, y[:, None], float("-inf")).argmax(1)
    return F.cross_entropy(z, predicted) + away_from(z, rival).mean() + away_from(z, target).mean()


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [NPD]
