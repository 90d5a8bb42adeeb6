"""Absent kernels fall back to torch; broken ones are an error; setup.py says what it built."""

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from common import needs_kernels

from bdaudit import ops
from bdaudit.errors import BackendError
from bdaudit.ops import extension

ROOT = Path(__file__).parents[2]
IMAGES = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
PATTERN = torch.full((1, 4, 4), 255, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def forget_extension() -> Iterator[None]:
    extension.load.cache_clear()
    yield
    extension.load.cache_clear()


def found_at(monkeypatch: pytest.MonkeyPatch, path: Path | None) -> None:
    """Make Python find the extension in a certain file, or nowhere."""
    spec = None
    if path is not None:
        loader = importlib.machinery.ExtensionFileLoader(extension.NAME, str(path))
        spec = importlib.util.spec_from_file_location(extension.NAME, path, loader=loader)
    monkeypatch.delitem(sys.modules, extension.NAME, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    monkeypatch.setattr(importlib, "import_module", lambda name: importlib.util.module_from_spec(spec))


def test_without_the_extension_torch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ops.blend(IMAGES, PATTERN, 0.25)
    extension.load.cache_clear()
    found_at(monkeypatch, None)
    assert torch.equal(ops.blend(IMAGES, PATTERN, 0.25), expected)
    told = ops.backend()
    assert (told["cpu"], told["cuda"], told["path"], told["cuda_built"]) == (
        "reference",
        "reference",
        None,
        False,
    )
    assert told["note"]


def test_a_file_that_does_not_load_is_an_error_on_use_not_on_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    garbage = tmp_path / "_csrc.so"
    garbage.write_bytes(b"not a shared object\n" * 100)
    found_at(monkeypatch, garbage)
    for use in (partial(ops.blend, IMAGES, PATTERN, 0.25), ops.backend):
        with pytest.raises(BackendError) as caught:
            use()
        assert str(garbage) in str(caught.value)
        assert "rebuild" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_package_with_a_garbage_extension_imports_and_says_so(tmp_path: Path) -> None:
    """The same in a process of its own, with Python's own search, on a copy of the package."""
    package = tmp_path / "bdaudit" / "ops"
    package.mkdir(parents=True)
    (tmp_path / "bdaudit" / "__init__.py").touch()
    for name in ("errors.py", *(f"ops/{path.name}" for path in (ROOT / "bdaudit" / "ops").glob("*.py"))):
        (tmp_path / "bdaudit" / name).write_text((ROOT / "bdaudit" / name).read_text())
    (package / f"_csrc{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF, but no more")
    program = (
        "from bdaudit import ops; from bdaudit.errors import BackendError\n"
        "try: ops.backend()\n"
        "except BackendError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert str(package) in done.stdout
    assert "does not load" in done.stdout


def test_another_versions_extension_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = SimpleNamespace(abi=extension.ABI + 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin="/somewhere/_csrc.so"))
    monkeypatch.setattr(importlib, "import_module", lambda name: stale)
    with pytest.raises(BackendError, match=rf"has interface {extension.ABI + 1}, expected {extension.ABI}"):
        extension.load()


def test_a_failing_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: int) -> None:
        raise RuntimeError("CUDA: launching blend failed: invalid device ordinal")

    monkeypatch.setattr(extension, "load", lambda: SimpleNamespace(blend_cpu=broken))
    with pytest.raises(BackendError, match="blend_cpu failed: CUDA: launching blend failed"):
        ops.blend(IMAGES, PATTERN, 0.25)


@needs_kernels
def test_backend_describes_the_loaded_extension() -> None:
    told = ops.backend()
    assert told["cpu"] == "extension"
    assert told["cuda"] == ("extension" if told["cuda_built"] else "reference")
    assert Path(told["path"]).is_file()
    assert bool(told["cuda_architectures"]) == told["cuda_built"]
    assert told["isa"] in ("portable", "avx2", "avx512")
    if told["isa"] != "portable":
        assert told["cpu_features"]["avx2"]


def setup_module_of_the_project() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bdaudit_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gpu_targets_are_spelled_as_torch_spells_them() -> None:
    translate = setup_module_of_the_project().cuda_architectures
    assert translate("8.0;9.0+PTX") == "80-real;90-real;90-virtual"
    assert translate("7.5 9.0a, 12.0") == "75-real;90a-real;120-real"
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST has 'Hopper'"):
        translate("Hopper")


def test_cuda_is_decided_aloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decide = setup_module_of_the_project().cuda_options
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BDAUDIT_CUDA", raising=False)
    assert decide() == (["-DBDAUDIT_CUDA=OFF"], "building without CUDA (no nvcc in CUDA_HOME or on PATH)")
    monkeypatch.setenv("BDAUDIT_CUDA", "1")
    with pytest.raises(SystemExit, match="BDAUDIT_CUDA=1 but there is no nvcc"):
        decide()
    monkeypatch.setenv("BDAUDIT_CUDA", "yes")
    with pytest.raises(SystemExit, match="expected auto, 0 or 1"):
        decide()
    monkeypatch.setenv("BDAUDIT_CUDA", "auto")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    options, decision = decide()
    assert f"-DCMAKE_CUDA_COMPILER={nvcc}" in options
    assert decision == f"building with CUDA: {nvcc}, architectures 80-real;90-real;90-virtual"
    monkeypatch.setenv("BDAUDIT_CUDA", "0")
    assert decide() == (["-DBDAUDIT_CUDA=OFF"], "building without CUDA (BDAUDIT_CUDA=0)")


def test_a_wrapper_script_leads_to_its_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toolkit, wrappers = tmp_path / "cuda" / "bin", tmp_path / "wrappers"
    for folder, script in ((toolkit, "exit 0"), (wrappers, f"echo '#$ TOP={toolkit}/..' >&2")):
        folder.mkdir(parents=True)
        (folder / "nvcc").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "nvcc").chmod(0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{wrappers}:/usr/bin:/bin")
    assert setup_module_of_the_project().find_nvcc() == toolkit / "nvcc"
