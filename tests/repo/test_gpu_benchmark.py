"""benchmarks/gpu.py and gpu.sh as far as they run without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from torch_fastinit.initializers import Normal

ROOT = Path(__file__).resolve().parents[2]


def test_the_whole_script_in_a_dry_run(tmp_path: Path) -> None:
    environment = dict(os.environ, PYTHON=sys.executable)
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path), "--dry"]
    out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    stages = dict(line.split(": ", 1) for line in (tmp_path / "stages.txt").read_text().splitlines())
    wanted = ["build", "backends", "measure-1", "cuda", "triton-0", "triton-1", "counters", "sanitizer"]
    assert sorted(stages) == sorted(wanted)
    assert all("status 0" in stages[name] for name in wanted if name not in ("build", "counters"))
    # The tests are found, and here skipped; the two shares of Triton's are about equal.
    skipped = [(tmp_path / f"{name}.log").read_text().count(" SKIPPED") for name in ("cuda", "triton-0", "triton-1")]
    assert skipped[0] > 60
    assert abs(skipped[1] - skipped[2]) <= 1
    assert skipped[1] > 20

    report = json.loads((tmp_path / "gpu.json").read_text())
    text = (tmp_path / "gpu.md").read_text()
    assert "no measurement" in report["environment"]["device"]
    assert [row["fill"] for row in report["rows"]] == list(gpu.cases())
    for row in report["rows"]:
        assert row["errors"] == {}
        assert {"cuda", "triton"} <= row["seconds"].keys()
        assert min(row["seconds"].values()) > 0
        assert row["bytes"] > 0
        assert not any(row["differ"].values())
        assert f"| {row['fill']} |" in text
    assert sum(len(row["differ"]) for row in report["rows"]) > 50
    assert {row["what"] for row in report["threads"]} >= {"one tensor, float32", "one tensor, bfloat16"}


@pytest.fixture
def dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dry run into this folder, in this process."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "--dry", "--only", "row"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return tmp_path


def row(n: int) -> gpu.Case:
    return gpu.one(Normal(), torch.float32, n, torch.Tensor.normal_)


def refuse(t: torch.Tensor) -> None:
    raise RuntimeError("no such kernel")


def test_a_row_that_raises_is_recorded_and_the_rest_goes_on(dry: Path) -> None:
    def no_memory(place: gpu.Place) -> gpu.Material:
        raise MemoryError("none left")

    rows = {"row 1": no_memory, "row 2": gpu.one(Normal(), torch.float32, 1, refuse), "row 3": row(1)}
    assert gpu.main(rows) == 0
    first, second, third = json.loads((dry / "gpu.json").read_text())["rows"]
    assert first["errors"] == {"memory": "MemoryError: none left"}
    assert second["errors"] == {"torch": "RuntimeError: no such kernel"}
    assert second["seconds"].keys() == {"zero_", "cuda", "triton"}
    assert third["errors"] == {}
    assert third["seconds"].keys() == {"zero_", "torch", "cuda", "triton"}
    assert "- row 2, torch: RuntimeError: no such kernel" in (dry / "gpu.md").read_text()


def test_other_bits_than_the_cpus_are_reported(dry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = gpu.differing

    def one_wrong(fills: list[gpu.Fill]) -> int:
        fills[0].tensor[3] += 1.0
        return compare(fills)

    monkeypatch.setattr(gpu, "differing", one_wrong)
    assert gpu.main({"row": row(1)}) == 1
    assert "in 1 rows; 1 elements of row." in (dry / "gpu.md").read_text()


def test_after_a_lost_device_another_process_goes_on(dry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"row 1": row(1), "row 2": row(1)}
    with monkeypatch.context() as lost:
        lost.setattr(gpu.Place, "synchronize", lambda place: refuse(torch.empty(0)))
        assert gpu.main(rows) == gpu.LOST
    (first,) = json.loads((dry / "gpu.json").read_text())["rows"]
    assert first["errors"].keys() == {"zero_", "torch", "cuda", "triton"}
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--resume"])
    assert gpu.main(rows) == 0
    again, second = json.loads((dry / "gpu.json").read_text())["rows"]
    assert again == first
    assert second["errors"] == {}


def test_an_interrupt_leaves_what_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--dry"]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "gpu.json").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    report = json.loads((tmp_path / "gpu.json").read_text())
    names = list(gpu.cases())
    assert 1 <= len(report["rows"]) < len(names)
    assert report["interrupted in"] == names[len(report["rows"])]


def test_no_row_begins_too_late(dry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seconds", "0"])
    assert gpu.main({"row 1": row(1)}) == 0
    assert json.loads((dry / "gpu.json").read_text())["left out"] == ["row 1"]


def test_the_llama_shapes_are_those_of_the_model() -> None:
    shapes = gpu.llama_8b()
    parameters = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)
    assert len(shapes) == 291
    assert parameters == 8_030_261_248


def test_the_script_says_how_to_be_used() -> None:
    out = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu.sh")], capture_output=True, text=True)
    assert out.returncode != 0
    assert "usage: gpu.sh FOLDER" in out.stderr


def test_a_stage_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """By SIGINT and then by force, and the whole ends when its time does."""
    python = tmp_path / "python"
    python.write_text("#!/usr/bin/env bash\ncase $* in *torch_fastinit*) trap '' INT; sleep 100 ;; esac\n")
    python.chmod(0o755)
    begun = time.monotonic()
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "out"), "--dry"]
    out = subprocess.run(command, env=dict(os.environ, PYTHON=str(python), LIMIT="6"), capture_output=True, text=True)
    assert out.returncode != 0
    assert time.monotonic() - begun < 60
    assert "backends: status 137" in (tmp_path / "out" / "stages.txt").read_text()
