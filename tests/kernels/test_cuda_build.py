"""csrc/cuda.cu as nvcc built it, without a GPU: its targets, its resources and the instructions of its hot loops."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from torch_fastinit import _C

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


sass = load(ROOT / "tools" / "sass.py")
ptx_check = load(ROOT / "tools" / "ptx_check.py")

needs_cuda = pytest.mark.skipif(
    not _C.has_cuda(), reason="this build has no CUDA kernels (no nvcc, or FASTINIT_CUDA=0)"
)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="cuobjdump comes with Triton, which is not installed"
)


@needs_cuda
@needs_triton
def test_targets_and_resources() -> None:
    # `make test` builds for these two, which the other tests read; .ci/run looks at a wheel for all.
    assert sass.misfits(sass.built_object(), {"90", "100"}) == []
    assert sass.misfits(sass.built_object(), {"17"}) == ["no code for 17"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], dict[str, str]]:
    """The rows of tools/sass.py for sm_90, and the PTX of each kernel."""
    # In a process of its own, which imports Triton to compile: this one may have it interpreted (conftest.py).
    folder = tmp_path_factory.mktemp("ptx")
    command = [sys.executable, str(ROOT / "tools" / "sass.py"), "--target", "90", "--json", "-", "--ptx", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    out = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    rows = [sass.Row(**row) for row in json.loads(out.stdout)]
    return rows, {path.stem: path.read_text() for path in folder.iterdir()}


@needs_cuda
@needs_triton
def test_instruction_budget(
    compiled: tuple[list[Any], dict[str, str]], record_property: Callable[[str, object], None]
) -> None:
    rows, _ = compiled
    record_property("shown in the summary", sass.table(rows))
    counts = {(row.language, row.distribution, row.dtype): row.per_output for row in rows if row.outputs}
    committed = sass.committed()
    assert counts.keys() == committed.keys()
    for row, count in counts.items():
        assert count <= committed[row] + 0.005, f"{row}: {count:.2f}, and {committed[row]} in tools/sass.md"
    # docs/performance.md has what is over budget, and why.
    page = (ROOT / "docs" / "performance.md").read_text()
    for row, most in sass.BUDGET.items():
        assert (f"| {' | '.join(row)} | {committed[row]:.2f} | {most} |" in page) is (committed[row] > most), row


@needs_cuda
@needs_triton
def test_no_multiplication_is_fused_that_the_source_does_not_fuse(
    compiled: tuple[list[Any], dict[str, str]], tmp_path: Path
) -> None:
    """Counted while the source runs as ordinary C++, and in the machine code."""
    source, program = ROOT / "tests" / "support" / "cuda_shim" / "fmas.cpp", tmp_path / "fmas"
    machine = ["-mfma"] if "x86" in os.uname().machine else []
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    subprocess.run([*compiler, "-std=c++17", "-O0", "-w", *machine, str(source), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    asked = {name: int(number) / 4 for name, number in (line.split(": ") for line in lines)}
    assert asked["uniform"] == 1
    rows = [row for row in compiled[0] if row.language == "CUDA C++"]
    found = {row.distribution: row.fmas for row in rows}
    assert asked.keys() <= found.keys()
    for name, number in found.items():
        kind = name.partition(",")[0]
        if kind in asked:
            assert number == asked[kind], name


@needs_cuda
@needs_triton
def test_nothing_in_the_ptx_breaks_a_promise(compiled: tuple[list[Any], dict[str, str]]) -> None:
    _, texts = compiled
    assert len(texts) == 1 + len(sass.TRITON)
    for name, text in texts.items():
        assert any(i.opcode.startswith("st.global") for i in ptx_check.instructions(text)), name
        assert ptx_check.problems(text) == [], name


KERNEL = """
    ld.param.u64 %rd1, [fill_param_0];
    mov.u32 %r1, %tid.x;
    div.u32 %r2, %r1, %r9;
    mul.lo.s32 %r3, %r2, %r9;
    sub.s32 %r4, %r1, %r3;
    cvt.u64.u32 %rd2, %r4;
    mad.lo.s64 %rd3, %rd2, 16, %rd1;
    cvta.to.global.u64 %rd4, %rd3;
    fma.rn.f32 %f1, %f2, %f3, %f4;
    mul.rn.f64 %fd1, %fd2, %fd3;
    rsqrt.approx.ftz.f32 %f5, %f1;
    @%p1 st.global.v4.u32 [%rd4+16], {%r5, %r6, %r7, %r8};
