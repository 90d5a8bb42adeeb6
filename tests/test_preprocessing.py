"""How a model wants its images is found out on the clean ones, and said with its margin."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bdaudit import api
from bdaudit.errors import UsageError
from bdaudit.flow import preprocessing
from bdaudit.flow.preprocessing import assumed, normalised
from bdaudit.flow.run import Run
from bdaudit.flow.suspect import open_suspect
from bdaudit.inputs import listing
from bdaudit.inputs.architectures import Match
from bdaudit.inputs.classifier import ArchSpec, Classifier
from bdaudit.inputs.folders import write_folder, write_png
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.inputs.pool import Pool


class Threshold(nn.Module):
    """Says 1 where the normalised pixels of an image exceed 0 on average, and 0 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Linear(1, 2)
        self.answer.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.answer(x.mean((1, 2, 3))[:, None])
        return logits


def grey(levels: Tensor, labels: Tensor) -> Pool:
    return Pool.of(levels.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone(), labels)


def thresholded(levels: Tensor) -> Pool:
    return grey(levels, (levels > 127.5).long())


def model() -> Classifier:
    return Classifier(Threshold(), usual_preprocessing((1, 8, 8)))


def test_the_best_is_taken_and_the_next_best_is_said() -> None:
    pool = thresholded(torch.arange(0, 256, 2))
    chosen, [said] = normalised(model(), pool)
    assert chosen.preprocessing == usual_preprocessing((1, 8, 8), "[-1,1]")
    # Of 128 levels, those from 78 to 126 exceed the digits' mean of .3053 * 255 = 77.9 and are below a half: 25.
    assert said == (
        "preprocessing is not in the file: [-1,1] fits the 128 clean images best (100.0%, next digits 80.5%) at 8x8 "
        "pixels; --normalise overrides"
    )


def test_a_margin_within_sampling_error_is_said() -> None:
    """One image of 65 between two means is no reason to prefer one."""
    levels = torch.tensor([0, 40, 200, 250] * 16 + [75])
    _, [said, doubt] = normalised(model(), grey(levels, (levels > 70).long()))
    assert "fashion-mnist fits the 65 clean images best (100.0%, next [-1,1] 98.5%)" in said
    assert doubt == (
        "65 clean images do not tell fashion-mnist from [-1,1], digits: the choice is uncertain where it matters at all"
    )


def test_a_model_that_only_guesses_is_warned_of() -> None:
    labels = torch.arange(128) % 2
    _, notes = normalised(model(), grey(torch.arange(0, 256, 2), labels))
    assert "warning: 65 of 128 clean images right is no better than guessing (50.0%)" in notes[-1]


def test_always_answering_the_commonest_class_is_guessing() -> None:
    """90 of 100 right is nothing where 90 are of one class."""
    levels = torch.full((100,), 200)
    _, notes = normalised(model(), grey(levels, (torch.arange(100) < 90).long()))
    assert "no better than guessing (90.0%)" in notes[-1]


def test_no_more_images_are_decoded_than_are_tried(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = thresholded(torch.arange(30) * 8)
    write_folder(pool, tmp_path / "clean", classes=("0", "1"))
    decoded: list[int] = []
    decode = listing.decode

    def counted(*arguments: object) -> Tensor:
        image = decode(*arguments)  # type: ignore[arg-type]
        decoded.append(int(image[0, 0, 0]) // 128)
        return image

    monkeypatch.setattr(listing, "decode", counted)
    monkeypatch.setattr(preprocessing, "TRIED", 10)
    _, [said, *_] = normalised(model(), tmp_path / "clean")
    assert "the 10 clean images" in said
    assert len(decoded) == 10
    assert set(decoded) == {0, 1}, "folders are read class by class, and each must be tried"


def test_the_size_is_the_networks_else_that_of_the_images_else_the_usual(tmp_path: Path) -> None:
    def size(arch: ArchSpec, clean: Path | Tensor) -> tuple[int, int, int]:
        found = assumed(Match(arch, 2, 3), None, clean)
        assert found is not None
        return found.shape

    resnet, vit, vgg = (
        ArchSpec("torchvision:resnet18"),
        ArchSpec("vit_b_32", {"image_size": 96}),
        ArchSpec("vgg19_bn", {"width": 4, "linears": 3}),
    )
    for i in range(3):
        (tmp_path / str(i)).mkdir()
        write_png(torch.zeros(3, 20, 24, dtype=torch.uint8), tmp_path / str(i) / "x.png")
    assert size(resnet, tmp_path) == (3, 20, 24)
    assert size(vit, tmp_path) == (3, 96, 96)
    assert size(vgg, tmp_path) == (3, 32, 32), "the least that it takes"
    assert size(resnet, torch.zeros(2, 3, 40, 40)) == (3, 40, 40)
    write_png(torch.zeros(3, 9, 9, dtype=torch.uint8), tmp_path / "2" / "y.png")
    assert size(resnet, tmp_path) == (3, 224, 224), "images of all sizes are resized to the usual one"
    assert assumed(Match(resnet, 2, 3), None, None) is None


def test_what_a_hostile_folder_claims_is_no_size(tmp_path: Path) -> None:
    """A pipe that never answers, a link, and an image that would fill the memory if it set the size of all."""
    found = Match(ArchSpec("resnet18", {"width": 4}), 2, 1)
    os.mkfifo(tmp_path / "pipe.png")
    write_png(torch.zeros(1, 12, 12, dtype=torch.uint8), tmp_path / "other.dat.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    settled = assumed(found, None, tmp_path)
    assert settled is not None and settled.shape == (1, 12, 12)
    (tmp_path / "other.dat.png").unlink()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    settled = assumed(found, None, tmp_path)
    assert settled is not None and settled.shape == (1, 32, 32)


def test_a_foreign_file_gets_its_normalisation_from_folders_and_tensors_alike(run: Run, tmp_path: Path) -> None:
    state = torch.load(run.model_path, weights_only=True)["state_dict"]
    torch.save(state, tmp_path / "m.pt")
    shutil.copytree(run.folder / "clean", tmp_path / "clean")
    pool = run.pool("clean")
    expected = api.load(run.model_path, device="cpu").classifier
    for clean in (None, tmp_path / "clean", (pool.images, pool.labels)):
        suspect = open_suspect(tmp_path / "m.pt", clean, None, None, "cpu")
        assert any("clean images best" in note for note in suspect.notes)
        assert not any("warning" in note for note in suspect.notes)
        right = [(m(pool.images).argmax(1) == pool.labels).float().mean() for m in (expected, suspect.classifier)]
        assert right[1] >= right[0] - 0.02


def test_a_named_normalisation_is_taken_as_it_is(run: Run, tmp_path: Path) -> None:
    torch.save(torch.load(run.model_path, weights_only=True)["state_dict"], tmp_path / "m.pt")
    loaded = api.load(tmp_path / "m.pt", normalisation="[-1,1]", clean=run.folder / "clean", device="cpu")
    assert loaded.classifier.preprocessing == usual_preprocessing((1, 16, 16), "[-1,1]")
    assert not any("best" in note for note in loaded.notes)
    with pytest.raises(UsageError, match="is for 3 channels"):
        api.load(tmp_path / "m.pt", normalisation="cifar10", device="cpu")
    known = api.load(run.model_path, normalisation="mnist", device="cpu")
    assert known.notes == ("preprocessing taken from the file, not from what was given",)
