"""Build bdaudit.ops._csrc with CMake and Ninja; everything else about the package is in pyproject.toml.

BDAUDIT_CUDA          auto (default): with the CUDA kernels where nvcc is found; 1: fail without nvcc;
                      0: without them
TORCH_CUDA_ARCH_LIST  GPU targets as torch spells them, "8.0;9.0+PTX" being the default
CUDA_HOME             a toolkit to prefer to the nvcc on PATH
"""

import importlib
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


def cuda_architectures(targets: str) -> str:
    """Translate torch's list of GPU targets to CMake's: "8.0;9.0+PTX" is 80-real;90-real;90-virtual."""
    names = []
    for target in re.split(r"[\s;,]+", targets.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", target)
        if match is None:
            raise SystemExit(
                f"bdaudit: TORCH_CUDA_ARCH_LIST has {target!r}; expected versions such as 8.0 or 9.0a+PTX, "
                "separated by ';'"
            )
        major, minor, variant, ptx = match.groups()
        names += [f"{major}{minor}{variant}-{kind}" for kind in ("real", "virtual") if kind == "real" or ptx]
    return ";".join(dict.fromkeys(names))


def find_nvcc() -> Path | None:
    """Find the toolkit's own nvcc, which may stand behind a wrapper script on PATH."""
    home = os.environ.get("CUDA_HOME")
    found = (home and shutil.which("nvcc", path=str(Path(home, "bin")))) or shutil.which("nvcc")
    if not found:
        return None
    told = subprocess.run([found, "--dryrun", "bdaudit.cu"], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", told.stderr, re.MULTILINE)
    real = Path(top[1].strip(), "bin", "nvcc").resolve() if top else None
    return real if real and real.is_file() else Path(found)


def cuda_options() -> tuple[list[str], str]:
    """Decide about CUDA: the options for CMake, and a line that says what was decided."""
    wanted = os.environ.get("BDAUDIT_CUDA", "auto").strip().lower() or "auto"
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"bdaudit: BDAUDIT_CUDA is {wanted!r}; expected auto, 0 or 1")
    if wanted == "0":
        return ["-DBDAUDIT_CUDA=OFF"], "building without CUDA (BDAUDIT_CUDA=0)"
    nvcc = find_nvcc()
    if nvcc is None:
        if wanted == "1":
            raise SystemExit(
                "bdaudit: BDAUDIT_CUDA=1 but there is no nvcc in CUDA_HOME or on PATH; "
                "install a CUDA toolkit, or set BDAUDIT_CUDA=0 to build without CUDA"
            )
        return ["-DBDAUDIT_CUDA=OFF"], "building without CUDA (no nvcc in CUDA_HOME or on PATH)"
    architectures = cuda_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES)
    options = [
        "-DBDAUDIT_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
    ]
    return options, f"building with CUDA: {nvcc}, architectures {architectures}"


def find_tool(name: str, folder: str) -> str:
    """Find cmake or ninja: the wheel in this Python's environment first, else what PATH has."""
    try:
        return str(Path(getattr(importlib.import_module(name), folder), name))
    except (ImportError, AttributeError):
        found = shutil.which(name)
    if found is None:
        raise SystemExit(f"bdaudit: building needs {name}; pip install {name}")
    return found


class BuildCMake(build_ext):
    """Build an extension by running CMake in csrc."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cuda, decision = cuda_options()
        self.announce(f"bdaudit: {decision}", logging.WARNING)
        cmake = find_tool("cmake", "CMAKE_BIN_DIR")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "csrc"
        # Fresh, because pip's isolated build leaves a cache that names tools in a folder long gone.
        configure = [
            *(cmake, "--fresh", "-G", "Ninja", "-S", str(ROOT / "csrc"), "-B", str(build)),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja', 'BIN_DIR')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DBDAUDIT_OUTPUT={build / 'module'}",
            *cuda,
        ]
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build)], check=True)
        except subprocess.CalledProcessError as error:
            remedy = "; BDAUDIT_CUDA=0 builds without CUDA" if "-DBDAUDIT_CUDA=ON" in cuda else ""
            raise SystemExit(f"bdaudit: compiling csrc failed, see the messages above{remedy}") from error
        [module] = (build / "module").glob("_csrc*.so")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced, never written over: a process that has the old module mapped keeps it.
        shutil.copy2(module, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)


if __name__ == "__main__":
    setup(ext_modules=[Extension("bdaudit.ops._csrc", sources=[])], cmdclass={"build_ext": BuildCMake})
