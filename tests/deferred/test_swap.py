"""What hangs on a tensor when it becomes real: kept, or refused before anything is written."""

from __future__ import annotations

import copy
import gc
import os
import signal
import subprocess
import sys
import warnings
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.comparison import same_bits, tensors_of
from torch import nn

import torch_fastinit as fastinit


def deferred(build):
    with fastinit.deferred():
        return build()


def two():
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


def snapshot(module):
    return {name: (id(t), type(t), fastinit.is_deferred(t)) for name, t in tensors_of(module).items()}


# --- what torch holds -------------------------------------------------------------------------------------------------


def test_an_accumulator_with_a_hook():
    model = deferred(two)
    before = snapshot(model)
    node = torch.autograd.graph.get_gradient_edge(model[1].weight).node
    node.register_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"^'1\.weight': .*gradient accumulators.*fastinit\.materialize"):
        fastinit.materialize(model)
    assert snapshot(model) == before
    del node
    fastinit.materialize(model)
    assert not fastinit.is_deferred(model)


def test_a_weak_reference_of_torchs_own():
    """Seen only when the tensors change places: those that did go back."""
    model = deferred(two)
    before = snapshot(model)
    weak = torch._C._WeakTensorRef(model[1].weight)
    with pytest.raises(RuntimeError, match=r"^'1\.weight' could not be put in place: .*weakrefs"):
        fastinit.materialize(model, seed=0)
    assert snapshot(model) == before
    del weak
    fastinit.materialize(model, seed=0)


def test_a_view_that_autograd_recorded():
    model = deferred(two)
    row = model[0].weight[0]
    with pytest.raises(RuntimeError, match=r"^'0\.weight': .*a view"):
        fastinit.materialize(model)
    del row
    fastinit.materialize(model)


def test_garbage_holds_nothing():
    model = deferred(two)
    circle = [model[0].weight[0]]
    circle.append(circle)
    del circle
    fastinit.materialize(model)


def test_results_of_autograd_that_the_module_holds():
    def build():
        model = two()
        model.product = model[0].weight * model[0].weight
        model.row = model[1].weight[0]
        return model

    torch.manual_seed(0)
    eager = build()
    torch.manual_seed(0)
    model = fastinit.materialize(deferred(build), replay="torch")
    assert same_bits(model.product.detach(), eager.product.detach())
    assert same_bits(model.row.detach(), eager.row.detach())
    assert model.row.data_ptr() == model[1].weight.data_ptr()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_script_module():
    model = deferred(two)
    script = torch.jit.script(model)
    with pytest.raises(RuntimeError, match="script module"):
        fastinit.materialize(model)
    del script


def test_slots_attributes_gradients_and_weak_references():
    class Marked(nn.Parameter):
        __slots__ = ("mark",)

    def build():
        model = two()
        weight = model[0].weight = Marked(torch.randn(3, 3))
        weight.mark = [torch.ones(2)]
        weight.plain = "kept"
        return model

    model = deferred(build)
    weight = model[0].weight
    reference, seen = weakref.ref(weight), []
    weakref.finalize(weight, seen.append, "gone")
    with fastinit.deferred():
        weight.grad = torch.full((3, 3), 2.0)
    gradient = weight.grad
    fastinit.materialize(model, seed=0)
    assert reference() is model[0].weight is weight and type(weight) is Marked
    assert weight.plain == "kept" and weight.mark[0].tolist() == [1, 1]
    assert weight.grad is gradient and type(gradient) is torch.Tensor and gradient.tolist() == [[2.0] * 3] * 3
    (weight * 3).sum().backward()
    assert weight.grad.tolist() == [[5.0] * 3] * 3
    del model, weight
    gc.collect()
    assert seen == ["gone"]


# --- memory that is shared with what is elsewhere ---------------------------------------------------------------------


def test_a_view_held_elsewhere_sees_the_memory():
    model = deferred(two)
    view = model[0].weight.data[1]
    fastinit.materialize(model, seed=0)
    assert view.tolist() == model[0].weight[1].tolist()
    view.zero_()
    assert model[0].weight[1].tolist() == [0, 0, 0]
    with torch.no_grad():
        model[0].weight.fill_(4)
    assert view.tolist() == [4, 4, 4]
    with pytest.raises(RuntimeError, match="materialize"):
        view + 1
    holder = nn.Module()
    holder.view = view
    fastinit.materialize(holder)
    assert type(view) is torch.Tensor and view.data_ptr() == model[0].weight[1].data_ptr()


def test_modules_that_share_memory_are_tied_when_materialised_one_by_one():
    def build():
        model = two()
        model[1].weight = nn.Parameter(model[0].weight.data)
        return model

    model = deferred(build)
    fastinit.materialize(model[0], seed=0)
    fastinit.materialize(model[1], seed=1)
    assert model[0].weight is not model[1].weight
    assert model[0].weight.data_ptr() == model[1].weight.data_ptr()
    for options, what in (({"dtype": torch.float64}, "'weight', .*another dtype"), ({}, "'weight', .*freed")):
        model = deferred(build)
        fastinit.materialize(model[0], **options)
        if not options:
            model[0] = nn.Identity()
        with pytest.raises(RuntimeError, match=what):
            fastinit.materialize(model[1])


