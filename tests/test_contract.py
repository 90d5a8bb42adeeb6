"""Options, resources, and what a class must be to count as a plugin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdaudit.attacks.base import Attack
from bdaudit.contract import RESOURCES, Plugin, check_class, option
from bdaudit.defenses.base import Defense
from bdaudit.errors import MissingInput, OptionError, PluginError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool


class Sample(Defense):
    """A defense for tests."""

    name = "sample"
    strength: float = option(0.5, "how much", cite="nobody 2020", ge=0, le=1)
    twice: bool = option(False, "do it twice")

    def purify(
        self, model: Classifier, clean: Pool, trigger: object, rng: torch.Generator, target: int = 0
    ) -> Classifier:
        return model


def test_needs_come_from_the_signature() -> None:
    assert Sample.needs() == ("model", "clean", "trigger", "rng")
    assert Sample.wants() == ("model", "clean", "trigger", "rng", "target")
    assert Sample.oracle() == ("trigger",)
    assert Sample.claim() == "A defense for tests."


def test_a_missing_oracle_input_says_that_nobody_really_has_it() -> None:
    with pytest.raises(MissingInput, match=r"sample needs trigger .*give --attack RUN; a real defender would not have"):
        Sample().grant({"model": 1, "clean": 2, "rng": 3})


def test_only_declared_inputs_are_granted() -> None:
    everything = dict.fromkeys(RESOURCES, 1)
    assert set(Sample().grant(everything)) == {"model", "clean", "trigger", "rng", "target"}


def test_options_are_typed_and_frozen() -> None:
    parsed = Sample.parse({"strength": "0.25", "twice": "true"})
    assert (parsed.strength, parsed.twice) == (0.25, True)
    assert Sample.parse(parsed.model_dump()) == parsed
    with pytest.raises(ValueError, match="frozen"):
        parsed.strength = 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stength": "1"}, "did you mean strength"),
        ({"strength": "2"}, "less than or equal to 1.*got '2'"),
        ({"strength": "nan"}, "finite"),
        ({"strength": "much"}, "valid number"),
        ({"twice": "perhaps"}, "boolean"),
    ],
)
def test_a_wrong_option_gives_one_clear_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        Sample.parse(options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3))
def test_any_text_as_options_either_parses_or_gives_one_line(options: dict[str, str]) -> None:
    try:
        parsed = Sample.parse(options)
    except OptionError as e:
        assert "\n" not in str(e)
    else:
        assert 0 <= parsed.strength <= 1


def bad_class(**members: object) -> type[Plugin]:
    return type("Bad", (Defense,), {"__module__": __name__, "__doc__": "Bad.", "name": "bad", **members})


def asks_for(name: str) -> object:
    namespace: dict[str, object] = {}
    exec(f"def purify(self, {name}): ...", namespace)  # noqa: S102 - builds a signature
    return namespace["purify"]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (object, "not a subclass"),
        (bad_class(), "does not define purify"),
        (bad_class(purify=asks_for("cleen")), "'cleen', which is not a resource; did you mean clean"),
        (bad_class(purify=asks_for("**everything")), "asks for everything"),
        (bad_class(purify=asks_for("model"), name="two words"), "letters, digits and hyphens"),
        (bad_class(purify=asks_for("model"), __doc__=None), "no docstring"),
    ],
)
def test_a_class_that_breaks_the_contract_is_named(cls: object, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        check_class(cls, Defense)


def test_resources_that_a_real_defender_lacks_are_marked() -> None:
    assert {name for name, r in RESOURCES.items() if r.oracle} == {"trigger"}


def test_attacks_ask_for_inputs_by_name_too() -> None:
    class Needy(Attack):
        """An attack that looks at the training set."""

        name = "needy"

        def make_trigger(self, train: Pool, target: int) -> object: ...

    assert check_class(Needy, Attack).needs() == ("train", "target")
