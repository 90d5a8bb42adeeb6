"""The checks: each looks at what a plugin's runs did, and says in words what is wrong ('' if nothing is)."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from bdaudit.attacks.base import Attack, Implanted
from bdaudit.contract import Plugin
from bdaudit.errors import BdauditError, MissingInput, OptionError, PluginError, one_line
from bdaudit.report.schema import Measurement
from bdaudit.runtime import generator
from bdaudit.testing import soundness
from bdaudit.testing.materials import materials
from bdaudit.testing.trial import Trial, attempt, offered

State = Literal["ok", "failed", "not applicable"]


@dataclass(frozen=True)
class Outcome:
    """What one check found."""

    check: str
    state: State
    why: str = ""

    @property
    def failed(self) -> bool:
        return self.state == "failed"

    def __str__(self) -> str:
        word = "FAILED" if self.failed else self.state
        return f"{word}: {self.why}" if self.why else word


class NotApplicable(Exception):
    """There is nothing for this check to look at."""


class Examination:
    """A plugin under examination, and the runs that its checks share."""

    def __init__(self, cls: type[Plugin], options: Mapping[str, Any] | None = None) -> None:
        self.cls = cls
        self.options = cls.quick_options if options is None else options
        self._without: dict[str, Trial] = {}

    def without(self, name: str) -> Trial:
        """The first run again, but for one input."""
        if name not in self._without:
            self._without[name] = attempt(self.plugin, without=name)
        return self._without[name]

    @cached_property
    def plugin(self) -> Plugin:
        try:
            return self.cls.parse(self.options)
        except OptionError as e:
            raise NotApplicable(f"its quick_options are wrong: see options round-trip ({one_line(e, 100)})") from e

    @cached_property
    def first(self) -> Trial:
        """The run that most checks look at."""
        return attempt(self.plugin)

    @cached_property
    def elsewhere(self) -> Trial:
        """The same with the process's global generators in another state."""
        return attempt(self.plugin, global_state=1)

    @cached_property
    def again(self) -> Trial:
        """The same once more."""
        return attempt(self.plugin)

    def finished(self) -> Trial:
        """Give the first run; one that came to no result shows nothing, so that no check may call it ok."""
        if self.first.result is None:
            raise NotApplicable("it did not run")
        return self.first


@dataclass(frozen=True)
class Check:
    """One rule of the contract. kinds: of the plugins that it binds; () for all."""

    name: str
    claim: str
    kinds: tuple[str, ...]
    examine: Callable[[Examination], str]

    def __call__(self, examination: Examination) -> Outcome:
        """Apply the rule; whatever an examined plugin raises is a reason to fail it."""
        if self.kinds and examination.cls.kind not in self.kinds:
            return Outcome(self.name, "not applicable", f"it is no {' or '.join(self.kinds)}")
        try:
            why = self.examine(examination)
        except NotApplicable as e:
            return Outcome(self.name, "not applicable", str(e))
        except (Exception, SystemExit) as e:
            why = _error(e)
        return Outcome(self.name, "failed" if why else "ok", why)


CHECKS: list[Check] = []
Examine = Callable[[Examination], str]


def _check(name: str, *, kinds: tuple[str, ...] = ("attack", "defense", "probe")) -> Callable[[Examine], Examine]:
    """Add a function to the checks; its docstring is the rule."""

    def add(function: Examine) -> Examine:
        CHECKS.append(Check(name, inspect.getdoc(function) or "", kinds, function))
        return function

    return add


@_check("documentation", kinds=())
def _documentation(e: Examination) -> str:
    """The class and every option say what they are for."""
    if not e.cls.claim():
        return "the class has no docstring"
    silent = [row["option"] for row in e.cls.describe_options() if not row["what"]]
    return f"no help for {', '.join(silent)}: declare with option(default, help)" if silent else ""


@_check("options round-trip", kinds=())
def _options(e: Examination) -> str:
    """Options come back the same from text, as -o gives them, and from JSON, as reports keep them."""
    for plugin in (e.cls.parse(), e.cls.parse(e.options)):
        values = plugin.model_dump()
        for what, given in (
            ("text", {name: str(value) for name, value in values.items()}),
            ("JSON", json.loads(plugin.model_dump_json())),
        ):
            try:
                back = e.cls.parse(given).model_dump()
            except BdauditError as error:
                return f"from {what}: {one_line(error)}"
            for name in values:
                if back[name] != values[name]:
                    return f"from {what}: {name}={values[name]!r} came back as {one_line(repr(back[name]), 80)}"
    return ""