def test_what_was_recorded_before_stays_recorded():
    """Only views see the memory; what the constructor computed from its first contents does not."""

    def build():
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = nn.Parameter(model[0].weight.detach() * 2)
        return model

    model = deferred(build)
    fastinit.materialize(model[0], seed=0, names=lambda name: f"1.{name}")
    first = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    fastinit.materialize(model, seed=0)
    assert torch.equal(model[1].weight, first * 2)


# --- equal blocks -----------------------------------------------------------------------------------------------------


def test_equal_blocks_are_warned_of_once():
    def blocks():
        return nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])

    model = deferred(blocks)
    fastinit.materialize(model[0], seed=0)
    with pytest.warns(UserWarning, match=r"^'weight', 'bias': other tensors.*names=") as caught:
        fastinit.materialize(model[1], seed=0)
    assert caught[0].filename == __file__
    fastinit.materialize(model[2], seed=0)
    fastinit.materialize(model[3], seed=0, names=lambda name: f"3.{name}")
    assert torch.equal(model[0].weight, model[1].weight)
    assert not torch.equal(model[0].weight, model[3].weight)


def test_tensors_that_names_makes_one_are_warned_of():
    model = deferred(two)
    with pytest.warns(UserWarning, match=r"^'weight', 'bias': other tensors have these names") as caught:
        fastinit.materialize(model, seed=0, names=lambda name: name.split(".")[-1])
    assert caught[0].filename == __file__
    assert torch.equal(model[0].weight, model[1].weight)


def test_other_names_seeds_recordings_and_copies_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = deferred(two)
        clone = copy.deepcopy(model[0])
        fastinit.materialize(model[0], seed=0)
        fastinit.materialize(clone, seed=0)
        assert torch.equal(clone.weight, model[0].weight)
        fastinit.materialize(model[1], seed=1)
        fastinit.materialize(deferred(two), seed=0)
        norms = deferred(lambda: nn.ModuleList([nn.LayerNorm(3), nn.LayerNorm(3)]))
        for norm in norms:
            fastinit.materialize(norm, seed=0)


# --- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("sync", [True, False])
def test_ddp_takes_no_deferred_module(alone, sync):
    model = deferred(two)
    before = snapshot(model)
    if sync:
        with pytest.raises(RuntimeError, match=r"fastinit\.materialize\(module\) first"):
            nn.parallel.DistributedDataParallel(model)
    else:
        wrapped = nn.parallel.DistributedDataParallel(model, init_sync=False)
        with pytest.raises(RuntimeError, match="gradient accumulators"):
            fastinit.materialize(wrapped)
        del wrapped
    assert snapshot(model) == before
    gc.collect()
    nn.parallel.DistributedDataParallel(fastinit.materialize(model))


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_collectives(alone):
    weight = deferred(two)[0].weight.detach()
    for call in (
        lambda: dist.all_reduce(weight),
        lambda: dist.broadcast(weight, 0),
        lambda: dist.all_gather([torch.empty(3, 3)], weight),
        lambda: dist.all_gather_into_tensor(torch.empty(3, 3), weight),
        lambda: dist.broadcast_object_list([weight]),
    ):
        with pytest.raises(RuntimeError, match=r"shape \(3, 3\).*fastinit\.materialize\(module\) first"):
            call()


@pytest.mark.filterwarnings("ignore")
def test_fsdp(alone):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    cpu = torch.device("cpu")
    model = deferred(two)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"to_empty.*fastinit\.materialize\(module\) first"):
        FullyShardedDataParallel(model, device_id=cpu)
    assert snapshot(model) == before
    FullyShardedDataParallel(model, device_id=cpu, param_init_fn=fastinit.materialize)
    assert not fastinit.is_deferred(model)
    model = deferred(two)
    fully_shard(model)
    fastinit.materialize(model, seed=0)
    model(torch.ones(1, 3)).sum().backward()
    assert model[0].weight.grad is not None


def _rank(rank: int, store: str) -> None:
    signal.alarm(60)  # rather than wait for each other for ever
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = deferred(two)
    with pytest.raises(RuntimeError, match=r"fastinit\.materialize\(module\) first"):
        nn.parallel.DistributedDataParallel(model)
    wrapped = nn.parallel.DistributedDataParallel(fastinit.materialize(model, seed=0))
    wrapped(torch.full((1, 3), float(rank + 1))).sum().backward()
    gradient = model[0].weight.grad
    both = [torch.empty_like(gradient) for _ in range(2)]
    dist.all_gather(both, gradient)
    assert torch.equal(*both) and bool(gradient.any())
    dist.destroy_process_group()


def two_ranks(store: str) -> None:
    """Fork both from this process, which has imported torch and done nothing else."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _rank(rank, store)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_ddp_on_two_ranks(tmp_path: Path):
    code = f"from deferred.test_swap import two_ranks; two_ranks({str(tmp_path / 'store')!r})"
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_views_that_the_module_holds(poison) -> None:
    """A layer's sizes that are views of a table beside it, as models that plan their layers have them."""

    class Planned(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.arange(12).reshape(3, 4)[torch.tensor([0, 2, 1])]
            self.layers = [nn.Linear(before[1], after[3]) for before, after in pairwise(self.table)]

    module = fastinit.materialize(deferred(Planned), seed=0)
    assert torch.equal(module.table, Planned().table)
    assert [int(layer.out_features) for layer in module.layers] == [11, 7]
    assert type(module.layers[0].out_features) is torch.Tensor
