"""A GPU's conversions and square root over every float32: tools/ptx.cu, compiled for the GPU at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")

ROOT = Path(__file__).resolve().parents[2]


def test_every_float32(tmp_path: Path) -> None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [shutil.which(str(Path(home, "bin", "nvcc"))) for home in homes if home]
    nvcc = next((path for path in (*found, shutil.which("nvcc")) if path), None)
    if nvcc is None:
        pytest.skip("nvcc is not installed: nothing compiles tools/ptx.cu")
    major, minor = torch.cuda.get_device_capability()
    program = tmp_path / "ptx"
    flags = f"-std=c++17 -O3 -fmad=false -diag-suppress=1675 -arch=sm_{major}{minor}".split()
    subprocess.run([nvcc, *flags, str(ROOT / "tools" / "ptx.cu"), "-o", str(program)], check=True, timeout=300)
    out = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.count(" 0 wrong") == 5, out.stdout
