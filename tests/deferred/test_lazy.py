"""Lazy modules, parameters that nothing writes, and forks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import torch_fastinit as fastinit

pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")

LAZY = {
    "LazyLinear": (lambda: nn.LazyLinear(4), lambda: nn.Linear(3, 4), (2, 3)),
    "LazyConv2d": (lambda: nn.LazyConv2d(4, 3), lambda: nn.Conv2d(3, 4, 3), (2, 3, 5, 5)),
    "LazyConvTranspose1d": (lambda: nn.LazyConvTranspose1d(4, 3), lambda: nn.ConvTranspose1d(3, 4, 3), (2, 3, 5)),
    "LazyBatchNorm1d": (lambda: nn.LazyBatchNorm1d(), lambda: nn.BatchNorm1d(3), (2, 3)),
}


@pytest.mark.parametrize("name", LAZY)
def test_a_state_dict_gives_a_lazy_module_its_shape(name) -> None:
    lazy, full, _ = LAZY[name]
    state = full().state_dict()
    with fastinit.deferred():
        layer = lazy()
    layer.load_state_dict(state)
    fastinit.materialize(layer, seed=0)
    assert all(torch.equal(t, state[key]) for key, t in layer.state_dict().items())
    assert [type(p) for p in layer.parameters()] == [nn.Parameter] * len(list(layer.parameters()))


@pytest.mark.parametrize("name", LAZY)
def test_the_first_forward_gives_a_lazy_module_its_shape(name) -> None:
    """Outside a context it may be refused, but the module is whole then, and can be materialised."""
    lazy, full, shape = LAZY[name]
    with fastinit.deferred():
        layer = lazy()
    try:
        layer(torch.ones(shape))
    except RuntimeError as error:
        assert "materialize(module)" in str(error)  # noqa: PT017
    fastinit.materialize(layer, seed=0)
    with fastinit.deferred():
        other = full()
    fastinit.materialize(other, seed=0)
    for (key, a), b in zip(layer.state_dict().items(), other.state_dict().values(), strict=True):
        assert key == "num_batches_tracked" or "running" in key or torch.equal(a, b), key
    layer(torch.ones(shape))


@pytest.mark.parametrize("name", LAZY)
def test_materialised_before_the_first_forward(name) -> None:
    lazy, _, shape = LAZY[name]
    with fastinit.deferred():
        layer = nn.Sequential(lazy())
    fastinit.materialize(layer, seed=0)
    layer(torch.ones(shape))


def test_a_deferred_tensor_takes_nothing_from_meta_outside() -> None:
    with fastinit.deferred():
        layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"\(2, 2\).*meta device.*inside fastinit.deferred"):
        layer.weight.data = torch.ones(3, 3, device="meta")


class WithBias(nn.Module):
    """As PyTorch Geometric's `Linear(-1, n)`: the bias gets its values in the first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.UninitializedParameter(), nn.Parameter(torch.empty(3))
        self._hook = self.register_forward_pre_hook(self.start)

    def start(self, module, args) -> None:
        self.weight.materialize((3, args[0].shape[-1]))
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self._hook.remove()

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def test_a_bias_beside_a_lazy_weight_becomes_zeros() -> None:
    with fastinit.deferred():
        m = nn.Module()
        m.lazy, m.other = WithBias(), nn.Linear(2, 2)
        m.weight = nn.Parameter(torch.ones(2))
    rows = {row.name: row for row in fastinit.plan(m).rows}
    assert rows["lazy.bias"].how == "zeros" and "first forward" in rows["lazy.bias"].why
    fastinit.materialize(m, seed=0)
    assert m.lazy(torch.ones(1, 2)).tolist() == [[2, 2, 2]]


def test_a_bias_of_another_module_is_still_an_error() -> None:
    with fastinit.deferred():
        m = nn.Module()
        m.lazy, m.other = WithBias(), nn.Linear(2, 2)
        m.other.extra = nn.Parameter(torch.empty(2))
    with pytest.raises(RuntimeError, match=r"'other.extra': nothing ever writes.*unwritten=\"zeros\""):
        fastinit.materialize(m, seed=0)


@pytest.mark.parametrize("how", [{"seed": 0}, {"replay": "torch"}, {"seed": 0, "verify": True}])
def test_unwritten_parameters_that_are_meant(how) -> None:
    with fastinit.deferred():
        m = nn.Linear(2, 2)
        m.extra = nn.Parameter(torch.empty(2, dtype=torch.float16))
    assert {row.name: row.how for row in fastinit.plan(m).rows}["extra"] == "unwritten"
    assert {row.name: row.how for row in fastinit.plan(m, unwritten="zeros").rows}["extra"] == "zeros"
    with pytest.raises(ValueError, match="unwritten must be None or"):
        fastinit.materialize(m, unwritten="ones")
    fastinit.materialize(m, unwritten="zeros", **how)
    assert torch.equal(m.extra, torch.zeros(2, dtype=torch.float16)) and m.extra.requires_grad


FORKS = """
import os, signal, sys, threading, torch, torch_fastinit as fastinit
torch.set_num_threads(1)
stop = threading.Event()
def constructor():
    while not stop.is_set():
        with fastinit.deferred():
            torch.randn(100000)[0].item()
thread = threading.Thread(target=constructor, daemon=True)
thread.start()
torch.manual_seed(3)
want = torch.random.get_rng_state()
bad = 0
for i in range(25):
    stop.wait(0.002)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # ends a child that hangs
        same = torch.equal(torch.random.get_rng_state(), want)
        with fastinit.deferred():
            layer = torch.nn.Linear(2, 2)
            torch.rand(()).item()
        fastinit.materialize(layer, seed=0)
        os._exit(0 if same else 1)
    bad += os.waitpid(pid, 0)[1] != 0
stop.set()
thread.join()
os._exit(bad)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_reads_a_random_value() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], timeout=300, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
