"""Pools: frozen, exact bookkeeping, overlap found by pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdaudit.errors import ImageError, UsageError
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool, check_labels, overlap, without


def pool(n: int = 6, seed: int = 0) -> Pool:
    images = torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Pool.of(images, torch.arange(n) % 3, f"seed{seed}")


@given(st.integers(1, 30), st.data())
def test_a_split_is_disjoint_and_complete(n: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, n))
    second = data.draw(st.integers(0, n - first))
    parts = pool(n).split(first, second)
    assert [len(p) for p in parts] == [first, second, n - first - second]
    origins = [o for p in parts for o in p.origin]
    assert origins == list(pool(n).origin)


def test_rows_keep_their_labels_and_origins_when_shuffled(rng: torch.Generator) -> None:
    before = pool()
    after = before.shuffled(rng)
    for row, origin in enumerate(after.origin):
        was = before.origin.index(origin)
        assert torch.equal(after.images[row], before.images[was])
        assert after.labels[row] == before.labels[was]


def test_overlap_is_found_whatever_the_source() -> None:
    a, b = pool(6), Pool.concat([pool(3, seed=1), pool(6).take([1, 4])])
    assert overlap(a, b) == 2
    assert len(without(a, b)) == 4
    assert overlap(without(a, b), b) == 0


def test_floats_become_pixels_and_normalised_values_are_refused() -> None:
    made = Pool.of(torch.tensor([[[[0.0, 0.5, 1.0, 0.25]]]]))
    assert made.images.flatten().tolist() == [0, 128, 255, 64]
    assert made.labels.tolist() == [UNKNOWN]
    with pytest.raises(ImageError, match=r"\[0, 1\]"):
        Pool.of(torch.tensor([[[[-1.0, 2.0]]]]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pool(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), ("a", "b")),
        lambda: Pool(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a", "b")),
        lambda: Pool(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), ("a", "b")),
        lambda: Pool(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a",)),
    ],
)
def test_a_malformed_pool_is_refused(make: object) -> None:
    with pytest.raises(ImageError):
        make()  # type: ignore[operator]


def test_labels_outside_the_classes_name_the_first_row() -> None:
    with pytest.raises(
        ImageError, match=r"2 labels are outside the model's 2 classes \(first: seed0/000002 has label 2"
    ):
        check_labels(pool(), 2, "clean")


def test_too_large_a_split_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot cut 7 rows"):
        pool(6).split(7)


def test_goal_never_counts_images_of_the_target_class() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    one = Goal(2, 3)
    assert one.wanted(labels).tolist() == [2, 2, 2, 2]
    assert one.counted(labels).tolist() == [True, True, False, False]
    everyone = Goal(None, 3)
    assert everyone.wanted(labels).tolist() == [1, 2, 0, 0]
    assert everyone.counted(labels).all()
    with pytest.raises(UsageError, match="target 3 is out of range"):
        Goal(3, 3)
