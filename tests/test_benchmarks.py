"""The benchmarks run, and compare fills that do the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_bench_writes_a_row_for_every_case(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "bench.py"
    arguments = ("--elements", "4096", "--rounds", "3", "--only", "normal_ float32", "--json", "bench.json")
    out = run(script, *arguments, "--markdown", "bench.md", cwd=tmp_path)
    report = json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.md").read_text() == out
    labels = [result["case"] for result in report["results"]]
    assert labels[:2] == ["normal_ float32", "trunc_normal_ float32"]
    for label, result in zip(labels, report["results"], strict=True):
        assert f"| {label} " in out
        assert [len(seconds) for seconds in result["seconds"].values()] == [3, 3, 3]
        assert result["speedup"] == pytest.approx(result["GB/s"]["ours"] / result["GB/s"]["torch"])
    assert {"torch", "cpu", "threads", "instruction set"} <= report["environment"].keys()


def test_an_unknown_case_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no case contains 'cauchy_'; there are: uniform_ float32"):
        run(ROOT / "benchmarks" / "bench.py", "--only", "cauchy_", cwd=tmp_path)


def test_pytest_benchmark_has_every_case() -> None:
    out = run("-m", "pytest", "benchmarks", "--benchmark-disable", "-p", "no:cacheprovider", "-q", cwd=ROOT)
    assert " passed" in out
    assert "skipped" not in out


def test_ours_and_theirs_have_one_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from cases import cases

    torch.manual_seed(0)
    for case in cases(sparse_side=256):
        theirs, ours = (case.tensor(1 << 16) for _ in range(2))
        case.theirs(theirs)
        with case.forced():
            case.ours(ours)
        # 65,536 elements. Six standard errors of a deviation: 1.7%; in the sparse matrix, whose kurtosis is 30, 6.3%.
        limit = 0.063 if "sparse" in case.label else 0.017
        assert ours.float().std().item() == pytest.approx(theirs.float().std().item(), rel=limit * 2**0.5), case.label
        assert ours.float().mean().item() == pytest.approx(theirs.float().mean().item(), abs=0.034), case.label


def test_overheads_prints_its_tables(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "overheads.py"
    arguments = "--pairs 1 --rounds 2 --tensors 10 20 --repeats 2 --json overheads.json".split()
    out = run(script, *arguments, cwd=tmp_path)
    report = json.loads((tmp_path / "overheads.json").read_text())
    assert "| torch_fastinit alone, after torch " in out
    assert {"normal_", "uniform_", "ones_", "trunc_normal_"} <= report["eager"].keys()
    for name, least in report["eager"].items():
        assert f"| {name} " in out
        assert 0 < least["ours"] < 1
    assert list(report["many"]) == ["10", "20"]
    for least in report["many"].values():
        rest = least["materialize"] - least["fills"] - least["memory"]
        assert 0 < least["planning and binding"] == pytest.approx(rest)
