"""Imports go one way, and the core knows no concrete plugin."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bdaudit

ROOT = Path(bdaudit.__file__).parent
# Lower layers first; a module may import from its own layer and from those before it.
LAYERS = [
    ("errors",),
    ("ops",),
    ("runtime",),
    ("inputs",),
    ("training",),
    ("report.schema", "report.statistics", "report.verdict", "report.pictures", "report"),
    ("contract", "hookspecs"),
    ("attacks",),
    ("defenses",),
    ("probes",),
    ("importers",),
    ("plugins",),
    ("flow",),
    ("testing",),
    ("api",),
    ("bench",),
    ("cli", "__main__"),
]
BASES = {
    "bdaudit.attacks.adversarial_embedding",
    "bdaudit.attacks.networks",
    "bdaudit.attacks.base",
    "bdaudit.attacks.triggers",
    "bdaudit.defenses.base",
    "bdaudit.defenses.inverting",
    "bdaudit.defenses.splitting",
    "bdaudit.probes.base",
    "bdaudit.probes.queries",
}
KINDS = ("bdaudit.attacks", "bdaudit.defenses", "bdaudit.probes")
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    inner = module.removeprefix("bdaudit.")
    matches = [
        (len(prefix), i) for i, row in enumerate(LAYERS) for prefix in row if f"{inner}.".startswith(f"{prefix}.")
    ]
    assert matches, f"{module} belongs to no layer"
    return max(matches)[1]


def imports_of(path: Path) -> set[str]:
    """Modules of bdaudit imported at run time (annotations-only imports under TYPE_CHECKING do not count)."""
    found = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            for child in ast.walk(node):
                if isinstance(child, ast.ImportFrom) and child.module and child.module.startswith("bdaudit"):
                    for alias in child.names:
                        inner = ROOT.parent / Path(*child.module.split("."))
                        is_module = (inner / f"{alias.name}.py").exists() or (
                            inner / alias.name / "__init__.py"
                        ).exists()
                        found.add(f"{child.module}.{alias.name}" if is_module else child.module)
                elif isinstance(child, ast.Import):
                    found.update(a.name for a in child.names if a.name.startswith("bdaudit."))

    visit(ast.parse(path.read_text()).body)
    return found - {"bdaudit"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    own = layer(name_of(path))
    wrong = {m for m in imports_of(path) if layer(m) > own}
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_core_imports_no_concrete_plugin(path: Path) -> None:
    concrete = {m for m in imports_of(path) if m.startswith(KINDS) and m not in BASES and m not in KINDS}
    assert not concrete


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bdaudit.cli.main import _run; _run(['--help'], debug=True); "
        "print(sorted({'torch', 'numpy', 'pydantic', 'rich', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_what_few_commands_need_is_not_imported_by_all_that_compute() -> None:
    """scipy alone takes half as long to import as torch."""
    code = (
        "import sys; from bdaudit import api, plugins; assert not plugins.registry().broken; "
        "print(sorted({'scipy', 'sklearn', 'matplotlib', 'torchvision', 'jinja2', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(map(name_of, (ROOT.parent / "benchmarks").rglob("[a-z]*.py"))))
def test_a_benchmark_still_imports(name: str) -> None:
    """Nobody runs them all after a change of what they use."""
    importlib.import_module(name)
