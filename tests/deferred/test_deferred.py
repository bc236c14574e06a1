"""One case for each thing that constructors do, each compared with eager construction (parity mode bit for bit)."""

from __future__ import annotations

import copy
import gc
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.init import dirac_, orthogonal_, sparse_, trunc_normal_
from torch.nn.utils import parametrizations, parametrize

import torch_fastinit as fastinit
from torch_fastinit.initializers import Normal
from torch_fastinit.ops import Fill, fill
from torch_fastinit.recording import schema as operators
from torch_fastinit.stream import draw_stream


class Case(nn.Module):
    """A module whose constructor is a function."""

    def __init__(self, construct):
        super().__init__()
        construct(self)


CASES = {}


def case(construct):
    CASES[construct.__name__] = construct
    return construct


@case
def reads_values(m):
    rates = torch.linspace(0, 0.3, 4)
    m.layers = nn.ModuleList(nn.Dropout(rate.item()) for rate in rates)
    m.more = nn.ModuleList(nn.Linear(4, int(n)) for n in torch.arange(1, 4).tolist())
    m.x = nn.Parameter(torch.full((4,), float(rates.sum())))
    if (rates > 0.2).any() and bool(torch.equal(rates, rates.clone())) and rates[1] < rates[2]:
        m.y = nn.Parameter(torch.ones(len([r for r in rates if r > 0])))
    m.text = f"{rates[3]:.2f} {rates} {m.x}"


@case
def writes_out(m):
    x, w = torch.randn(4, 4), torch.empty(0)
    m.w = nn.Parameter(torch.mul(x, 0.02, out=w))
    m.same = w
    m.row, m.column = torch.empty(4), torch.empty(4, dtype=torch.int64)
    torch.max(x, dim=1, out=(m.row, m.column))
    m.n = torch.arange(6, out=torch.empty(6))


@case
def reads_random_values(m):
    noise = torch.randn(64)
    m.w = nn.Parameter(torch.randn(64, 64))
    m.x = nn.Parameter(noise * noise.std().item())
    m.y = nn.Parameter(torch.full((3,), m.w[0, 0].item()))
    m.z = nn.Parameter(torch.randn(8))
    m.order = torch.randperm(10).tolist()
    m.u = nn.Parameter(torch.rand(64) + len(m.order))


@case
def numpy_drives(m):
    position = np.arange(16)[:, None] / np.power(10000, np.arange(8)[None] / 8)
    table = torch.zeros(16, 8)
    table[:, 0:4] = torch.FloatTensor(np.sin(position[:, 0::2]))
    table[:, 4:8] = torch.from_numpy(np.cos(position[:, 1::2])).float()
    m.table = nn.Parameter(table, requires_grad=False)
    weight = np.ones((3, 3), dtype=np.float32)
    m.register_buffer("copied", torch.from_numpy(weight) * 2)
    m.register_buffer("aliased", torch.from_numpy(weight))
    m.register_buffer("made", torch.as_tensor(weight[0]).clone())
    weight[:] = 7
    m.register_buffer("from_values", torch.tensor(torch.arange(5).numpy() * 2))
    out = torch.zeros(5)
    out.numpy()[:] = np.arange(5)
    m.register_buffer("written", out)
    m.register_buffer("derived", out + 1)


@case
def captures_what_comes_from_outside(m):
    m.a = nn.Parameter(OUTSIDE * 2)
    m.b = nn.Parameter(OUTSIDE.clone())
    m.c = nn.Linear(3, 3)
    m.c.weight.data.copy_(OUTSIDE[:, None] @ OUTSIDE[None])
    m.register_buffer("same", OUTSIDE)


OUTSIDE = torch.arange(3.0)


@case
def views_and_slices(m):
    m.embed = nn.Embedding(10, 6, padding_idx=2)
    m.embed.weight.data[4].zero_()
    m.w = nn.Parameter(torch.empty(6, 12))
    q, k, v = m.w.data.chunk(3, dim=1)
    nn.init.normal_(q)
    nn.init.uniform_(k)
    v.copy_(q)
    v.t()[1:3].mul_(2)
    with torch.no_grad():
        m.w[0, :2] = torch.tensor([1.0, 2.0])
        m.w[m.w > 1.5] = 1.5
        m.w.view(-1)[::7].add_(1)
        m.w[[1, 2], 3] = 0.25
    m.strided = nn.Parameter(torch.randn(6, 4).t())


