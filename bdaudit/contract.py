"""What a plugin is: frozen options, and a method that asks for what it needs by naming it.

A plugin's one method names its inputs the way a pytest test names fixtures. `RESOURCES` lists every name
that can be asked for. From signatures alone the callers know what to load, say before any work
which input is missing, and record what was granted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from bdaudit.errors import MissingInput, OptionError, PluginError, did_you_mean, first_mistake, one_line


@dataclass(frozen=True)
class Resource:
    """Something a plugin may ask for.

    source: where the command line gets it, in words. oracle: a real defender would not have it.
    """

    name: str
    type: str
    claim: str
    source: str
    oracle: bool = False


RESOURCES: Mapping[str, Resource] = {
    r.name: r
    for r in (
        Resource("shape", "tuple", "(channels, height, width) of the images", "--data D"),
        Resource("model", "Classifier", "the suspect model (a private copy)", "MODEL"),
        Resource("clean", "Pool", "clean images with true labels, for tuning", "--clean DIR, or clean/ beside the model"),
        Resource("malicious", "Pool", "flagged images, labelled with the target", "--malicious DIR"),
        Resource("target", "int", "the target class", "--target N, or the class that the model gives most flagged images"),
        Resource("train", "Pool", "an untrusted training set, labels as given", "--train DIR"),
        Resource("fresh", "Classifier", "a freshly initialised model of the same architecture", "MODEL's architecture"),
        Resource("rng", "Generator", "the only source of randomness", "--seed N"),
        Resource("trigger", "Trigger", "the attacker's own trigger", "--attack RUN", oracle=True),
        Resource("suspect", "Classifier", "the model before purification", "MODEL"),
        Resource("purified", "Classifier", "the model after purification", "--defense NAME or --purified FILE"),
        Resource("reference", "Classifier", "a clean or exactly purified model", "--reference FILE, or made from --attack RUN"),
        Resource("others", "dict", "other purified models, by name", "--transfer-to FILE|DEFENSE"),
        Resource("benign", "Pool", "clean images that no defense has seen", "the run's reserve/, or a part of --clean"),
        Resource("backdoor", "Backdoor", "triggered images to retune and to evaluate with", "--attack RUN, or --malicious DIR"),
        Resource("record", "Path", "the folder or file that another tool left", "RECORD"),
        Resource("test", "Pool", "held-out clean images", "the run's test/, or a part of --clean"),
    )
}  # fmt: skip


def option(default: Any, help: str, *, cite: str = "", reads: bool = False, **constraints: Any) -> Any:
    """Declare an option: its default, what it does, where the default comes from, and pydantic constraints.

    reads: the value is the path of a file or folder, whose content decides the result.
    """
    return Field(default, description=help, json_schema_extra={"cite": cite, "reads": reads}, **constraints)


class Plugin(BaseModel):
    """The base of attacks, defenses and probes: frozen, keyword-only options with defaults from the papers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """What the command line calls it."""
    kind: ClassVar[str]
    """attack, defense or probe."""
    method: ClassVar[str]
    """The one method that a subclass writes, whose parameters are its needs."""
    quick_options: ClassVar[Mapping[str, Any]] = {}
    """Options with which a run on a hundred small images takes a second: `bdaudit plugins check` uses them."""

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None = None) -> Self:
        """Validate options given as text or values; one clear line for the first that is wrong."""
        options = dict(options or {})
        for key in options:
            if key not in cls.model_fields:
                known = ", ".join(cls.model_fields) or "none"
                raise OptionError(
                    f"{cls.name} has no option {one_line(key, 40)!r}{did_you_mean(key, cls.model_fields)} (options: {known})"
                )
        try:
            return cls(**options)
        except ValidationError as e:
            raise OptionError(f"{cls.name}: -o {first_mistake(e)}") from None

    def reads(self) -> dict[str, Path]:
        """The files and folders that options name, by option; without those that are not given."""
        named = [n for n, f in type(self).model_fields.items() if dict(f.json_schema_extra or {}).get("reads")]  # type: ignore[arg-type]
        return {n: Path(path) for n in named if (path := getattr(self, n))}

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """Name the inputs that cannot be done without."""
        return tuple(n for n, optional in signature_of(cls).items() if not optional)

    @classmethod
    def wants(cls) -> tuple[str, ...]:
        """Name all inputs, optional ones (parameters with a default) included."""
        return tuple(signature_of(cls))

    @classmethod
    def oracle(cls) -> tuple[str, ...]:
        """Name the inputs that a real defender would not have."""
        return tuple(n for n in cls.wants() if RESOURCES[n].oracle)

    @classmethod
    def family(cls) -> str:
        """What sort of its kind it is, where the kind knows several."""
        return ""

    @classmethod
    def traits(cls) -> dict[str, str]:
        """What else tells plugins of its kind apart: one column each in the list of a kind."""
        return {}

    @classmethod
    def claim(cls) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]

    @classmethod
    def describe_options(cls) -> list[dict[str, str]]:
        """One row an option: name, type, default, help, citation."""
        return [
            {
                "option": name,
                "type": _type_name(field),
                "default": str(field.default),
                "what": field.description or "",
                "cite": str((field.json_schema_extra or {}).get("cite", "")),  # type: ignore[union-attr]
            }
            for name, field in cls.model_fields.items()
        ]

    def grant(self, available: Mapping[str, Any]) -> dict[str, Any]:
        """Pick exactly the declared inputs out of what is available; say what is missing before any work."""
        granted = {}
        for name, optional in signature_of(type(self)).items():
            if available.get(name) is not None:
                granted[name] = available[name]
            elif not optional:
                raise MissingInput(missing_message(self.name, name))
        return granted


