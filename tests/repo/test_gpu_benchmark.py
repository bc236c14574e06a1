"""benchmarks/gpu.py and gpu.sh as far as they run without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]


def test_dry_run_goes_through_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--dry"]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [e["differ"] for e in report["equality"]] == [[]] * len(report["equality"])
    assert report["equality"][0]["fills"] > 800
    assert "no measurement" in report["environment"]["device"]
    for row in report["speed"]:
        assert row["bytes"] > 0
        assert all(seconds > 0 for seconds in row["seconds"].values())
    text = (tmp_path / "gpu.md").read_text()
    assert all(row["fill"] in text for row in report["speed"])


def test_the_llama_shapes_are_those_of_the_model() -> None:
    shapes = gpu.llama_8b()
    parameters = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)
    assert len(shapes) == 291
    assert parameters == 8_030_261_248


def test_the_script_parses_and_says_how_to_be_used() -> None:
    script = ROOT / "benchmarks" / "gpu.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    out = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert out.returncode != 0
    assert "usage: gpu.sh FOLDER" in out.stderr
