"""The conformance kit: every built-in keeps the contract, and every way to break it trips exactly its own check."""

from __future__ import annotations

import os
import random
import re
import socket
import tempfile
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bdaudit import plugins
from bdaudit.attacks.base import Attack, Poisoned
from bdaudit.attacks.triggers import BlendTrigger, Trigger, patch
from bdaudit.contract import Plugin, Preset, option
from bdaudit.defenses.base import Defense
from bdaudit.defenses.ft import FT
from bdaudit.errors import OptionError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Probe
from bdaudit.report.schema import Exhibit, Finding, Measurement
from bdaudit.report.statistics import rate_finding
from bdaudit.testing import CHECKS, Conformance, examine
from bdaudit.training.metrics import Rate

BUILT_INS = [f.cls for f in plugins.registry().found.values() if f.origin.distribution == "bdaudit"]
WHITE = torch.full((3, 3), 255, dtype=torch.uint8)


@pytest.mark.parametrize("cls", BUILT_INS, ids=lambda c: f"{c.kind}.{c.name}")
def test_every_built_in_keeps_the_contract(cls: type[Plugin]) -> None:
    outcomes = examine(cls)
    assert [str(o) for o in outcomes if o.failed] == []
    assert {o.check for o in outcomes if o.state == "not applicable"} <= {"trigger"}


class TestFT(Conformance):
    """An author's pytest: one test a check."""

    plugin = FT


@pytest.mark.parametrize("cls", [c for c in BUILT_INS if issubclass(c, Preset)], ids=lambda c: f"{c.kind}.{c.name}")
def test_every_preset_is_made_of_known_options_and_listed(cls: type[Preset]) -> None:
    for name, stated in cls.presets.items():
        chosen = cls.parse({"preset": name})
        assert {option: getattr(chosen, option) for option in stated} == stated
        assert name in str(cls.describe_options())
    assert bool(cls.presets) == any(row["option"] == "preset" for row in cls.describe_options())
    with pytest.raises(OptionError, match=rf"{cls.name}: -o preset: no such preset"):
        cls.parse({"preset": "x"})


def test_the_kit_as_pytest_fails_with_the_rule_and_the_reason() -> None:
    class TestBroken(Conformance):
        plugin = defense(fails)

    [check] = [c for c in CHECKS if c.name == "runs"]
    with pytest.raises(AssertionError, match=r"It runs on the CPU.* RuntimeError: no"):
        TestBroken().test_it_keeps_the_contract(check)


def make(base: type[Plugin], method: Callable[..., Any], **members: Any) -> type[Any]:
    return type(
        "Broken",
        (base,),
        {"__module__": __name__, "__doc__": "For a test.", "name": "broken", base.method: method, **members},
    )


def defense(purify: Callable[..., Any], **members: Any) -> type[Any]:
    return make(Defense, purify, **members)


def failed(cls: type[Plugin]) -> dict[str, str]:
    return {o.check: o.why for o in examine(cls) if o.failed}


def sound(self: Any, model: Classifier, clean: Pool) -> Classifier:
    return model


def fails(self: Any, model: Classifier) -> Classifier:
    raise RuntimeError("no")


def leaves(self: Any, model: Classifier) -> Classifier:
    raise SystemExit(0)


def test_the_plainest_defense_is_sound() -> None:
    assert failed(defense(sound)) == {}


def undescribed() -> type[Any]:
    return defense(sound, __annotations__={"strength": float}, strength=0.5)


def unspeakable() -> type[Any]:
    return defense(sound, __annotations__={"pair": tuple[int, int]}, pair=option((1, 2), "two numbers"))


def wrong_default() -> type[Any]:
    return defense(sound, __annotations__={"share": float}, share=option(2.0, "a share", le=1))


def diverges(self: Any, model: Classifier) -> Classifier:
    model.head.weight.data[0, 0] = float("nan")
    return model


def returns_nothing(self: Any, model: Classifier) -> None:
    return None


