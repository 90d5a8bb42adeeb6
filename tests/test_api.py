"""The Python face: paths, tensors, plain modules alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bdaudit
from bdaudit import api, plugins
from bdaudit.defenses.ft import FT
from bdaudit.errors import ImageError, MissingInput, OptionError, UsageError
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.report.schema import Measurement
from bdaudit.training import resume

DEMO = Path(__file__).parent.parent / "docs" / "demo.py"


def test_the_public_names_resolve_and_others_do_not() -> None:
    for name in bdaudit.__all__:
        assert getattr(bdaudit, name)
    with pytest.raises(AttributeError, match="no attribute 'audti'"):
        bdaudit.audti  # noqa: B018


def test_the_demo_script_is_short_and_runs(tmp_path: Path) -> None:
    code = [line for line in DEMO.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 20
    done = subprocess.run([sys.executable, DEMO, tmp_path / "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, ft, pl = done.stdout.splitlines()
    assert float(first.split()[-1].rstrip("%")) >= 95
    assert ft.startswith("ft: fail")
    assert float(pl.split("ASR ")[1].split("%")[0]) <= 10


def test_a_plain_module_and_tensors_go_in_and_a_plain_module_comes_out(suspect: Classifier, run: Run) -> None:
    body = suspect.clone().body
    mean, std = suspect.preprocessing.mean[0], suspect.preprocessing.std[0]

    class Plain(torch.nn.Module):
        """A stranger's network, which takes floats in [0, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.network = body

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.network((x - mean) / std)
            return out

    clean, flagged = run.pool("clean"), run.pool("flagged")
    model = Plain()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    purified = bdaudit.purify(
        model, clean=(clean.images.float() / 255, clean.labels), malicious=flagged.images, defense="pl", device="cpu"
    )
    assert type(purified) is Plain
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    x = flagged.images.float() / 255
    with torch.inference_mode():
        assert (model.eval()(x).argmax(1) == 0).float().mean() > 0.9
        assert (purified(x).argmax(1) == 0).float().mean() < 0.2
    report = bdaudit.audit(
        model, purified=purified, clean=clean, malicious=flagged.images, probes=["retune"],
        options={"retune.draws": 1, "retune.epochs": 1}, device="cpu",
    )  # fmt: skip
    assert report.inputs["model"]["arch"] == "Plain"
    assert any("which the model gives" in note for note in report.notes)  # how the target was chosen
    o_asr = report.find("o_asr")
    assert o_asr is not None
    assert o_asr.value < 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_come_back_in_it(suspect: Classifier, run: Run, dtype: torch.dtype) -> None:
    """They are tuned in single precision: halves would not do, and pixels come in singles."""
    model = suspect.clone().to(dtype)
    model.head.float()  # as where mixed precision keeps some layers in single
    purified = bdaudit.purify(model, clean=run.pool("clean"), defense=FT(epochs=1), device="cpu")
    assert [p.dtype for p in purified.parameters()] == [p.dtype for p in model.parameters()]
    assert [b.dtype for b in purified.buffers()] == [b.dtype for b in model.buffers()]
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), purified.parameters(), strict=True))


def test_a_defense_may_be_an_instance(suspect: Classifier, run: Run) -> None:
    purified = bdaudit.purify(suspect, clean=run.pool("clean"), defense=FT(epochs=1), device="cpu")
    assert isinstance(purified, Classifier)


def test_audit_writes_its_folder_when_asked(run: Run, tmp_path: Path) -> None:
    report = bdaudit.audit(
        run.model_path, defense="ft", run=run.folder, probes=["retune"], out=tmp_path / "out",
        options={"retune.draws": 1, "retune.epochs": 1, "epochs": 1}, device="cpu",
    )  # fmt: skip
    assert (tmp_path / "out" / "report.json").read_text() == report.to_json()
    made = torch.load(tmp_path / "out" / "model.purified.pt", weights_only=True)["bdaudit"]["provenance"]
    assert (made["purified_by"], made["options"]["epochs"]) == ("ft", 1)
    assert {g["input"] for g in made["granted"]} == {"model", "clean", "rng"}


