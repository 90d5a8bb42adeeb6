"""Screening two pools against each other: what moves, what is dropped, and when nothing may be."""

from __future__ import annotations

import pytest
import torch
from support import make_tiny
from torchvision.models import SwinTransformer

from bdaudit.attacks.triggers import patch
from bdaudit.errors import ImageError, UsageError
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.screening import _auc, _deal, screen
from bdaudit.training.split import Split, averages

TARGET = 0


@pytest.fixture
def clean(run: Run) -> Pool:
    """253 benign images that the model was not trained on."""
    return run.pool("reserve").shuffled(generator(3))


def flagged(run: Run) -> Pool:
    return run.pool("flagged").labelled(TARGET)


class TestContaminatedPools:
    """A benign pool with triggered rows labelled t, and a flagged pool with clean rows."""

    def test_triggered_rows_are_moved_and_clean_rows_dropped(self, suspect: Classifier, run: Run, clean: Pool) -> None:
        spare, kept = clean.split(8)
        hidden, malicious = flagged(run).split(30)
        benign = Pool.concat([kept, hidden])
        given = Pool.concat([malicious, spare.labelled(TARGET)])
        found = screen(suspect, benign, given, TARGET, generator(0))
        assert not found.doubt
        assert int(found.moved[len(kept) :].sum()) >= 28
        assert int(found.moved[: len(kept)].sum()) <= 1
        assert int(found.dropped[len(malicious) :].sum()) >= 7
        assert int(found.dropped[: len(malicious)].sum()) <= 1
        screened, joined = found.pools(benign, given)
        assert len(screened) + len(joined) == len(benign) + len(given) - int(found.dropped.sum())
        assert (joined.labels == TARGET).all()
        assert set(screened.origin) == {o for o, moved in zip(benign.origin, found.moved, strict=True) if not moved}

    def test_only_rows_labelled_with_the_target_are_ever_moved(
        self, suspect: Classifier, run: Run, clean: Pool
    ) -> None:
        """A triggered row under another label stays: a dirty-label attack makes none, and it would teach the truth."""
        hidden, malicious = flagged(run).split(20)
        benign = Pool.concat([clean, hidden.labelled(5)])
        found = screen(suspect, benign, malicious, TARGET, generator(0))
        assert not (found.moved & (benign.labels != TARGET)).any()

    def test_pure_pools_stay_as_they_are(self, suspect: Classifier, run: Run, clean: Pool) -> None:
        found = screen(suspect, clean, flagged(run), TARGET, generator(0))
        assert not found.doubt
        assert found.auc[0] > 0.95
        assert int(found.moved.sum()) <= 1
        assert int(found.dropped.sum()) <= 1
        assert str(found).startswith("the two pools can be told apart (AUC ")

    def test_scores_are_probabilities_and_the_same_for_the_same_seed(
        self, suspect: Classifier, run: Run, clean: Pool
    ) -> None:
        one, other = (screen(suspect, clean, flagged(run), TARGET, generator(7)) for _ in range(2))
        assert torch.equal(one.flagged, other.flagged)
        assert torch.equal(one.clean, other.clean)
        for scores in (one.clean, one.flagged):
            assert ((scores >= 0) & (scores <= 1)).all()