def one_class_less(self: Any, model: Classifier) -> Classifier:
    name, _, last = model.head_name.rpartition(".")
    smaller = torch.nn.utils.skip_init(torch.nn.Linear, model.head.in_features, 9)
    torch.nn.init.zeros_(smaller.weight), torch.nn.init.zeros_(smaller.bias)
    setattr(model.body.get_submodule(name), last, smaller)
    return model


def wants_the_test_set(self: Any, model: Classifier, test: Pool) -> Classifier:
    return model


def cannot_do_without(self: Any, model: Classifier, trigger: Trigger | None = None) -> Classifier:
    assert trigger is not None
    return model


class TakesMore(Defense):
    """It goes around `grant`."""

    name = "takes-more"

    def purify(self, model: Classifier) -> Classifier:
        return model

    def run(self, available: Any) -> Classifier:  # type: ignore[misc]
        available.get("trigger")
        return super().run(available)


def paints(self: Any, model: Classifier, clean: Pool) -> Classifier:
    clean.images.zero_()
    return model


def set_weight(model: Classifier, value: float) -> Classifier:
    model.head.weight.data[0, 0] = value
    return model


def draws_from_the_system(self: Any, model: Classifier) -> Classifier:
    return set_weight(model, np.random.default_rng().random())


def draws_from_torch(self: Any, model: Classifier) -> Classifier:
    return set_weight(model, torch.rand(()).item())


def draws_from_random(self: Any, model: Classifier) -> Classifier:
    return set_weight(model, random.random())


def draws_from_numpy(self: Any, model: Classifier) -> Classifier:
    return set_weight(model, np.random.rand())  # noqa: NPY002


def advances_torch(self: Any, model: Classifier) -> Classifier:
    torch.rand(())
    return model


def only_reads_numpy(self: Any, model: Classifier) -> Classifier:
    return set_weight(model, float(np.random.get_state()[1][0]) / 2**32)  # type: ignore[index] # noqa: NPY002


def connects(self: Any, model: Classifier) -> Classifier:
    socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    return model


def looks_up_and_goes_on(self: Any, model: Classifier) -> Classifier:
    with suppress(OSError):
        urllib.request.urlopen("http://telemetry.example/", timeout=0.1)
    return model


def fills(attack: Attack, train: Pool, rows: range, goal: Goal) -> Poisoned:
    marked = torch.zeros(len(train), dtype=torch.bool)
    marked[list(rows)] = True
    labels = torch.where(marked, goal.wanted(train.labels), train.labels)
    return Poisoned(train.labelled(labels), marked, torch.zeros_like(marked), train.labels)


def stamp(self: Any, shape: tuple[int, int, int]) -> Trigger:
    return patch(shape, WHITE, 0, 0)


def poisons_in_secret(
    self: Any, train: Pool, trigger: Trigger, goal: Goal, fresh: Classifier, rng: torch.Generator
) -> Poisoned:
    honest = fills(self, train, range(5), goal)
    images = honest.pool.images.clone()
    images[100] = 0
    return Poisoned(honest.pool.with_images(images), honest.poisoned, honest.cover, honest.true_labels)


def mislabels(
    self: Any, train: Pool, trigger: Trigger, goal: Goal, fresh: Classifier, rng: torch.Generator
) -> Poisoned:
    honest = fills(self, train, range(5), goal)
    return Poisoned(honest.pool.labelled(train.labels), honest.poisoned, honest.cover, honest.true_labels)


def takes_any_class(
    self: Any, train: Pool, trigger: Trigger, goal: Goal, fresh: Classifier, rng: torch.Generator
) -> Poisoned:
    return replace(fills(self, train, range(5), goal), pool=train)


def forgets_the_truth(
    self: Any, train: Pool, trigger: Trigger, goal: Goal, fresh: Classifier, rng: torch.Generator
) -> Poisoned:
    honest = fills(self, train, range(5), goal)
    return Poisoned(honest.pool, honest.poisoned, honest.cover, honest.pool.labels)


class Forgetful(BlendTrigger):
    """Loses half its weight in a file."""

    kind = "forgetful"

    def tensors(self) -> dict[str, torch.Tensor]:
        return super().tensors() | {"weight": self.weight / 2}


