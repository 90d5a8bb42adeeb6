"""FST: feature shift tuning."""

from collections.abc import Iterable

import torch
from torch import Tensor

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Shifting, keep_norms, reinitialise, weights_of
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import cross_entropy, tune


class FST(Shifting):
    """Shift the head away from its backdoored weights, and the features with it.

    Min et al., NeurIPS 2023, Eq. 1 and Algorithm 1: from a reinitialised head w,
    min CE(f(x), y) + alpha <w, w_ori>  subject to  ||w|| = ||w_ori||, projected after every step.
    """

    name = "fst"
    presets = {
        "cifar10": {"alpha": 0.2, "lr": 0.01, "epochs": 10},
        "gtsrb": {"alpha": 0.1, "lr": 0.01, "epochs": 15},
        "cifar100": {"alpha": 0.001, "lr": 0.001, "epochs": 15, "batch_size": 32},
        "tiny-imagenet": {"alpha": 0.001, "lr": 0.001, "epochs": 15, "batch_size": 32},
        "ss-cifar10": {"alpha": 0.1, "lr": 0.01},
        "ss-tiny-imagenet": {"alpha": 0.001, "lr": 0.005},
        # Ours: the papers have no grey images. Chosen on images held out (docs/deviations.md).
        "fashion-mnist": {"alpha": 0.5, "lr": 0.005, "epochs": 20, "batch_size": 32, "crop": 1},
    }

    alpha: float = option(
        0.2, "weight of <w, w_ori>", cite="FST 5.1: .2 CIFAR-10, .1 GTSRB, .001 CIFAR-100 and Tiny", ge=0
    )
    epochs: int = option(10, "passes over the clean pool", cite="FST 5.1: 10 CIFAR-10, 15 others", ge=1)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        heads = self.moved(model)
        original = weights_of(heads)
        for head in heads:
            reinitialise(head, rng)

        def shifted_loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            inner = sum((h.weight * w).sum() for h, w in zip(heads, original, strict=True))
            return cross_entropy(model, x, y) + self.alpha * inner

        def project() -> None:
            keep_norms(heads, original)

        return tune(model, clean, self.recipe(clean), rng, loss=shifted_loss, after_step=project, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [FST]