@case
def in_place_arithmetic(m):
    m.w = nn.Parameter(torch.empty(8, 8).normal_().mul_(0.02).add_(1.0))
    m.v = nn.Parameter(torch.empty(8, 8).uniform_(-1, 1).clamp_(-0.5, 0.5))
    with torch.no_grad():
        m.w /= 3
        m.w += torch.eye(8)
        m.v **= 2


@case
def data_assignment(m):
    m.a = nn.Linear(8, 8)
    m.a.weight.data = torch.randn(8, 8) * 0.1
    m.b = nn.Linear(8, 8)
    m.b.weight.data = m.a.weight.data
    m.b.weight.data[0] = 5.0
    m.a.bias.data = torch.zeros(8, dtype=torch.float64)


@case
def copies_between_parameters(m):
    m.a, m.b = nn.Linear(8, 8), nn.Linear(8, 8)
    m.b.load_state_dict(m.a.state_dict())
    with torch.no_grad():
        m.a.weight.add_(1)
        m.a.bias.copy_(m.b.bias)


@case
def cat_and_stack(m):
    m.a = nn.Parameter(torch.cat([torch.zeros(2, 4), torch.randn(3, 4), torch.ones(1, 4)]))
    m.b = nn.Parameter(torch.stack([torch.rand(4) for _ in range(3)]))
    m.c = nn.Parameter(torch.einsum("ij,kj->ik", m.a.data, m.b.data))


@case
def plain_attributes(m):
    m.plain = torch.randn(5) * 2
    m.listed = [torch.randn(3), {"x": torch.ones(2)}, (torch.zeros(1),)]
    m.hidden = [nn.Linear(2, 2)]  # a module that is not registered
    m.w = nn.Parameter(torch.zeros(2))


@case
def deepcopies(m):
    layer = nn.Linear(6, 6)
    layer.weight.flavour = "kept"
    layer.tied = layer.weight
    m.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(3))
    nn.init.normal_(m.layers[1].weight)
    m.last = copy.deepcopy(m.layers)


@case
def casts(m):
    m.a = nn.Linear(8, 8).to(torch.bfloat16)
    m.b = nn.Linear(8, 8).half()
    m.c = nn.Embedding(16, 8).to(torch.bfloat16)
    m.d = nn.LayerNorm(8).double()
    m.e = nn.Parameter(torch.randn(8, 8).to(torch.float16).float())
    m.f = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
    m.g = nn.Parameter(torch.view_as_real(torch.polar(torch.ones(3), torch.arange(3.0))))


@case
def default_dtype_and_device(m):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        m.a = nn.Linear(4, 4)
        m.b = nn.Parameter(torch.arange(4) / 3)
        m.c = nn.Parameter(torch.zeros(2))
    finally:
        torch.set_default_dtype(before)
    with torch.device("cpu"):
        m.d = nn.Linear(4, 4)
        m.e = nn.Parameter(torch.tensor([1.0, 2.0]))
    assert m.d.weight.device.type == "cpu"
    assert not m.d.weight.is_meta


@case
def parametrized(m):
    class Symmetric(nn.Module):
        def forward(self, x):
            return x.triu() + x.triu(1).transpose(-1, -2)

    m.a = nn.Linear(5, 5)
    parametrize.register_parametrization(m.a, "weight", Symmetric())
    m.b = parametrizations.weight_norm(nn.Linear(5, 4))
    m.c = parametrizations.spectral_norm(nn.Linear(5, 4))
    m.d = parametrizations.orthogonal(nn.Linear(5, 5))


