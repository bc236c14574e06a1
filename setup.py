"""Builds torch_fastinit._C: writes one build.ninja and runs it. Everything else is in pyproject.toml.

The C++ code knows nothing of torch, so neither does this file.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
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

# csrc/cpu_kernels.cpp and csrc/statistics_kernels.cpp are compiled once for each of these; csrc/cpu.cpp chooses among
# them at run time.
INSTRUCTION_SETS = {"scalar": ""}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = "-mavx2 -mfma"
    INSTRUCTION_SETS["avx512"] = (
        "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512 "
        "-Wno-maybe-uninitialized"  # GCC 12's own headers: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
    )
elif platform.machine() in ("aarch64", "arm64"):
    INSTRUCTION_SETS["neon"] = "-DFASTINIT_NEON"


# csrc/cuda.cu is compiled for each of these that nvcc knows, and as PTX for GPUs between them and to come: of the last
# one up to LAST_PTX, so that 11.0 can compile it. No contraction here either, and host code with the flags of the rest.
CUDA_ARCHITECTURES = ("75", "80", "90", "100", "120")
LAST_PTX = 110
# The first whose kernels take the 32 KB of arguments that a table of fills is.
LEAST_NVCC = (12, 1)
NVCC_FLAGS = (
    "-std=c++17 -O3 -DNDEBUG -fmad=false -Xcompiler=-fPIC,-fvisibility=hidden,-Wall -diag-suppress=1675".split()
)


def find_nvcc() -> str | None:
    """The CUDA compiler, unless FASTINIT_CUDA=0; FASTINIT_CUDA=1 makes its absence an error."""
    wanted = os.environ.get("FASTINIT_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise CompileError(f"FASTINIT_CUDA is {wanted!r}; it can be 0 (no CUDA), 1 (CUDA or an error) or unset")
    if wanted == "0":
        return None
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = [str(Path(home, "bin", "nvcc")) for home in (*homes, "/usr/local/cuda")]
    nvcc = next(
        (path for path in (*found[: len(homes)], shutil.which("nvcc"), found[-1]) if path and shutil.which(path)), None
    )
    if wanted == "1" and nvcc is None:
        raise CompileError("FASTINIT_CUDA=1, but there is no nvcc in $CUDA_HOME/bin, on PATH or in /usr/local/cuda/bin")
    if nvcc is None:
        return None
    release = re.search(r"release (\d+)\.(\d+)", nvcc_says(nvcc, "--version"))
    if release is not None and (int(release[1]), int(release[2])) >= LEAST_NVCC:
        return nvcc
    found_release = "of an unknown release" if release is None else f"of CUDA {release[1]}.{release[2]}"
    message = "{} is {}; the CUDA kernels need {}.{} or newer".format(nvcc, found_release, *LEAST_NVCC)
    if wanted == "1":
        raise CompileError(f"FASTINIT_CUDA=1, but {message}")
    print(f"torch_fastinit: built without CUDA kernels: {message}", file=sys.stderr)
    return None


def nvcc_says(nvcc: str, *arguments: str) -> str:
    answer = subprocess.run([nvcc, *arguments], capture_output=True, text=True)
    return answer.stdout + answer.stderr


def cuda_flags(nvcc: str) -> list[str]:
    """nvcc's flags: one -gencode for each architecture that it knows, or that FASTINIT_CUDA_ARCHITECTURES names."""
    known = set(re.findall(r"sm_(\d+)\b", nvcc_says(nvcc, "--list-gpu-code")))
    named = os.environ.get("FASTINIT_CUDA_ARCHITECTURES", "")
    wanted = named.split(",") if named else [arch for arch in CUDA_ARCHITECTURES if arch in known]
    chosen = [arch for arch in wanted if arch in known]
    if named and chosen != wanted:
        all_known = ",".join(sorted(known, key=int))
        raise CompileError(f"FASTINIT_CUDA_ARCHITECTURES is {named!r}; {nvcc} knows {all_known}")
    if not chosen:
        raise CompileError(f"{nvcc} knows none of the architectures {', '.join(CUDA_ARCHITECTURES)}")
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in chosen]
    ptx = max((arch for arch in chosen if int(arch) <= LAST_PTX), key=int, default=chosen[-1])
    return [*NVCC_FLAGS, *codes, f"-gencode=arch=compute_{ptx},code=compute_{ptx}", "--threads=2"]


def cuda_libraries(nvcc: str) -> list[str]:
    """The static CUDA runtime, from where nvcc itself would link it: one build serves any driver of its generation."""
    line = re.search(r"LIBRARIES=(.*)", nvcc_says(nvcc, "--dryrun", str(CSRC / "cuda.cu")))
    folders = [word for word in shlex.split(line[1] if line else "") if word.startswith("-L")]
    return [*folders, "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def compilations(nvcc: str | None) -> list[tuple[Path, str, list[str]]]:
    """Every compilation of the extension by the C++ compiler: source, stem of the object file, flags of its own."""
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    if nvcc is not None:
        includes.append("-DFASTINIT_CUDA")
    return [
        (CSRC / "bindings.cpp", "bindings", includes),
        (CSRC / "cpu.cpp", "cpu", []),
        (CSRC / "lower.cpp", "lower", []),
        *([(CSRC / "tables.cpp", "tables", [])] if nvcc is not None else []),
        (CSRC / "statistics.cpp", "statistics", []),
        *(
            (CSRC / f"{stem}.cpp", f"{stem}_{isa}", [f"-DFASTINIT_ISA={isa}", *flags.split()])
            for isa, flags in INSTRUCTION_SETS.items()
            for stem in ("cpu_kernels", "statistics_kernels")
        ),
    ]


def write_ninja(folder: Path, target: Path) -> None:
    """Write folder/build.ninja, which builds the shared library ``target``."""

    def path(p: Path) -> str:
        return str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def flags(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    nvcc = find_nvcc()
    libraries = [] if nvcc is None else cuda_libraries(nvcc)
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
        f"  command = $cxx -o $out $in $ldflags {flags(libraries)}",
    ]
    objects = []
    for source, stem, own in compilations(nvcc):
        objects.append(f"{stem}.o")
        lines += [f"build {objects[-1]}: compile {path(source)}", f"  flags = {flags(own)}"]
    if nvcc is not None:
        objects.append("cuda.o")
        lines += [
            "rule compile_cuda",
            f"  command = {flags([nvcc, *cuda_flags(nvcc)])} -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            f"build cuda.o: compile_cuda {path(CSRC / 'cuda.cu')}",
        ]
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


setup(ext_modules=[Extension("torch_fastinit._C", sources=[])], cmdclass={"build_ext": NinjaBuild})
