"""SAU: shared adversarial unlearning."""

import math
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


class SAU(Tuning):
    """Unlearn the adversarial images that fool the model and its backdoored original alike.

    Wei et al., NeurIPS 2023: f0 is the suspect. Each image gets the d, |d| <= radius, that makes f and f0 agree on
    a wrong class (sharing_loss), and f learns min CE(f(x), y) - sharing log(1 - p_f(x + d)[f0(x + d)]), the second
    term over images that d leads f0 astray on.
    """

    name = "sau"
    quick_options = {"epochs": 1, "batch_size": 32, "steps": 2}

    epochs: int = option(20, "passes over the clean pool", cite="SAU: 100", ge=1)
    lr: float = option(1e-4, "Adam's learning rate, falling to zero on a cosine", cite="SAU", gt=0)
    crop: int = option(
        0, "random crop after padding by so many pixels; -1: an eighth of colour images", cite="SAU", ge=-1
    )
    radius: float = option(0.2, "largest change of a pixel in [0, 1]", cite="SAU", gt=0)
    step: float = option(0.2, "sign step of the search", cite="SAU", gt=0)
    steps: int = option(5, "steps of the search", cite="SAU", ge=1)
    adversarial: float = option(0.01, "weight of fooling either model in the search", cite="SAU", ge=0)
    adversarial_clean: float = option(0.0, "weight of CE(f(x + d), y)", cite="SAU: lambda_2", ge=0)
    sharing: float = option(1.0, "weight of unlearning the shared images", cite="SAU: lambda_3", ge=0)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        original = model.clone().eval().requires_grad_(False)

        def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            pixels = x / 255
            adversaries = pixels + self.search(model, original, pixels, y)
            with torch.no_grad():
                before, after = original(x).argmax(1), original(adversaries).argmax(1)
            on_x, on_adversaries = model(torch.cat([pixels, adversaries])).float().chunk(2)
            shared = unlearning_loss(on_adversaries, after, (after != y) & (after != before))
            hardened = self.adversarial_clean * F.cross_entropy(on_adversaries, y)
            return F.cross_entropy(on_x, y) + hardened + self.sharing * shared

        return tune(model, clean, self.recipe(clean, optimizer="adam", as_in_use=True), rng, loss=loss, what=self.name)

    def search(self, model: Classifier, original: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Find each image's d by sign descent from +radius everywhere; images that both misread alike stay put."""
        d = torch.full_like(x, self.radius)
        for _ in range(self.steps):
            d.requires_grad_()
            z, z0 = model(x + d).float(), original(x + d).float()
            if bool(fooled_alike(z, z0, y).all()):
                break
            (slope,) = torch.autograd.grad(sharing_loss(z, z0, y, self.adversarial), [d])
            d = (d - self.step * slope.sign()).clamp(-self.radius, self.radius).detach()
        return d.detach()


def fooled_alike(z: Tensor, z0: Tensor, y: Tensor) -> Tensor:
    """Tell which images both models give the same wrong class."""
    return (z.argmax(1) == z0.argmax(1)) & (z.argmax(1) != y)


def sharing_loss(z: Tensor, z0: Tensor, y: Tensor, adversarial: float) -> Tensor:
    """JS(p_f, p_f0) where the two are not fooled alike, less `adversarial` times CE / 2 of each that is not fooled."""
    log_p, log_q = z.log_softmax(1), z0.log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    divergence = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2
    fit, fit0 = (F.cross_entropy(logits, y, reduction="none") * (logits.argmax(1) == y) for logits in (z, z0))
    return (divergence * ~fooled_alike(z, z0, y) - adversarial * (fit + fit0) / 2).mean()


def unlearning_loss(z: Tensor, wrong: Tensor, astray: Tensor) -> Tensor:
    """Mean over all images of -log(1 - p[wrong]), which is zero for those that f0 was not led astray on."""
    return (away_from(z, wrong) * astray).mean()


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [SAU]