@case
def orthogonal_layers(m):
    for i, mapping in enumerate(("householder", "cayley", "matrix_exp")):
        layer = nn.Linear(5, 5)
        nn.init.orthogonal_(layer.weight)
        setattr(m, mapping, parametrizations.orthogonal(layer, orthogonal_map=mapping))
        orthogonal_(layer.weight if i else m.householder.bias.data.view(1, 5), gain=0.5)
        setattr(m, f"{mapping}_tall", parametrizations.orthogonal(nn.Linear(3, 5), orthogonal_map=mapping))
    m.plain = parametrizations.orthogonal(nn.Linear(5, 3), use_trivialization=False)
    m.plain.weight = nn.init.orthogonal_(torch.empty(3, 5))
    m.conv = nn.Conv2d(4, 6, 3)
    nn.init.orthogonal_(m.conv.weight, gain=nn.init.calculate_gain("relu"))
    with torch.no_grad():
        m.conv.weight[0].zero_()
    m.w = nn.Parameter(torch.zeros(8, 8, dtype=torch.float64))
    nn.init.orthogonal_(m.w.data[2:, 1:5], generator=torch.Generator().manual_seed(5))
    nn.init.normal_(m.w.data[:2])
    m.read = nn.Parameter(torch.empty(4, 4))
    m.scale = nn.Parameter(torch.full((2,), orthogonal_(m.read)[0, 0].item()))
    m.none = nn.Parameter(orthogonal_(torch.empty(0, 4)))


@case
def old_norms(m):
    with_warnings = nn.utils.weight_norm
    m.a = with_warnings(nn.Conv1d(4, 4, 3, padding=1))
    m.b = nn.utils.spectral_norm(nn.Linear(5, 4))


@case
def lazy_layers(m):
    m.lazy = nn.LazyLinear(4)
    m.conv = nn.LazyConv2d(3, 3)
    m.norm = nn.LazyBatchNorm2d()
    m.copied = copy.deepcopy(m.lazy)
    m.run = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d())
    m.run(torch.ones(2, 3))


@case
def early_bound_initialisers(m):
    m.a = nn.Parameter(trunc_normal_(torch.empty(32, 32), std=0.5, a=-0.6, b=0.7))
    m.b = nn.Parameter(orthogonal_(torch.empty(8, 4), gain=2.0))
    m.c = nn.Parameter(orthogonal_(torch.empty(4, 8)))
    m.d = nn.Parameter(sparse_(torch.empty(20, 6), sparsity=0.3, std=0.5))
    m.e = nn.Parameter(dirac_(torch.empty(4, 2, 3), groups=2))
    m.f = nn.Parameter(nn.init.eye_(torch.empty(4, 5)))
    m.g = nn.Parameter(trunc_normal_(torch.empty(64), mean=5.0, std=1.0, a=-1.0, b=6.0))
    m.h = nn.Parameter(torch.zeros(5, 5))
    nn.init.xavier_normal_(m.h, gain=nn.init.calculate_gain("relu"))
    nn.init.kaiming_normal_(m.h.data.t())


@case
def other_distributions(m):
    m.a = nn.Parameter(torch.empty(200).exponential_(2.0))
    m.b = nn.Parameter(torch.bernoulli(torch.full((50,), 0.3)))
    m.register_buffer("c", torch.randint(0, 100, (300,)))
    m.register_buffer("d", torch.randperm(300))
    m.register_buffer("e", torch.multinomial(torch.ones(20), 300, replacement=True))
    m.f = nn.Parameter(torch.empty(100).log_normal_())
    m.g = nn.Parameter(torch.normal(torch.zeros(100), torch.ones(100)))
    m.of_numbers = nn.Parameter(torch.normal(0.5, 0.1, (10, 10), dtype=torch.bfloat16))
    m.of_a_number = nn.Parameter(torch.normal(torch.zeros(100), 0.1))
    m.h = nn.Parameter(nn.functional.dropout(torch.ones(100), 0.5))
    m.i = nn.Parameter(torch.rand(100, dtype=torch.float64) + torch.rand_like(m.a[:100], dtype=torch.float64))


@case
def draws_that_nothing_keeps(m):
    nn.Linear(10, 10)
    torch.randn(7)
    torch.empty(0).normal_()
    m.a = nn.Linear(3, 3)
    nn.init.normal_(m.a.weight)
    torch.randn(5).sum()
    m.b = nn.Linear(3, 3)