class TestDoubt:
    """Nothing is moved or dropped where the pools cannot be told apart, and the reason is said."""

    def doubted(self, model: Classifier, clean: Pool, given: Pool) -> str:
        found = screen(model, clean, given, TARGET, generator(0))
        assert found.doubt
        assert not found.moved.any()
        assert not found.dropped.any()
        same, still = found.pools(clean, given)
        assert (len(same), len(still)) == (len(clean), len(given))
        assert str(found).startswith("the two pools cannot be told apart, so nothing was moved or dropped")
        return found.doubt

    @pytest.mark.parametrize("seed", range(5))
    def test_when_flagged_and_benign_rows_were_shuffled(
        self, suspect: Classifier, run: Run, clean: Pool, seed: int
    ) -> None:
        others = clean.take(clean.labels != TARGET)
        mixed = Pool.concat([others, flagged(run).labelled(5)]).shuffled(generator(seed))
        given, benign = mixed.split(80)
        doubt = self.doubted(suspect, benign, given.labelled(TARGET))
        assert "look like benign images of other classes" in doubt

    def test_when_innocent_images_of_the_target_class_were_flagged(self, run: Run, suspect: Classifier) -> None:
        """They are told from other classes easily, but so is every benign image of their class."""
        pool = Pool.concat([run.pool("reserve"), run.pool("test")]).shuffled(generator(1))
        zeros = pool.take(pool.labels == TARGET)
        given, rest = zeros.split(len(zeros) // 2)
        benign = Pool.concat([pool.take(pool.labels != TARGET), rest])
        doubt = self.doubted(suspect, benign, given)
        assert "may be their class and no trigger" in doubt
        assert screen(suspect, benign, given, TARGET, generator(0)).by_class

    def test_when_one_image_is_flagged_however_often(self, suspect: Classifier, run: Run, clean: Pool) -> None:
        one = flagged(run).first(1)
        assert "at least 2 distinct" in self.doubted(suspect, clean, Pool.concat([one] * 40))

    def test_when_every_clean_image_carries_the_target(self, suspect: Classifier, run: Run, clean: Pool) -> None:
        assert "known to be free" in self.doubted(suspect, clean.labelled(TARGET), flagged(run))

    def test_when_all_other_clean_images_are_one_image(self, suspect: Classifier, run: Run, clean: Pool) -> None:
        """A fit without it would have nothing benign to go by."""
        one = clean.take((clean.labels == 5).nonzero().flatten()[:1])
        pool = Pool.concat([one, one, clean.take(clean.labels == TARGET)])
        assert "known to be free" in self.doubted(suspect, pool, flagged(run))


def test_five_flagged_images_suffice_where_the_trigger_is_plain(suspect: Classifier, run: Run, clean: Pool) -> None:
    hidden, malicious, _ = flagged(run).split(30, 5)
    found = screen(suspect, Pool.concat([clean, hidden]), malicious, TARGET, generator(0))
    assert found.auc[1] < 0.85  # which five images cannot rule out
    assert not found.moved[: len(clean)].any()
    assert int(found.moved[len(clean) :].sum()) >= 20


def test_a_clean_pool_without_the_target_class_is_screened(suspect: Classifier, run: Run, clean: Pool) -> None:
    found = screen(suspect, clean.take(clean.labels != TARGET), flagged(run), TARGET, generator(0))
    assert not found.doubt
    assert not found.moved.any()


def test_equal_images_lie_in_one_fold(digits: Pool, rng: torch.Generator) -> None:
    """Else a fit would judge what it was fitted on; an image that is in both pools as well."""
    given = Pool.concat([digits.first(12), digits.first(12)])
    (mine, theirs), distinct = _deal(given, digits.first(60), rng)
    assert distinct == 12
    assert torch.equal(mine[:12], mine[12:])
    assert torch.equal(theirs[:12], mine[:12])
    assert mine.unique().tolist() == [0, 1, 2, 3, 4]


def test_the_interval_of_an_auc_allows_for_few_images() -> None:
    """Perfect over five is not perfect; chance over many is chance; ties count half (brute force over all pairs)."""
    few, many = (_auc(torch.ones(m), torch.zeros(900), m) for m in (5, 500))
    assert few[0] == many[0] == 1
    assert few[1] < 0.85 < 0.98 < many[1]
    assert few[2] == many[2] == 1
    generator_ = generator(0)
    a, b = (torch.randint(0, 9, (n,), generator=generator_).double() for n in (60, 80))
    value, low, high = _auc(a, b, 60)
    pairs = (a[:, None] > b).double() + 0.5 * (a[:, None] == b)
    assert value == pytest.approx(pairs.mean().item())
    assert low < 0.5 < high
    assert high - low == pytest.approx(0.19, abs=0.02)


def test_bad_input_is_refused(suspect: Classifier, run: Run, clean: Pool) -> None:
    with pytest.raises(UsageError, match="target 10 is out of range"):
        screen(suspect, clean, flagged(run), 10, generator(0))
    with pytest.raises(ImageError, match="clean: "):
        screen(suspect, clean.labelled(-1), flagged(run), TARGET, generator(0))


@pytest.mark.parametrize(
    ("arch", "at"),
    [("resnet18:width=4", "layer2"), ("preactresnet18:width=4", "layer3.0.bn1"), ("small_cnn:width=4", "bn2")],
)
def test_half_way_up_is_the_second_stage_of_a_resnet(arch: str, at: str) -> None:
    """Found by running the network; what lies there alone decides its logits. Pre-activation networks sum first, then
    normalise: the second stage's output, normalised, is the input of the third's first layer."""
    model = make_tiny(arch)
    split = Split(model, 0.5)
    assert split.at == at
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8, generator=generator(0))
    with torch.no_grad():
        assert torch.allclose(split.logits(split.features(images)), model(images), rtol=1e-3, atol=1e-4)


def test_averages_keep_positive_and_negative_parts_apart(digits: Pool) -> None:
    """Over places, whatever the order of dimensions; a mean of both parts would cancel."""
    model = make_tiny()
    split = Split(model, 0.5)
    images = digits.first(5).images
    features = split.features_of(images)
    averages = split.averages_of(images)
    assert averages.shape == (5, 2 * features.shape[1])
    positive, negative = averages.chunk(2, dim=1)
    assert torch.allclose(positive + negative, features.mean((2, 3)), atol=1e-5)
    assert (positive >= 0).all() and (negative <= 0).all() and (negative < 0).any()


@pytest.mark.parametrize(("shape", "channels"), [((2, 8, 4, 4), 1), ((2, 4, 4, 8), 3), ((2, 17, 8), 2), ((2, 8), 1)])
def test_channels_are_averaged_over_all_else(shape: tuple[int, ...], channels: int) -> None:
    """Channels first, channels last as in Swin, tokens, and the features of a network without maps."""
    features = torch.rand(shape, generator=generator(0))
    over = [axis for axis in range(1, len(shape)) if axis != channels]
    expected = features.mean(over) if over else features
    torch.testing.assert_close(averages(features, channels), torch.cat([expected, torch.zeros_like(expected)], 1))


@pytest.mark.parametrize("height", [32, 64])
def test_channels_are_found_in_oblong_images_too(height: int) -> None:
    """Swin's map of 64 x 32 images half way up is 16 x 8 x 16: as many channels as rows."""
    body = SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4], num_classes=10)
    wide = Preprocessing(channels=3, height=height, width=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    split = Split(Classifier(body, wide).eval(), 0.5)
    assert split.channels == 3
    images = torch.zeros(2, 3, height, 32, dtype=torch.uint8)
    assert split.averages_of(images).shape == (2, 2 * split.features_of(images).shape[3])


def test_no_trigger_is_needed_to_ask(digits: Pool) -> None:
    """An untrained model and a patch nobody planted: the answer is one of the two sentences, and nothing raises."""
    model = make_tiny()
    trigger = patch((1, 16, 16), torch.full((3, 3), 255, dtype=torch.uint8), 13, 13)
    given = trigger.on(digits.first(24)).labelled(TARGET)
    assert str(screen(model, digits.take(range(100, 200)), given, TARGET, generator(0))).startswith("the two pools can")
    assert not model.training