class Preset(Plugin):
    """Options with `-o preset=NAME`, which takes a paper's settings, or those for a data set, all at once."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What each preset sets; options that are given as well override it."""

    preset: str = option("", "take a paper's settings where none are given")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**cls.presets.get(str(given.get("preset")), {}), **given}

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, name: str) -> str:
        if name and name not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise ValueError(f"no such preset{did_you_mean(name, cls.presets)} (presets: {known})")
        return name

    @classmethod
    def inapplicable(cls) -> set[str]:
        """Name the options of the base class that mean nothing here, and are not listed."""
        return set() if cls.presets else {"preset"}

    @classmethod
    def describe_options(cls) -> list[dict[str, str]]:
        """One row an option that applies; a preset's names the settings that it stands for."""
        rows = [row for row in super().describe_options() if row["option"] not in cls.inapplicable()]
        settings = [f"{name} ({' '.join(f'{k}={v}' for k, v in sets.items())})" for name, sets in cls.presets.items()]
        for row in rows:
            if row["option"] == "preset":
                row["what"] += f": {', '.join(settings)}"
        return rows


def missing_message(plugin: str, name: str) -> str:
    """Say what a plugin lacks and how to give it."""
    resource = RESOURCES[name]
    oracle = "; a real defender would not have one" if resource.oracle else ""
    return f"{plugin} needs {name} ({resource.claim}): give {resource.source}{oracle}"


@cache
def signature_of(cls: type[Plugin]) -> dict[str, bool]:
    """Map each input that a plugin's method names to whether it is optional; reject unknown names."""
    function: Callable[..., Any] | None = getattr(cls, cls.method, None)
    if function is None:
        raise PluginError(f"{cls.__name__} does not define {cls.method}")
    inputs = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PluginError(
                f"{cls.__name__}.{cls.method}: *{parameter.name} asks for everything; name what is needed"
            )
        if parameter.name not in RESOURCES:
            raise PluginError(
                f"{cls.__name__}.{cls.method} asks for {parameter.name!r}, which is not a resource"
                f"{did_you_mean(parameter.name, RESOURCES)}"
            )
        inputs[parameter.name] = parameter.default is not parameter.empty
    return inputs


def check_class(cls: object, kind: type[Plugin]) -> type[Plugin]:
    """Make sure that what a hook returned is a usable plugin class; PluginError says what is wrong."""
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise PluginError(f"{cls!r} is not a subclass of {kind.__name__}")
    if not isinstance(getattr(cls, "name", None), str) or not cls.name.replace("-", "").isalnum():
        raise PluginError(f"{cls.__name__}.name must be letters, digits and hyphens")
    if not cls.__dict__.get("__doc__"):
        raise PluginError(f"{cls.__name__} has no docstring; its first line is what users read in the list")
    if any(field.is_required() for field in cls.model_fields.values()):
        raise PluginError(f"{cls.__name__} has an option without a default")
    signature_of(cls)
    return cls


def _type_name(field: FieldInfo) -> str:
    annotation = field.annotation
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = [f"{words[n]} {getattr(m, n):g}" for m in field.metadata for n in words if hasattr(m, n)]
    return f"{name} ({', '.join(limits)})" if limits else name