@_check("runs")
def _runs(e: Examination) -> str:
    """It runs on the CPU, on a few hundred digits, with everything it may ask for."""
    if e.first.blocked:
        raise NotApplicable("it was stopped: see network and files")
    if isinstance(e.first.error, MissingInput):
        raise NotApplicable("it asks for what it is never given: see declared inputs")
    if e.first.error is None or isinstance(e.first.error, PluginError):  # the latter: see result
        return ""
    return _error(e.first.error)


@_check("result")
def _result(e: Examination) -> str:
    """What it returns is sound: finite weights and the same classes, exact bookkeeping, well-formed findings."""
    if isinstance(e.first.error, PluginError):
        return one_line(e.first.error)
    trial = e.finished()
    like, images = trial.given.fresh, trial.given.training.images[:8]
    match trial.result, e.plugin:
        case Implanted() as made, Attack() as attack:
            return soundness.model(made.model, like, images) or soundness.bookkeeping(
                attack, made.poisoned, materials().training, made.goal
            )
        case Measurement() as measured, _:
            return soundness.measurement(measured, e.cls.name) or _invented_reference(e)
    return soundness.model(trial.result, like, images)


def _invented_reference(e: Examination) -> str:
    if "reference" not in e.cls.wants() or "reference" in e.cls.needs():
        return ""
    result = e.without("reference").result
    invented = result is not None and any(f.subject == "reference" for f in result.findings)
    return "it reports on a reference where none was given" if invented else ""


@_check("declared inputs")
def _inputs(e: Examination) -> str:
    """It takes what it names and nothing else, says what is missing, and does without what is optional."""
    wants, needs = set(e.cls.wants()), e.cls.needs()
    available = offered(e.cls.kind, materials(), generator(0))
    for name in sorted(wants - set(available)):
        return f"it asks for {name}, which is given to no {e.cls.kind}"
    for name in sorted(e.first.taken - wants):
        return f"it took {name} without naming it in {e.cls.method}"
    for name in needs:
        error = e.without(name).error
        if not isinstance(error, MissingInput) or name not in str(error):
            return f"without {name}, which it needs, it does not say what is missing ({_error(error)})"
    for name in sorted(wants - set(needs)) if e.first.result is not None else ():
        error = e.without(name).error
        if error is not None:
            return f"without {name}, which is optional, it fails: {_error(error)}"
    return ""


@_check("inputs unmutated")
def _unmutated(e: Examination) -> str:
    """Pools, triggers and the caller's models are left as they were."""
    if e.first.changed:
        return f"it changed {', '.join(e.first.changed)} in place"
    e.finished()
    return ""


@_check("seed determinism")
def _determinism(e: Examination) -> str:
    """The same seed gives the same bits."""
    if e.finished().same_as(e.elsewhere) or e.first.same_as(e.again):
        return ""
    if e.again.error is not None:
        return f"run a second time, it fails: {_error(e.again.error)}"
    return "two runs with the same seed differ: take all randomness from rng"


@_check("no global RNG")
def _no_global_rng(e: Examination) -> str:
    """It neither reads nor advances the generators that the process shares: torch's, numpy's and random's."""
    if e.first.moved:
        return f"it advanced the global generator of {', '.join(e.first.moved)}: take all randomness from rng"
    if e.finished().same_as(e.elsewhere) or not e.first.same_as(e.again):
        return ""
    return "its result depends on the state of a global generator: take all randomness from rng"


@_check("no network")
def _no_network(e: Examination) -> str:
    """It opens no connection and looks up no host."""
    if e.first.network:
        return f"it asked for {', '.join(e.first.network)}"
    e.finished()
    return ""


@_check("no files")
def _no_files(e: Examination) -> str:
    """It writes no file outside a temporary folder."""
    if e.first.files:
        return f"it would change {', '.join(e.first.files)}"
    e.finished()
    return ""


@_check("trigger", kinds=("attack",))
def _trigger(e: Examination) -> str:
    """The trigger is pure, changes images, and is the same after it was saved and loaded."""
    trial = e.finished()
    return soundness.triggers(e.plugin, trial.result, materials().training.images[:32])  # type: ignore[arg-type]


def _error(error: BaseException | None) -> str:
    return "it ran all the same" if error is None else f"{type(error).__name__}: {one_line(error, 200)}"