@case
def seeds_inside(m):
    m.before = nn.Parameter(torch.randn(5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        m.seeded = nn.Parameter(torch.randn(5))
        torch.randn(3)
        m.seeded_too = nn.Linear(3, 3)
    m.after = nn.Parameter(torch.randn(5))
    state = torch.get_rng_state()
    m.again = nn.Parameter(torch.randn(5))
    torch.set_rng_state(state)
    m.repeated = nn.Parameter(torch.randn(5))


@case
def methods_of_the_default_generator(m):
    m.before = nn.Parameter(torch.randn(5))
    state = torch.default_generator.get_state()
    m.a = nn.Parameter(torch.randn(5))
    assert torch.default_generator.set_state(state) is torch.default_generator
    m.again = nn.Parameter(torch.randn(5))
    m.restored = nn.Parameter(torch.randn(5))
    assert torch.default_generator.manual_seed(7) is torch.default_generator
    assert torch.initial_seed() == torch.default_generator.initial_seed() == 7
    m.seeded = nn.Linear(3, 3)
    copied = torch.get_rng_state().clone()
    clone = torch.default_generator.clone_state()
    m.one = nn.Parameter(torch.rand(4))
    m.other = nn.Parameter(torch.rand(4, generator=clone))
    m.register_buffer("seen", torch.tensor(torch.initial_seed()))
    torch.set_rng_state(copied)
    m.third = nn.Parameter(torch.rand(4))
    m.register_buffer("equal", torch.tensor(bool((m.third == m.one).all() and (m.one == m.other).all())))
    torch.set_rng_state(state)
    m.register_buffer("outer", torch.tensor(torch.initial_seed() == torch.default_generator.initial_seed()))
    m.fourth = nn.Parameter(torch.rand(4))
    torch.default_generator.set_state(torch.Generator().manual_seed(9).get_state())
    m.fifth = nn.Parameter(torch.rand(4), requires_grad=torch.initial_seed() == 9)
    torch.manual_seed(-3)
    m.register_buffer("negative", torch.tensor(str(torch.initial_seed()).encode()[0]))


@case
def seeds_on_all_devices(m):
    m.a = nn.Parameter(torch.randn(5))
    torch.cuda.manual_seed_all(3)
    torch.cuda.manual_seed(3)
    m.b = nn.Parameter(torch.randn(5))
    with torch.random.fork_rng():
        torch.random.manual_seed(4)
        m.c = nn.Parameter(torch.randn(5))
    m.d = nn.Parameter(torch.randn(5))


@case
def numbers_from_python_and_numpy(m):
    python, generator = random.Random(3), np.random.default_rng(4)
    random.seed(1)
    np.random.seed(2)
    m.a = nn.Parameter(torch.from_numpy(generator.standard_normal((4, 3))).float())
    m.b = nn.Parameter(torch.tensor(np.random.randn(3), dtype=torch.float32))
    m.c = nn.Parameter(torch.tensor([python.gauss(0, 1), random.random()]))
    m.d = nn.Linear(3, 4)
    m.d.weight.data.copy_(torch.as_tensor(generator.uniform(size=(4, 3))))
    m.e = nn.Parameter(torch.zeros(3))
    m.e.data[:] = torch.from_numpy(np.random.rand(3))
    m.order = torch.tensor(np.random.permutation(5))


@case
def threads_one_after_another(m):
    def build(i):
        torch.set_grad_enabled(True)
        layers[i] = nn.Linear(4, 4)
        nn.init.trunc_normal_(layers[i].weight, std=0.1 * float(torch.ones(2).sum()))

    layers = {}
    for i in range(3):
        thread = threading.Thread(target=build, args=(i,))
        thread.start()
        thread.join()

    class Builder(threading.Thread):
        def run(self):
            layers[3] = nn.Embedding(6, 4)

    thread = Builder()
    thread.start()
    thread.join()
    m.layers = nn.ModuleList(layers[i] for i in range(4))
    with ThreadPoolExecutor(1) as pool:
        m.pooled = nn.ModuleList(pool.map(lambda n: nn.Linear(n, n), range(1, 6)))
        m.value = nn.Parameter(torch.full((2,), pool.submit(lambda: torch.randn(3).sum().item()).result()))
    m.last = nn.Parameter(OLDER_POOL.submit(torch.randn, 5).result())
    m.applied = OLDER_THREADS.apply(nn.Linear, (2, 3))
    m.mapped = nn.ModuleList(OLDER_THREADS.map(lambda n: nn.Linear(n, 2), [1, 2, 3]))
    m.starred = nn.ModuleList(OLDER_THREADS.starmap(nn.Linear, [(1, 2), (3, 4)]))
    m.more = nn.ModuleList(OLDER_THREADS.imap(nn.LayerNorm, [2, 3]))
    m.rest = nn.ModuleList(OLDER_THREADS.imap_unordered(nn.BatchNorm1d, [4]))
    with ThreadPool(1) as pool:
        m.own = pool.apply(nn.Linear, (2, 3))


OLDER_POOL = ThreadPoolExecutor(1)
OLDER_POOL.submit(int).result()
OLDER_THREADS = ThreadPool(1)
OLDER_THREADS.apply(int)


@pytest.fixture(scope="module", autouse=True)
def pools():
    yield
    OLDER_POOL.shutdown()
    OLDER_THREADS.terminate()


class Tagged(torch.Tensor):
    """A subclass whose class spreads to results."""

    @staticmethod
    def __new__(cls, data, tag=None):
        tensor = torch.Tensor._make_subclass(cls, data)
        tensor.tag = tag
        return tensor


class Flavoured(nn.Parameter):
    def __new__(cls, data, flavour="none"):
        parameter = torch.Tensor._make_subclass(cls, data, require_grad=True)
        parameter.flavour = flavour
        return parameter


class Scaled(torch.Tensor):
    """A subclass that keeps its contents in two other tensors."""

    @staticmethod
    def __new__(cls, inner, scale):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner, scale):
        self.inner, self.scale = inner, scale

    def __tensor_flatten__(self):
        return ["inner", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner.detach(), args[0].scale.detach())
        args = [a.inner * a.scale if isinstance(a, cls) else a for a in args]
        return func(*args, **(kwargs or {}))


@case
def subclasses(m):
    m.a = Flavoured(torch.randn(4, 3), "sweet")
    nn.init.uniform_(m.a)
    m.b = copy.deepcopy(m.a)
    m.c = nn.Parameter(m.a.data * 2)
    m.register_buffer("d", Tagged(torch.randn(4), "hello"))
    m.register_buffer("e", m.d * 2 + m.d.mean())
    m.register_buffer("f", torch.randn(3).as_subclass(Tagged))
    m.register_buffer("g", m.f.data.as_subclass(torch.Tensor) + 1)
    m.f.data.mul_(3)
    assert isinstance(m.e, Tagged) and isinstance(m.f[0], Tagged) and not isinstance(m.g, Tagged)
    assert m.d.tag == "hello" and m.a.flavour == "sweet"


@case
def own_generator(m):
    generator = torch.Generator().manual_seed(11)
    m.a = nn.Parameter(torch.randn(5, generator=generator))
    m.b = nn.Parameter(torch.empty(4, 4).uniform_(generator=generator))
    m.c = nn.Parameter(nn.init.trunc_normal_(torch.empty(50), generator=generator))
    m.register_buffer("d", torch.randperm(9, generator=generator))
    m.e = nn.Parameter(nn.init.sparse_(torch.empty(6, 1), 0.0, generator=generator))


@case
def fastinit_inside(m):
    m.a = nn.Parameter(fastinit.init.normal_(torch.empty(64, 64)))
    m.b = nn.Parameter(fastinit.init.trunc_normal_(torch.empty(64, 64), std=0.02))
    m.c = nn.Parameter(fastinit.init.kaiming_uniform_(torch.empty(64, 64)))
    m.d = nn.Parameter(fastinit.init.eye_(torch.empty(6, 6)))
    m.e = nn.Parameter(fastinit.init.dirac_(torch.empty(6, 6, 3)))
    m.f = nn.Parameter(fastinit.init.constant_(torch.empty(6), 0.3))
    m.g = nn.Parameter(fastinit.init.sparse_(torch.empty(40, 8), 0.5))
    m.h = nn.Parameter(fastinit.init.orthogonal_(torch.empty(8, 8)))


@case
def metadata_in_place(m):
    w = torch.randn(3, 4)
    w.t_()
    w.unsqueeze_(0)
    m.w = nn.Parameter(w)
    r = torch.ones(2)
    r.resize_(6)
    r[2:] = 3
    m.r = nn.Parameter(r)
    m.e = nn.Parameter(torch.randn(3, 1).expand(3, 4).contiguous())


@case
def data_dependent_shapes(m):
    x = torch.arange(10)
    m.register_buffer("chosen", x[x % 3 == 0])
    m.register_buffer("where", torch.nonzero(x > 6))
    m.register_buffer("unique", torch.unique(torch.tensor([3, 1, 3, 2])))
    m.register_buffer("repeated", torch.repeat_interleave(torch.tensor([1, 2]), torch.tensor([2, 3])))


@case
def other_layouts(m):
    m.conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    m.p = nn.Parameter(torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last))
    m.q = nn.Parameter(torch.empty_strided((3, 4), (1, 3)).normal_())
    m.shared = torch.zeros(8)
    m.half1, m.half2 = nn.Parameter(m.shared[:4]), nn.Parameter(m.shared[4:])
    nn.init.normal_(m.half2)