def test_wrong_calls_give_one_line(suspect: Classifier, run: Run, digits: Pool) -> None:
    clean = run.pool("clean")
    with pytest.raises(MissingInput, match="pl needs malicious"):
        bdaudit.purify(suspect, clean=clean, defense="pl", device="cpu")
    with pytest.raises(MissingInput, match=r"ep needs trigger .* real defender would not have one"):
        bdaudit.purify(suspect, clean=clean, defense="ep", device="cpu")
    with pytest.raises(OptionError, match="did you mean epochs"):
        bdaudit.purify(suspect, clean=clean, defense="ft", options={"epoch": 1}, device="cpu")
    with pytest.raises(UsageError, match="must be tensors or a pool"):
        bdaudit.purify(suspect.body, clean=run.folder / "clean", defense="ft", device="cpu")
    with pytest.raises(ImageError, match=r"images are \(1, 8, 8\), the model takes \(1, 16, 16\)"):
        bdaudit.purify(suspect, clean=(torch.zeros(4, 1, 8, 8), torch.zeros(4)), defense="ft", device="cpu")
    with pytest.raises(ImageError, match="outside the model's 10 classes"):
        bdaudit.purify(suspect, clean=clean.labelled(10), defense="ft", device="cpu")
    with pytest.raises(UsageError, match="target 12 is out of range"):
        bdaudit.purify(suspect, clean=clean, malicious=clean.images, target=12, defense="pl", device="cpu")
    with pytest.raises(UsageError, match=r"--normalise svhn: known are"):
        api.wrap(suspect.body, clean, normalisation="svhn")
    with pytest.raises(UsageError, match="either a defense to run"):
        bdaudit.audit(run.model_path, run=run.folder, device="cpu")


def test_in_training_defenses_get_a_fresh_model_and_the_training_set(run: Run) -> None:
    """The contract of the family, on a defense that trains from scratch."""
    from bdaudit.defenses.base import Tuning
    from bdaudit.training.loop import tune

    class Scratch(Tuning):
        """Train a fresh model on the untrusted set."""

        name = "scratch"

        def purify(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> Classifier:
            return tune(fresh, train, self.recipe(train), rng)

    assert Scratch.family() == "in-training"
    report = bdaudit.audit(
        run.model_path, defense=Scratch(epochs=3, lr=0.1), train=run.folder / "train", run=run.folder, probes=[],
        device="cpu",
    )  # fmt: skip
    assert report.verdict in ("fail", "inconclusive")
    assert {g.input for g in report.granted if g.plugin == "scratch"} == {"fresh", "train", "rng"}
    c_acc = report.find("c_acc")
    assert c_acc is not None
    assert c_acc.value > 0.5


def test_purify_hands_out_what_the_defense_found(suspect: Classifier, run: Run) -> None:
    found: list[Measurement] = []
    options = {**plugins.get("defense", "bti-dbf").quick_options}
    clean = run.pool("clean").first(64)
    bdaudit.purify(suspect, clean=clean, defense="bti-dbf", options=options, device="cpu", found=found)
    [measurement] = found
    assert measurement.findings
    assert "bti-dbf-generator.safetensors" in measurement.artifacts


def test_purify_keeps_checkpoints_where_it_is_told(
    suspect: Classifier, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it trains; once it has ended well they are gone."""
    kept: list[Path] = []
    monkeypatch.setattr(resume, "_save", lambda path, *state: kept.append(path))
    options = {**plugins.get("defense", "abl").quick_options}
    bdaudit.purify(
        suspect, clean=run.pool("clean"), train=run.pool("train").first(300), defense="abl", options=options,
        device="cpu", checkpoints=tmp_path / "kept",
    )  # fmt: skip
    assert {path.parent for path in kept} == {tmp_path / "kept"}
    assert not (tmp_path / "kept").exists()
