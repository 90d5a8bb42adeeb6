"""BSD: bi-perspective splitting."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified
from bdaudit.defenses.splitting import MixMatching
from bdaudit.errors import one_line
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import permutation, seeded, spawn
from bdaudit.training.clean_pool import alpha_at, completed, discrepancy, selectively_dropped, share_of_each
from bdaudit.training.division import Division
from bdaudit.training.isolation import Per, beyond_label, local_gradient_ascent, second_likely, votes
from bdaudit.training.loop import Recipe, Training, batches, cross_entropy, tune
from bdaudit.training.metrics import predict_logits
from bdaudit.training.mixmatch import MixMatch, SemiSupervised
from bdaudit.training.progress import say, track
from bdaudit.training.resume import resumed
from bdaudit.training.samples import Distance, class_distances, largest, losses_of

LEARNT = 1e-4
"""Cross-entropy of a row that is learnt as well as any can be."""

Init = Literal["both", "oss", "als", "either", "random"]


class BSD(MixMatching):
    """Train a clean model on a poisoned set, split by what an altruistic model that learns all of it gives away.

    BSD, Algorithm 1. The main model f learns a clean pool by MixMatch, the altruistic model g everything. The pool
    starts with the rows that f, warmed up without the target's class, finds far from the others (OSS, Eq. 4 to 6) and
    g finds hard (ALS, Eq. 7); then it follows I = SCE(g) - SCE(f) (Eq. 9) with class completion (Eq. 8), unless told
    otherwise in the target's class alone; at last, if `dropping`, it goes without the rows that both give the target
    (Eq. 10).
    """

    name = "bsd"
    quick_options = {
        "altruistic_epochs": 1,
        "altruistic_steps": 1,
        "warm_up": 1,
        "settling": 1,
        "completing": 1,
        "dropping": 1,
        "iterations": 2,
        "batch_size": 8,
    }
    presets = {
        "paper": {
            "ascent": "image",
            "approximate": "lga",
            "share_of": "all",
            "even": False,
            "accompanied": False,
            "decay": 0,
            "altruistic_epochs": 25,
            "altruistic_steps": 1,
            "warm_up": 20,
            "settling": 10,
            "completing": 60,
            "dropping": 30,
            "iterations": 1024,
        }
    }

    iterations: int = option(128, "MixMatch steps an epoch", cite="BSD C.4: 1,024", ge=1)
    altruistic_epochs: int = option(6, "epochs of local gradient ascent that warm g up", cite="BSD C.4: 25", ge=1)
    altruistic_steps: int = option(64, "steps in an epoch of g, at least", cite="ours: docs/deviations.md", ge=1)
    altruistic_lr: float = option(1e-3, "learning rate of g (Adam)", cite="BSD C.4", gt=0)
    gamma: float = option(0.5, "loss below which g ascends in its warm-up", cite="BSD Alg. 1", ge=0)
    ascent: Per = option(
        "batch", "what is held against gamma: each image's loss, or the batch's", cite="ABL released; BSD Alg. 1: image"
    )
    approximate: Literal["relative", "lga", "second"] = option(
        "relative",
        "how the target is found: by the rows learnt best for their label, learnt best, or by second likely classes",
        cite="ours; BSD 4.1.1; E.3",
    )
    isolated: float = option(0.01, "share of rows, the best-learnt, that vote", cite="BSD 4.1.1", gt=0, le=1)
    warm_up: int = option(3, "epochs of f without the target's class (T1)", cite="BSD C.4: 20", ge=1)
    warm_up_guesses: bool = option(
        False, "learn the target's images in the warm-up too, by guessed labels", cite="BSD 4.1.1: no; Alg. 1: maybe"
    )
    settling: int = option(1, "epochs on the first pools", cite="BSD C.4: 10", ge=1)
    completing: int = option(8, "epochs with class completion (until T2)", cite="BSD C.4: 60", ge=1)
    dropping: int = option(0, "epochs with selective dropping (until T3)", cite="ours; BSD C.4: 30", ge=0)
    alpha: float = option(0.6, "share of rows that the clean pool grows to", cite="BSD 5.1", gt=0, le=1)
    beta: float = option(0.2, "share of the target's rows that OSS takes for clean", cite="BSD 5.1", gt=0, le=1)
    distance: Distance = option("min", "OSS: from the nearest class, on average, from the farthest", cite="BSD E.2")
    init: Init = option("both", "first pool: OSS and ALS, one of them, either, or random rows", cite="BSD Eq. 3")
    completion: bool = option(True, "add rows of the class with the fewest", cite="BSD Eq. 8")
    share_of: Literal["target", "class", "all"] = option(
        "target",
        "what alpha is a share of: the target's class (others are clean then), each class, or all rows",
        cite="ours; BSD Eq. 8: all",
    )
    even: bool = option(True, "deal labelled images as if every class had as many in the clean pool", cite="ours")
    accompanied: bool = option(
        True, "guess labels of suspected images among as many of the clean pool, which BatchNorm needs", cite="ours"
    )
    all2all: bool = option(False, "take each class for the target in turn, and drop nothing", cite="BSD A.5")

    def purify(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> Purified:
        return self.purified(*self.divide(fresh, train, rng))

    def divide(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> tuple[Classifier, Division]:
        self.check_train(train, fresh)
        labels = train.labels.cpu()
        warm_rng, oss_rng, rng = (spawn(rng) for _ in range(3))
        altruistic, target, doubt = self._warm_altruistic(fresh.clone(), train, warm_rng)
        t1, t2 = self.warm_up, self.warm_up + self.settling + self.completing
        t3 = t2 if target is None else t2 + self.dropping
        f = SemiSupervised(fresh, train, self._learning(train, t3), t3, rng)
        recipe = self._recipe(train, t2)
        g = Training(altruistic, recipe, recipe.steps(len(train)))
        keep = {
            "clean": labels != (-1 if target is None else target),
            "distances": torch.zeros(len(train)),
            "history": torch.empty(0, len(train)) > 0,
        }
        oss = self._oss_by_every_class(fresh, train, t3, oss_rng) if target is None else None
        with seeded(rng), track("bsd", t3 * self.iterations) as advance:
            for t in resumed("bsd", t3, rng, {"f": f.training, "g": g}, keep, advance):
                clean = keep["clean"]
                if t == t1:
                    if target is not None:
                        oss, keep["distances"] = self._oss(fresh, train, target)
                    clean = self._first(oss, self._als(altruistic, train), rng)
                elif t >= t1 + self.settling:
                    ratio = alpha_at((t - t1 - self.settling) / self.completing, self.alpha, self.beta)
                    on_f, on_g = (losses_of(m, train, self.name) for m in (fresh, altruistic))
                    clean = self._split(discrepancy(on_f, on_g), labels, ratio, target, doubt)
                    if target is not None and t >= t2:
                        clean = selectively_dropped(clean, on_f, on_g, target)
                if t >= t1 or target is not None:
                    others = self._others(clean) if t < t1 else None
                    f.epoch(clean, advance, f"bsd: epoch {t + 1} of {t3}", others=others)
                    keep |= {"clean": clean, "history": torch.cat([keep["history"], clean[None]])}
                if t < t2:
                    g.epoch(batches(f.pool, g.recipe.batch_for(len(train)), rng, g.recipe.augment))
        return fresh, self._division(fresh, altruistic, train, target, keep, doubt)

    def _learning(self, train: Pool, ramp: int) -> MixMatch:
        return self.mixmatch(train, ramp, even=self.even, accompanied=self.accompanied)

    def _recipe(self, train: Pool, epochs: int) -> Recipe:
        return Recipe(
            epochs,
            self.altruistic_lr,
            optimizer="adam",
            schedule="constant",
            min_steps=self.altruistic_steps,
            augment=self.augment(train, strong=False),
        )

    def _warm_altruistic(
        self, model: Classifier, train: Pool, rng: torch.Generator
    ) -> tuple[Classifier, int | None, str]:
        """Warm g up and find the target (Alg. 1, lines 5 to 13; E.3); None: all-to-all. Also says what is doubtful."""
        second = self.approximate == "second"
        keep = {"seen": torch.zeros(model.num_classes if second else len(train))}

        def note(epoch: int, model: Classifier) -> None:
            if second:
                keep["seen"][second_likely(predict_logits(model, train.images)).argmax()] += 1
            else:
                # Which rows are learnt best depends on the epoch that the ascent ends on, their mean does not.
                keep["seen"] += losses_of(model, train, self.name).ce.clamp(min=LEARNT).log()

        tune(
            model,
            train,
            self._recipe(train, self.altruistic_epochs),
            rng,
            loss=cross_entropy if second else local_gradient_ascent(self.gamma, self.ascent),
            on_epoch=None if self.all2all or self.approximate == "lga" else note,
            keep=keep,
            what="bsd: altruistic model",
        )
        if self.all2all:
            return model, None, ""
        counted = self._votes(model, train, keep["seen"])
        target, share = int(counted.argmax()), float(counted.max() / counted.sum())
        say(f"bsd: the target is taken to be class {target} ({model.classes[target]}), with {share:.0%} of the votes")
        doubt = f"class {target} is taken for the target with no more than {share:.0%} of the votes"
        return model, target, doubt if share <= 0.5 else ""

    def _votes(self, altruistic: Classifier, train: Pool, seen: Tensor) -> Tensor:
        """Count votes for each class: of epochs, or of the rows learnt best, for their label or at the end."""
        if self.approximate == "second":
            return seen
        labels = train.labels.cpu()
        relative = self.approximate == "relative"
        losses = beyond_label(seen, labels) if relative else losses_of(altruistic, train, self.name).ce
        return votes(losses, labels, self.isolated, altruistic.num_classes)

    def _oss(self, model: Classifier, train: Pool, target: int) -> tuple[Tensor, Tensor]:
        """Take all rows of other labels for clean, and of the target's those farthest from the others' centres."""
        of_target = train.labels.cpu() == target
        distances = class_distances(model, train, ~of_target, target, self.distance)
        return ~of_target | largest(distances, self.beta, of_target), distances

    def _oss_by_every_class(self, fresh: Classifier, train: Pool, ramp: int, rng: torch.Generator) -> Tensor:
        """Warm a model up without each class in turn, and take the rows that all of them take for clean (A.5)."""
        clean = torch.ones(len(train), dtype=torch.bool)
        for target in range(fresh.num_classes):
            f = SemiSupervised(fresh.clone(), train, self._learning(train, ramp), self.warm_up, rng)
            what = f"bsd: without class {target}"
            with seeded(rng), track(what, self.warm_up * self.iterations) as advance:
                for _ in resumed(what, self.warm_up, rng, {"f": f.training}, {}, advance):
                    known = train.labels.cpu() != target
                    f.epoch(known, advance, others=self._others(known))
            clean &= self._oss(f.training.model, train, target)[0]
        return clean

    def _others(self, known: Tensor) -> Tensor:
        """Choose what a warm-up learns without labels: nothing, as guesses teach that the target's are of others."""
        return ~known if self.warm_up_guesses else torch.zeros_like(known)

    def _als(self, altruistic: Classifier, train: Pool) -> Tensor:
        """Take the rows of the largest losses for clean: g learns what is poisoned first (Eq. 7)."""
        return largest(losses_of(altruistic, train, self.name).symmetric_ce, self.alpha)

    def _first(self, oss: Tensor | None, als: Tensor, rng: torch.Generator) -> Tensor:
        """Put the first clean pool together (Eq. 3)."""
        assert oss is not None
        both = oss & als
        drawn = torch.zeros_like(both)
        drawn[permutation(len(both), rng)[: int(both.sum())]] = True
        return {"both": both, "oss": oss, "als": als, "either": oss | als, "random": drawn}[self.init]

    def _split(self, indicator: Tensor, labels: Tensor, ratio: float, target: int | None, doubt: str) -> Tensor:
        """Take the share of rows with the largest indicator, and complete the class that has the fewest (Eq. 8)."""
        if doubt:
            target = None  # other classes may be the poisoned one
        if self.share_of == "all":
            clean = largest(indicator, ratio)
        elif self.share_of == "target" and target is not None:
            clean = labels != target
        else:
            clean = share_of_each(indicator, labels, ratio, target)
        return completed(clean, indicator, labels, ratio) if self.completion else clean

    def _division(
        self,
        model: Classifier,
        altruistic: Classifier,
        train: Pool,
        target: int | None,
        keep: dict[str, Tensor],
        doubt: str,
    ) -> Division:
        """Divide the set by the trained models.

        The pool before dropping, since that leaves nothing of the target's class; and flagged, what g learnt and f
        contradicts.
        """
        labels = train.labels.cpu()
        on_f, on_g = (losses_of(m, train, self.name) for m in (model, altruistic))
        indicator = discrepancy(on_f, on_g)
        clean = self._split(indicator, labels, self.alpha, target, doubt)
        learnt_by_g_alone = (on_g.prediction == labels) & (on_f.prediction != labels) & ~clean
        flagged = learnt_by_g_alone if target is None else learnt_by_g_alone & (labels == target)
        scores = {"discrepancy": indicator, "altruistic_loss": on_g.symmetric_ce, "main_fit": -on_f.symmetric_ce}
        if target is not None:
            scores["distance"] = keep["distances"]
        first = 1 + (self.warm_up if target is None else 0)
        history = dict(enumerate(keep["history"], first))
        missing = sorted(set(labels.tolist()) - set(labels[clean].tolist()))
        if missing and not doubt:
            named = ", ".join(one_line(model.classes[k], 20) for k in missing[:5])
            doubt = (
                f"no image of {len(missing)} classes ({named}) is in the clean pool: train longer (-o iterations=...)"
            )
        return Division(clean, flagged, scores, target, history, doubt)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [BSD]