@case
def foreach(m):
    tensors = [torch.randn(3), torch.ones(2)]
    torch._foreach_mul_(tensors, 2.0)
    m.a, m.b = (nn.Parameter(t) for t in torch._foreach_add(tensors, 1.0))


def test_seed_from_nowhere():
    """torch.seed() gives another number every time: it seeds the tape, and not torch's generator."""
    before = torch.get_rng_state()
    with fastinit.deferred():
        seed = torch.seed()
        module = nn.ParameterList([torch.randn(5), torch.randn(3)])
        assert torch.initial_seed() == seed
        module.append(nn.Parameter(torch.full((2,), module[1][0].item())))
        second = torch.default_generator.seed()
    assert torch.equal(before, torch.get_rng_state())
    assert second != seed
    fastinit.materialize(module, seed=0)
    generator = torch.Generator().manual_seed(seed)
    expected = [torch.randn(5, generator=generator), torch.randn(3, generator=generator)]
    assert torch.equal(module[0], expected[0]) and torch.equal(module[1], expected[1])
    assert module[2].tolist() == [expected[1][0].item()] * 2


def test_what_a_generator_refuses_is_refused():
    with fastinit.deferred():
        for wrong in (torch.zeros(3, dtype=torch.uint8), torch.zeros(5056), torch.ones(5056, dtype=torch.int32)):
            with pytest.raises((RuntimeError, TypeError)):
                torch.default_generator.set_state(wrong)
            with pytest.raises((RuntimeError, TypeError)):
                torch.set_rng_state(wrong)
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            torch.default_generator.manual_seed("seed")


