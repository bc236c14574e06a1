"""The GPU's conversions and square root (csrc/lanes/ptx.h), as the PTX ISA describes them, against the stream."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from kernels.test_cuda_shim import Shim, compiled, shim
from support.bits import SEED, STREAM, dirty
from support.layouts import raw

from torch_fastinit.initializers import Initializer, Normal, TruncatedNormal, Uniform
from torch_fastinit.ops import Fill, Region, fill

__all__ = ["compiled", "shim"]  # fixtures

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-x c++ -std=c++17 -O3 -ffp-contract=off -pthread"


def test_conversions_and_roots(tmp_path: Path) -> None:
    """The edges of every region and 2^24 float32s; every mantissa, parity and start of a root."""
    machine = ["-mfma"] if "x86" in os.uname().machine else []
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    source, program = ROOT / "tools" / "ptx.cu", tmp_path / "ptx"
    subprocess.run([*compiler, *FLAGS.split(), *machine, str(source), "-o", str(program)], check=True)
    out = subprocess.run([str(program), str(2**24)], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    lines = out.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "sqrt"]
    assert all(int(line.split()[1]) >= 2**24 and " 0 wrong" in line for line in lines), out.stdout


INF = float("inf")
# On either side of what the GPU's conversion may be given: NaN, and in float8_e5m2 what rounds to infinity.
EDGES = [
    *(Normal(0.0, std) for std in (9200.0, 9220.0, 1e38, INF)),
    *(Normal(mean, 1.0) for mean in (61430.0, -61439.0, INF, -INF)),
    *(Uniform(-57344.0, top) for top in (57344.0, 61440.0, 70000.0, 3e38)),
    *(TruncatedNormal(0.0, 3e4, -bound, bound) for bound in (57344.0, 61440.0, INF)),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_what_the_gpu_would_round_otherwise_is_not_given_to_it(
    dtype: torch.dtype, shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Against the CPU's kernels, where NaN and infinity are torch's.
    def values(initializer: Initializer) -> torch.Tensor:
        tensor = dirty((4096,), dtype)
        fill([Fill(tensor, initializer, SEED, STREAM)])
        return raw(tensor)

    ours = [values(initializer) for initializer in EDGES]
    monkeypatch.undo()
    for initializer, a in zip(EDGES, ours, strict=True):
        assert torch.equal(a, values(initializer)), initializer


def test_the_root_of_zero_keeps_its_sign(shim: Shim) -> None:
    # The largest radius words (one in 2^25) give a radius of -0, which only a mean of -0 shows. Here lies one.
    there = Region((2**30,), (106_776_232,))
    tensor = torch.empty(4)
    fill([Fill(tensor, Normal(-0.0, 1.0), SEED, STREAM, there)])
    assert (tensor[2:] == 0.0).all()
    assert tensor[2:].signbit().tolist() == [False, True]
