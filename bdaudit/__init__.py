"""Purify a backdoored image classifier, then find out whether the purification is real.

    import bdaudit
    purified = bdaudit.purify(model, clean=(images, labels), malicious=flagged, defense="pl")
    report = bdaudit.audit("model.pt", defense="fst", malicious="flagged/")

Names are resolved when first used, so that `import bdaudit` costs nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bdaudit.api import attack as attack
    from bdaudit.api import audit as audit
    from bdaudit.api import demo as demo
    from bdaudit.api import import_record as import_record
    from bdaudit.api import load as load
    from bdaudit.api import purify as purify
    from bdaudit.api import screen as screen
    from bdaudit.api import split as split
    from bdaudit.api import twin as twin
    from bdaudit.errors import BdauditError as BdauditError
    from bdaudit.flow.implant import Sizes as Sizes
    from bdaudit.inputs.classifier import Classifier as Classifier
    from bdaudit.inputs.classifier import Preprocessing as Preprocessing
    from bdaudit.inputs.pool import Pool as Pool
    from bdaudit.report.schema import Policy as Policy
    from bdaudit.report.schema import Report as Report

_HOMES = {
    "attack": "bdaudit.api",
    "audit": "bdaudit.api",
    "demo": "bdaudit.api",
    "import_record": "bdaudit.api",
    "load": "bdaudit.api",
    "purify": "bdaudit.api",
    "screen": "bdaudit.api",
    "split": "bdaudit.api",
    "twin": "bdaudit.api",
    "BdauditError": "bdaudit.errors",
    "Sizes": "bdaudit.flow.implant",
    "Classifier": "bdaudit.inputs.classifier",
    "Preprocessing": "bdaudit.inputs.classifier",
    "Pool": "bdaudit.inputs.pool",
    "Policy": "bdaudit.report.schema",
    "Report": "bdaudit.report.schema",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bdaudit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