def test_generators_of_others_are_left_alone():
    """Other generators, and the default one outside of the context, have their own methods."""
    for _ in range(2):  # earlier recordings: a tensor of which torch holds a view outlives one collection
        gc.collect()
    original = torch.Generator.manual_seed
    with fastinit.deferred():
        assert torch.Generator.manual_seed is not original
        own = torch.Generator().manual_seed(4)
        assert own.initial_seed() == 4
        assert type(own.get_state()) is torch.Tensor and not fastinit.is_deferred(own.get_state())
        state = torch.get_rng_state()
        module = nn.Linear(3, 3)
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(torch.Generator().manual_seed(4).get_state()))
        thread.start()
        thread.join()
        assert torch.equal(own.get_state(), elsewhere[0])
    torch.default_generator.manual_seed(12)
    assert torch.initial_seed() == 12
    fastinit.materialize(module)
    del module, state
    gc.collect()
    assert torch.Generator.manual_seed is original


def test_threads_at_once_give_what_one_gives():
    """Values belong to names: it does not matter which thread is first."""

    def layer(i):
        module = nn.Linear(8, 8)
        nn.init.trunc_normal_(module.weight, std=float(torch.linspace(0.1, 0.2, 12)[i]))
        return module

    def build(workers):
        with ThreadPoolExecutor(workers) as pool:
            return nn.ModuleList(pool.map(layer, range(12)))

    before = torch.get_rng_state()
    results = []
    for workers in (1, 6):
        with fastinit.deferred():
            module = build(workers)
        assert all(fastinit.is_deferred(t) for t in module.parameters())
        times = [entry.time for entry in module[0].weight._value.storage.tape.draws]
        assert times == sorted(times) and len(times) == 36
        results.append(fastinit.materialize(module, seed=2).state_dict())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_thread_that_outlives_the_context_may_have_its_own():
    left, made = threading.Event(), []

    def work():
        made.append(nn.Linear(2, 2))
        left.wait(10)
        with fastinit.deferred():
            made.append(nn.Linear(2, 2))
            made.append(float(made[1].weight.detach().sum()))
        made.append(nn.Linear(2, 2))

    with fastinit.deferred():
        thread = threading.Thread(target=work)
        thread.start()
        while not made:
            time.sleep(0.001)
    left.set()
    thread.join()
    assert [fastinit.is_deferred(made[i]) for i in (0, 1, 3)] == [True, True, False]
    fastinit.materialize(made[1], seed=0)
    assert float(made[1].weight.detach().sum()) == pytest.approx(made[2])