class Painting(BlendTrigger):
    """Changes the images it is given."""

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        images.copy_(super().apply(images))
        return images


class Wavering(BlendTrigger):
    """Keeps count of its calls."""

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        out = super().apply(images)
        out[:, :, 0, 0] = self.calls
        return out


def stamp_with(cls: type[BlendTrigger], weight: float = 1.0) -> Callable[..., Trigger]:
    def make_trigger(self: Any, shape: tuple[int, int, int]) -> Trigger:
        return cls(torch.full(shape, 255, dtype=torch.uint8), torch.full(shape[1:], weight))

    return make_trigger


def attack(make_trigger: Callable[..., Any] = stamp, **members: Any) -> type[Any]:
    return make(Attack, make_trigger, **members)


def row(**changes: Any) -> Finding:
    honest = rate_finding("broken", "purified", "p_asr", Rate(5, 50))
    return honest.model_copy(update=changes)


def reporting(*findings: Finding, exhibits: tuple[Exhibit, ...] = ()) -> type[Any]:
    def measure(self: Any, purified: Classifier, reference: Classifier | None = None) -> Measurement:
        return Measurement(findings=list(findings), exhibits=list(exhibits))

    return make(Probe, measure)


def test_the_plainest_attack_and_probe_are_sound() -> None:
    assert failed(attack()) == {}
    assert failed(reporting(row())) == {}
    change = row(metric="asr_change", value=-0.5, low=-0.6, high=-0.4)
    assert failed(reporting(row(), change, row(metric="distance", value=7.0, low=None, high=None))) == {}


CURVE = Exhibit(probe="broken", metric="p_asr", title="t", curves={"a": [0.0, 1.0]}, x=[0.0])
BROKEN: list[tuple[str, Callable[[], type[Any]], str]] = [
    ("documentation", undescribed, "no help for strength"),
    ("options round-trip", unspeakable, "from text: .*pair"),
    ("options round-trip", wrong_default, "from text: .*share"),
    ("runs", lambda: defense(fails), "RuntimeError: no"),
    ("runs", lambda: defense(leaves), "SystemExit"),
    ("result", lambda: defense(diverges), "weight is not finite"),
    ("result", lambda: defense(returns_nothing), "returned NoneType"),
    ("result", lambda: defense(one_class_less), r"logits of shape \(8, 9\)"),
    ("result", lambda: attack(poison=poisons_in_secret), "images changed in rows marked neither"),
    ("result", lambda: attack(poison=mislabels), "do not carry the label"),
    ("result", lambda: attack(poison=forgets_the_truth), "true_labels are not"),
    ("result", lambda: attack(poison=takes_any_class, clean_label=True), "rows of other classes than the target"),
    ("result", lambda: reporting(), "no finding is about the purified model"),
    ("result", lambda: reporting(row(probe="other")), "probe is 'other'"),
    ("result", lambda: reporting(row(value=1.5)), "no fraction"),
    ("result", lambda: reporting(row(metric="asr_change", value=-1.5)), "no fraction"),
    ("result", lambda: reporting(row(value=0.9)), "outside its interval"),
    ("result", lambda: reporting(row(low=None)), "needs its interval"),
    ("result", lambda: reporting(row(n=0)), "over 0 images"),
    ("result", lambda: reporting(row(), row()), "same subject"),
    ("result", lambda: reporting(row(), row(subject="reference")), "a reference where none was given"),
    ("result", lambda: reporting(row(), exhibits=(CURVE,)), "2 values over 1"),
    ("declared inputs", lambda: defense(wants_the_test_set), "asks for test, which is given to no defense"),
    ("declared inputs", lambda: defense(cannot_do_without), "without trigger, which is optional, it fails"),
    ("declared inputs", lambda: TakesMore, "took trigger without naming it"),
    ("inputs unmutated", lambda: defense(paints), "changed clean in place"),
    ("seed determinism", lambda: defense(draws_from_the_system), "two runs with the same seed differ"),
    ("no global RNG", lambda: defense(draws_from_torch), "of torch"),
    ("no global RNG", lambda: defense(draws_from_random), "of random"),
    ("no global RNG", lambda: defense(draws_from_numpy), "of numpy"),
    ("no global RNG", lambda: defense(advances_torch), "advanced the global generator of torch"),
    ("no global RNG", lambda: defense(only_reads_numpy), "depends on the state"),
    ("no network", lambda: defense(connects), r"192\.0\.2\.1:80"),
    ("no network", lambda: defense(looks_up_and_goes_on), "telemetry.example:80"),
    ("trigger", lambda: attack(stamp_with(Forgetful), trigger_kinds={"forgetful": Forgetful}), "saved and loaded"),
    ("trigger", lambda: attack(stamp_with(Forgetful)), "not a trigger file of a known kind"),
    ("trigger", lambda: attack(stamp_with(Painting)), "in place"),
    ("trigger", lambda: attack(stamp_with(Wavering)), "two results"),
    ("trigger", lambda: attack(stamp_with(BlendTrigger, 0.0)), "changes no pixel"),
]


