"""What several test files use."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from bdaudit.attacks.badnets import BadNets
from bdaudit.attacks.base import Poisoned
from bdaudit.attacks.triggers import Trigger
from bdaudit.inputs.architectures import complete, fresh, parse
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.metrics import attack_rates


def make_tiny(arch: str = "small_cnn:width=4", seed: int = 0) -> Classifier:
    dataset = load_dataset("digits")
    return fresh(complete(parse(arch)), dataset.preprocessing, dataset.classes, generator(seed)).eval()


def poisoned(train: Pool, target: int, rate: float = 0.1) -> tuple[Poisoned, Trigger]:
    """Plant BadNets in a pool."""
    attack = BadNets(rate=rate)
    trigger = attack.make_trigger(train.shape)
    return attack.poison(train, trigger, Goal(target, 10), make_tiny(), generator(1)), trigger


def asr(model: Classifier, trigger: Trigger, test: Pool, target: int) -> float:
    return attack_rates(model, trigger.on(test), Goal(target, 10))[0].value


def snapshot(folder: Path) -> set[str]:
    """Every path below a folder, hidden ones included."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def fresh_environment(folder: Path) -> dict[str, str]:
    """Make a virtual environment that sees this one's packages, and return the variables that activate it.

    What is installed goes into the new one alone, and comes from this machine alone.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        [purelib] = folder.glob("lib/python*/site-packages")
        here = sysconfig.get_paths()["purelib"]
        (purelib / "parent.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        commands = {"pip": "pip._internal.cli.main", "pytest": "pytest", "bdaudit": "bdaudit.cli.main"}
        for name, module in commands.items():
            script = folder / "bin" / name
            script.write_text(f"#!{python}\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
            script.chmod(0o755)
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **offline, "PATH": path, "VIRTUAL_ENV": str(folder)}