def test_a_thread_that_outlives_the_context():
    left, made = threading.Event(), []

    def work():
        made.append(nn.Linear(2, 2))
        left.wait(10)
        made.append(nn.Linear(2, 2))
        made.append(nn.Parameter(made[0].weight.detach().clone().mul_(2)))

    with ThreadPoolExecutor(1) as pool:
        with fastinit.deferred():
            thread = threading.Thread(target=work)
            thread.start()
            task = pool.submit(nn.Linear, 2, 2)
            assert fastinit.is_deferred(task.result())
            while not made:
                time.sleep(0.001)
        left.set()
        thread.join()
        assert not fastinit.is_deferred(pool.submit(nn.Linear, 2, 2).result())
    assert [fastinit.is_deferred(x) for x in made] == [True, False, True]
    assert "run" not in vars(thread)
    both = nn.ParameterList([made[0].weight, made[2]])
    fastinit.materialize(both, seed=0)
    assert torch.equal(both[0] * 2, both[1])


def test_a_subclass_that_holds_its_contents_elsewhere():
    def build():
        module = nn.Module()
        module.w = nn.Parameter(Scaled(torch.randn(4, 4), torch.full((1,), 0.5)))
        module.product = nn.Parameter((module.w.detach() * 2).sum(0))
        module.register_buffer("values", torch.tensor(module.w.detach().inner.tolist()) * 0)
        return module

    torch.manual_seed(0)
    eager = build()
    torch.manual_seed(0)
    with fastinit.deferred():
        module = build()
    assert [row.name for row in fastinit.plan(module).rows] == ["w", "w.inner", "w.scale", "product", "values"]
    for wrong in ({"device": "meta"}, {"dtype": torch.bfloat16}):
        with pytest.raises(RuntimeError, match=r"'w\.inner' is held by a Scaled"):
            fastinit.materialize(module, **wrong)
    fastinit.materialize(module, replay="torch")
    assert type(module.w.inner) is type(module.w.scale) is torch.Tensor
    assert torch.equal(module.w.inner, eager.w.inner) and torch.equal(module.w.scale, eager.w.scale)
    assert torch.equal(module.product, eager.product)


