"""The demo runs, and its checks find what they are for."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import agreement, observe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo() -> Any:
    """What the demo measures and checks with."""

    class Demo:
        describe = staticmethod(observe.describe)
        differences = staticmethod(agreement.differences)
        memory = observe.ResidentMemory

    return Demo


def build(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Embedding(300, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 300))
    model[2].weight = model[0].weight
    model.register_buffer("inverse_frequency", torch.arange(1, 9).reciprocal())
    return model


def test_demo_runs_and_finds_the_models_equal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo", "--quick", "--model", "gpt2", "--json", "medians.json"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "speed-up" in done.stdout
    assert "checked: 29 tensors" in done.stdout
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    medians = json.loads((tmp_path / "medians.json").read_text())["gpt2"]
    assert medians["eager"]["parameters"] == medians["fastinit"]["parameters"] == 198_400


def test_two_eager_builds_agree(demo: Any) -> None:
    a, b, c = (demo.describe(build(seed)) for seed in range(3))
    assert list(demo.differences(a, b, c)) == []
    assert a["2.weight"]["tied_to"] == "0.weight"


def double_std(model: torch.nn.Module) -> None:
    model[0].weight.mul_(2)


def shift_mean(model: torch.nn.Module) -> None:
    model[0].weight.add_(0.1)


def make_constant(model: torch.nn.Module) -> None:
    model[2].bias.fill_(0.0)


def spoil_norm(model: torch.nn.Module) -> None:
    model[1].weight[7] = 1 + 2**-23


def spoil_buffer(model: torch.nn.Module) -> None:
    model.inverse_frequency[3] = 0.2500001


def poison(model: torch.nn.Module) -> None:
    model[0].weight[1, 1] = float("nan")


def untie(model: torch.nn.Module) -> None:
    model[2].weight = torch.nn.Parameter(model[2].weight.clone())


def freeze(model: torch.nn.Module) -> None:
    model[2].bias.requires_grad = False


def narrow(model: torch.nn.Module) -> None:
    model[1].bias.data = model[1].bias.half()


def drop(model: torch.nn.Module) -> None:
    model[2].bias = None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (double_std, "0.weight: std is"),
        (shift_mean, "0.weight: mean is"),
        (make_constant, "2.bias: is constant, eager is random"),
        (spoil_norm, "1.weight: not the bits of eager"),
        (spoil_buffer, "inverse_frequency: not the bits of eager"),
        (poison, "0.weight: has infinities or NaN"),
        (untie, "2.weight: tied_to is 2.weight, eager has 0.weight"),
        (freeze, "2.bias: requires_grad is False, eager has True"),
        (narrow, "1.bias: dtype is torch.float16, eager has torch.float32"),
        (drop, "2.bias: missing"),
    ],
)
def test_differences_are_found(demo: Any, spoil: Any, message: str) -> None:
    a, b, c = (build(seed) for seed in range(3))
    with torch.no_grad():
        spoil(c)
    lines = list(demo.differences(*map(demo.describe, (a, b, c))))
    assert any(line.startswith(message) for line in lines), lines
    assert {line.split(":")[0] for line in lines} == {message.split(":")[0]}


def test_order_counts(demo: Any) -> None:
    a, b = (demo.describe(build(seed)) for seed in range(2))
    c = dict(reversed(copy.deepcopy(b).items()))
    assert "the tensors come in another order" in list(demo.differences(a, b, c))


def test_peak_memory_is_seen_and_forgotten(demo: Any) -> None:
    size = 64 << 20
    memory = demo.memory()
    t = torch.ones(size, dtype=torch.uint8)
    del t
    slack = 16 << 20  # the kernel counts resident pages in batches
    assert size - slack <= memory.peak() <= size + slack
    assert demo.memory().peak() <= slack