@pytest.mark.parametrize(("check", "cls", "why"), BROKEN, ids=[f"{c}-{w}"[:60] for c, _, w in BROKEN])
def test_a_broken_plugin_trips_its_own_check_and_no_other(check: str, cls: Callable[[], type[Any]], why: str) -> None:
    found = failed(cls())
    assert list(found) == [check]
    assert re.search(why, found[check])


def test_what_did_not_run_is_called_ok_only_where_nothing_had_to_run() -> None:
    states = {o.check: o.state for o in examine(defense(fails))}
    ok = {check for check, state in states.items() if state == "ok"}
    assert ok == {"documentation", "options round-trip", "declared inputs"}


def test_every_check_is_tripped_by_something() -> None:
    assert {c for c, _, _ in BROKEN} | {"no files"} == {c.name for c in CHECKS}


WRITES: dict[str, Callable[[Path], object]] = {
    "open": lambda p: p.write_text("x"),
    "os.open": lambda p: os.open(p, os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda p: p.mkdir(),
    "torch.save": lambda p: torch.save({}, p),
    "safetensors": lambda p: save_file({"x": torch.zeros(1)}, p),
    "rename": lambda p: (p.parent / "old").rename(p),
    "remove": lambda p: (p.parent / "old").unlink(),
    "symlink": lambda p: p.symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("how", WRITES)
def test_files_are_not_written_and_the_attempt_is_named(how: str, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")

    def writes(self: Any, model: Classifier) -> Classifier:
        WRITES[how](tmp_path / "new")
        return model

    found = failed(defense(writes))
    assert list(found) == ["no files"]
    assert str(tmp_path) in found["no files"]
    assert {p.name for p in tmp_path.iterdir()} == {"old"}


def test_a_plugin_may_use_a_temporary_folder(tmp_path: Path) -> None:
    seen: list[Path] = []

    def scratches(self: Any, model: Classifier) -> Classifier:
        tmp_path.mkdir(exist_ok=True)  # changes nothing
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder, "a.pt"))
            Path(folder, "a.pt").rename(Path(folder, "b.pt"))
            model.load_state_dict(torch.load(Path(folder, "b.pt"), weights_only=True))
        seen.append(Path(folder))
        return model

    assert failed(defense(scratches)) == {}
    assert not any(folder.exists() for folder in seen)


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    """Generators, sockets and files are as usual after an examination, even of a plugin that misbehaves."""
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr] # noqa: NPY002
    examine(defense(draws_from_torch))
    examine(defense(connects))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr] # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
    torch.save({}, tmp_path / "x.pt")


def test_checks_are_quick_because_a_plugin_says_how() -> None:
    """Options come from `quick_options`, or from the one who asks; a wrong one is an ordinary failure."""
    cls = defense(sound, quick_options={"speed": 9})
    [(check, why)] = failed(cls).items()
    assert check == "options round-trip"
    assert "no option 'speed'" in why
    assert {o.check for o in examine(cls, options={}) if o.failed} == set()