def test_a_subclass_that_cannot_be_recorded():
    class Logged(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("what it does is its own business")

    with fastinit.deferred():
        for make in (lambda t: torch.Tensor._make_subclass(Logged, t), lambda t: t.as_subclass(Logged)):
            with pytest.raises(NotImplementedError, match="Logged has a __torch_dispatch__"):
                make(torch.randn(3))


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_lazy_parameters_are_copied_outside_too():
    with fastinit.deferred():
        lazy = nn.LazyLinear(4, dtype=torch.float64)
    copies = [copy.deepcopy(lazy) for _ in range(2)]
    assert all(type(c.weight).__name__ == "UninitializedParameter" for c in copies)
    fastinit.materialize(copies[0])
    fastinit.materialize(nn.ModuleList([lazy, copies[1]]))
    for layer in (lazy, *copies):
        assert type(layer.weight) is nn.UninitializedParameter
        assert layer(torch.ones(2, 3, dtype=torch.float64)).shape == (2, 4)
        assert type(layer.weight) is nn.Parameter and layer.weight.dtype is torch.float64


def test_the_makers_of_subclasses_are_torchs_own_again():
    """Also for torch._dynamo, which may be imported inside a context and keeps what it finds."""
    code = """if True:
        import gc, sys, torch, torch_fastinit as fastinit
        for early in (False, True):
            with fastinit.deferred():
                layer = torch.nn.Linear(2, 2)
                if early:
                    import torch._dynamo.polyfills.tensor
                assert "as_subclass" in vars(torch.Tensor)
            del layer
            gc.collect()
            assert ("as_subclass" in vars(torch.Tensor)) == early
        layer = torch.compile(torch.nn.Linear(2, 2), backend="eager")
        assert layer(torch.ones(1, 2)).shape == (1, 2)
        print("done")
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout == "done\n", result.stderr


needs_the_tag = pytest.mark.skipif(not hasattr(torch.Tag, "out"), reason="this torch has no torch.Tag.out")


@needs_the_tag
def test_out_overloads_without_a_tag(monkeypatch):
    """What torch 2.10 and 2.11 do not say is read from the schemas: of every overload what the tag says."""
    monkeypatch.setattr(operators, "_TAG_OUT", None)
    known = 0
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::"):
            packet = getattr(torch.ops.aten, schema.name[6:], None)
            overload = schema.overload_name or "default"
            if packet is not None and overload in packet.overloads():
                func = getattr(packet, overload)
                assert operators._is_out(func) == (torch.Tag.out in func.tags), func._schema
                known += operators._is_out(func)
    assert known > 1000


@needs_the_tag
def test_a_torch_without_the_tag():
    code = """if True:
        import torch, torch._dynamo  # which needs the tag while it is imported
        import torch_fastinit as fastinit
        del torch.Tag.out

        def build():
            torch.manual_seed(0)
            layer = torch.nn.Linear(3, 3)
            out = torch.ones(0)
            torch.mul(layer.weight.detach(), 2, out=out)
            layer.twice, layer.n = torch.nn.Parameter(out), torch.nn.Buffer(torch.arange(4, out=torch.ones(4)))
            return layer

        eager = build()
        with fastinit.deferred():
            layer = build()
        assert fastinit.is_deferred(layer.twice) and layer.twice.shape == (3, 3)
        fastinit.materialize(layer, replay="torch")
        print([torch.equal(a, b) for a, b in zip(eager.state_dict().values(), layer.state_dict().values())])
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout == "[True, True, True, True]\n", result.stderr


ORTHOGONAL = {"torch": nn.init.orthogonal_, "fastinit": fastinit.init.orthogonal_}


@pytest.mark.parametrize("shape", [(6, 6), (4, 7), (9, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_orthogonal_is_one_draw_of_the_stream(name, dtype, shape):
    """docs/stream.md, section 12, written out."""

    with fastinit.deferred():
        module = Case(lambda m: None)
        module.w = nn.Parameter(torch.empty(shape, dtype=dtype))
        nn.init.uniform_(module.w)
        scale = module.w.detach().max()  # draw 0
        ORTHOGONAL[name](module.w, gain=2.0)  # draw 1
        module.w.data.mul_(1.0 + 0.0 * scale)
    assert [row.how for row in fastinit.plan(module).rows] == ["replayed"]
    fastinit.materialize(module, seed=6)
    rows, columns = shape[0], module.w.numel() // shape[0]
    normals = torch.empty(min(rows, columns), max(rows, columns), dtype=dtype)
    fill([Fill(normals, Normal(), 6, draw_stream(fastinit.stream_id("w"), 1))])
    q, r = torch.linalg.qr(normals.t())
    q = q * r.diagonal().sign() * 2
    assert torch.equal(module.w, (q if rows >= columns else q.t()).reshape(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64], ids=str)
def test_orthogonal_dtypes(dtype):
    """What torch refuses is refused; this library's own function fills it."""
    with fastinit.deferred():
        with pytest.raises(NotImplementedError):
            orthogonal_(torch.empty(4, 4, dtype=dtype))
        with pytest.raises(ValueError, match="2 or more"):
            orthogonal_(torch.empty(4))
        with pytest.raises(RuntimeError, match="view"):
            orthogonal_(torch.empty(4, 3, 2, 2).to(memory_format=torch.channels_last))
        module = nn.ParameterList([fastinit.init.orthogonal_(torch.empty(16, 16, dtype=dtype))])
    w = fastinit.materialize(module, seed=0)[0].detach().to(torch.complex64)
    assert (w @ w.mH - torch.eye(16)).abs().max() < 0.02


def test_tensors_in_plain_attributes_are_materialised():
    with fastinit.deferred():
        module = Case(CASES["plain_attributes"])
    fastinit.materialize(module, seed=0)
    tensors = [module.plain, module.listed[0], module.listed[1]["x"], module.listed[2][0], module.hidden[0].weight]
    assert not any(t.is_meta or fastinit.is_deferred(t) for t in tensors)
    names = [row.name for row in fastinit.plan(module).rows]
    assert names == ["w", "plain", "listed.0", "listed.1.x", "listed.2.0", "hidden.0.weight", "hidden.0.bias"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Lazy modules:UserWarning")
def test_construct(name, same_as_eager):
    same_as_eager(lambda: Case(CASES[name]))
