"""Builds torch_fastinit._C: writes one build.ninja and runs it. Everything else is in pyproject.toml.

The C++ code knows nothing of torch, so neither does this file.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# The kernels promise the same bits everywhere: no contraction of a * b + c behind our back, nothing like -ffast-math.
CXX_FLAGS = (
    "-std=c++17 -O3 -DNDEBUG -fPIC -fvisibility=hidden -pthread -ffp-contract=off -fno-math-errno -Wall -Wextra"
).split()

# csrc/cpu_kernels.cpp is compiled once for each of these; csrc/cpu.cpp chooses among them at run time.
INSTRUCTION_SETS = {"scalar": ""}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = "-mavx2 -mfma"
    INSTRUCTION_SETS["avx512"] = (
        "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512 "
        "-Wno-maybe-uninitialized"  # GCC 12's own headers: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
    )


def compilations() -> list[tuple[Path, str, list[str]]]:
    """Every compilation of the extension: source, stem of the object file, flags of its own."""
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    return [
        (CSRC / "bindings.cpp", "bindings", includes),
        (CSRC / "cpu.cpp", "cpu", []),
        (CSRC / "lower.cpp", "lower", []),
        *(
            (CSRC / "cpu_kernels.cpp", f"cpu_kernels_{isa}", [f"-DFASTINIT_ISA={isa}", *flags.split()])
            for isa, flags in INSTRUCTION_SETS.items()
        ),
    ]


def write_ninja(folder: Path, target: Path) -> None:
    """Write folder/build.ninja, which builds the shared library ``target``."""

    def path(p: Path) -> str:
        return str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def flags(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {os.environ.get('CXX', 'c++')}",
        f"cxxflags = {flags([*CXX_FLAGS, *shlex.split(os.environ.get('CXXFLAGS', ''))])}",
        f"ldflags = {flags(['-shared', '-pthread', *shlex.split(os.environ.get('LDFLAGS', ''))])}",
        "rule compile",
        "  command = $cxx $cxxflags $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $cxx -o $out $in $ldflags",
    ]
    objects = []
    for source, stem, own in compilations():
        objects.append(f"{stem}.o")
        lines += [f"build {objects[-1]}: compile {path(source)}", f"  flags = {flags(own)}"]
    lines += [f"build {path(target)}: link {' '.join(objects)}", f"default {path(target)}", ""]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(lines))


class NinjaBuild(build_ext):
    """build_ext with ninja as the compiler driver."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not self.build_temp, which is a new folder at every editable install: rebuilds take only what changed.
        folder = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        write_ninja(folder, target)
        if subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder)]).returncode != 0:
            raise CompileError(f"ninja could not build {target.name}; the compiler's message is above")


setup(
    ext_modules=[Extension("torch_fastinit._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