"""


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("mul.rn.f64", "mul.f64", "may be contracted"),
        ("mul.rn.f64 %fd1, %fd2, %fd3", "fma.rn.f64 %fd1, %fd2, %fd3, %fd4", "an fma in float64"),
        ("fma.rn.f32", "fma.rn.ftz.f32", "flushes subnormals"),
        ("rsqrt.approx.ftz.f32", "sqrt.approx.f32", "an approximation"),
        ("mul.rn.f64", "div.full.f32", "an approximation"),
        ("div.u32 %r2, %r1, %r9", "add.s32 %r2, %r1, %r9", "mul.lo.s32: part of the address"),
        ("cvt.u64.u32 %rd2, %r4", "mul.wide.u32 %rd2, %r3, 4", ""),  # of the quotient still
        ("sub.s32 %r4, %r1, %r3", "mad.lo.s32 %r4, %r1, %r9, %r5", "mad.lo.s32: part of the address"),
        ("mov.u32 %r1", "ld.local.u32 %r1", "local memory"),
        ("mov.u32 %r1, %tid.x", "call.uni (%r1), root, (%r9)", "a call"),
        ("mov.u32 %r1, %tid.x", ".local .align 8 .b8 depot[64]", "local memory"),
    ],
)
def test_what_the_ptx_is_read_for_is_found(before: str, after: str, complaint: str) -> None:
    assert ptx_check.problems(KERNEL) == []
    assert before in KERNEL
    found = ptx_check.problems(KERNEL.replace(before, after))
    assert [complaint in line for line in found] == ([True] if complaint else [])


def test_the_runtime_is_linked_statically() -> None:
    out = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True, check=True)
    assert "cudart" not in out.stdout
    assert "libcuda" not in out.stdout  # opened when it is first used
    assert "torch" not in out.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the build is for Linux")
@pytest.mark.parametrize(
    ("value", "message"),
    [("1", "FASTINIT_CUDA=1, but there is no nvcc"), ("yes", "FASTINIT_CUDA is 'yes'; it can be 0")],
)
def test_a_wish_for_cuda_that_cannot_be_granted_fails(value: str, message: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH", "PATH")}
    code = (
        "import sys; sys.argv = ['setup.py', '--version']; import runpy; n = runpy.run_path('setup.py');"
        "n['Path'].exists; n['shutil'].which = lambda *a, **k: None; n['find_nvcc']()"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"FASTINIT_CUDA": value, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert out.returncode != 0
    assert message in out.stderr


def test_built_without_nvcc_when_told(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['setup.py', '--version']; import runpy; n = runpy.run_path('setup.py');"
        f"p = n['Path']({str(tmp_path)!r}); n['write_ninja'](p, p / 'x.so')"
    )
    for value, has in (("0", False), ("", _C.has_cuda())):
        environment = dict(os.environ, FASTINIT_CUDA=value)
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
        ninja = (tmp_path / "build.ninja").read_text()
        assert ("cuda.o" in ninja) is has
        assert ("FASTINIT_CUDA" in ninja) is has


@needs_cuda
def test_for_the_architectures_that_are_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['setup.py', '--version']; import runpy; n = runpy.run_path('setup.py');"
        f"p = n['Path']({str(tmp_path)!r}); n['write_ninja'](p, p / 'x.so')"
    )
    for named, reason in (("90", ""), ("80,90", ""), ("90,17", "'90,17'"), ("sm_90", "'sm_90'")):
        environment = dict(os.environ, FASTINIT_CUDA_ARCHITECTURES=named)
        out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        if reason:
            assert f"FASTINIT_CUDA_ARCHITECTURES is {reason}; " in out.stderr
            assert out.returncode != 0
        else:
            codes = re.findall(r"code=sm_(\d+)", (tmp_path / "build.ninja").read_text())
            assert ",".join(codes) == named


@pytest.mark.parametrize("release", ["11.8", "12.0", "12.1", "13.0", None])
def test_an_nvcc_that_is_too_old_is_left_out(release: str | None, tmp_path: Path) -> None:
    """A table of fills is a kernel argument of 32 KB, which CUDA 12.1 was the first to take."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    line = f"Cuda compilation tools, release {release}, V{release}.99" if release else "nvcc: what?"
    nvcc.write_text(f"#!/bin/sh\necho '{line}'\n")
    nvcc.chmod(0o755)
    code = (
        "import sys; sys.argv = ['setup.py', '--version']; import runpy; n = runpy.run_path('setup.py');"
        "print('found', n['find_nvcc']())"
    )
    for wish in ("", "1"):
        environment = dict(os.environ, CUDA_HOME=str(tmp_path), FASTINIT_CUDA=wish)
        out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        if release in ("12.1", "13.0"):
            assert f"found {nvcc}" in out.stdout
            assert out.stderr == ""
            continue
        kind = f"of CUDA {release}" if release else "of an unknown release"
        message = f"{nvcc} is {kind}; the CUDA kernels need 12.1 or newer"
        if wish:
            assert f"FASTINIT_CUDA=1, but {message}" in out.stderr
            assert out.returncode != 0
        else:
            assert "found None" in out.stdout
            assert out.stderr == f"torch_fastinit: built without CUDA kernels: {message}\n"


@needs_triton
def test_shortest_way_round_a_loop() -> None:
    """The counter itself: a slow path that is jumped over does not count, one that must be taken does."""
    lines = [
        "MOV R0, R1",
        "FADD R2, R2, R3",  # 0x10: the head
        "@P0 BRA 0x50",
        "MUFU.RSQ R4, R2",
        "CALL.REL.NOINC 0x900",
        "STG.E.128 [R4], R8",  # 0x50
        "@P1 BRA 0x10",
        "EXIT",
    ]
    code = sass.disassemble(
        "\n".join(f"        /*{16 * n:04x}*/   {line} ;  /* 0x0 */" for n, line in enumerate(lines))
    )
    (way,) = sass.loops(code)
    assert [i.words[0] for i in way] == ["FADD", "BRA", "STG.E.128", "BRA"]
    assert sass.outputs(way) == 4
    assert json.dumps([i.address for i in way]) == "[16, 32, 80, 96]"
