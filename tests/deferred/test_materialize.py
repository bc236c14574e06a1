"""materialize: values from the stream, tensors put in place, and all or nothing when something is wrong."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from support.comparison import same_bits, tensors_of
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit.initializers import Normal, Uniform
from torch_fastinit.ops import Fill, fill
from torch_fastinit.recording import memory
from torch_fastinit.stream import draw_stream


def deferred(build):
    with fastinit.deferred():
        return build()


def expected(shape, initializer, name, seed=0, draw=0, dtype=torch.float32):
    t = torch.empty(shape, dtype=dtype)
    fill([Fill(t, initializer, seed, draw_stream(fastinit.stream_id(name), draw))])
    return t


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 6)
        self.b = nn.Linear(6, 4)
        for layer in (self.a, self.b):
            nn.init.normal_(layer.weight, std=0.02)


def snapshot(module):
    return {name: (id(t), type(t), t.requires_grad) for name, t in tensors_of(module).items()}


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_value_is_a_function_of_seed_name_and_index():
    model = fastinit.materialize(deferred(TwoLayers), seed=5)
    bound = 8**-0.5
    assert torch.equal(model.a.weight, expected((6, 8), Normal(0.0, 0.02), "a.weight", 5))
    assert torch.equal(model.b.weight, expected((4, 6), Normal(0.0, 0.02), "b.weight", 5))
    assert torch.equal(model.a.bias, expected((6,), Uniform(-bound, bound), "a.bias", 5))


def test_live_draws_are_counted_and_dead_ones_are_not():
    def build():
        layer = nn.Linear(4, 4, bias=False)  # dead: covered by the next line before anything reads it
        nn.init.normal_(layer.weight)
        with torch.no_grad():
            layer.weight.add_(torch.empty(4, 4).uniform_())
            layer.weight[0].normal_()
        return layer

    weight = fastinit.materialize(deferred(build), seed=1).weight
    want = expected((4, 4), Normal(), "weight", 1, 0) + expected((4, 4), Uniform(), "weight", 1, 1)
    want[0] = expected((4,), Normal(), "weight", 1, 2)
    assert torch.equal(weight, want)


def test_a_draw_belongs_to_the_first_name_that_depends_on_it():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            noise = torch.randn(6)
            self.late = nn.Parameter(noise * 2)
            self.register_buffer("noise", noise)

    model = fastinit.materialize(deferred(Shared), seed=3)
    assert torch.equal(model.noise, expected((6,), Normal(), "late", 3))
    assert torch.equal(model.late, model.noise * 2)


def test_names_and_wrapper_segments():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

    bare = fastinit.materialize(deferred(TwoLayers), seed=2)
    wrapped = fastinit.materialize(deferred(lambda: Wrapper(TwoLayers())), seed=2)
    assert torch.equal(bare.a.weight, wrapped._orig_mod.a.weight)
    part = deferred(TwoLayers)
    fastinit.materialize(part.b, seed=2, names=lambda name: f"b.{name}")
    assert torch.equal(part.b.weight, bare.b.weight)
    assert fastinit.is_deferred(part.a)
    fastinit.materialize(part, seed=2)
    assert torch.equal(part.a.weight, bare.a.weight)


def test_seed_none_follows_manual_seed():
    torch.manual_seed(3)
    a = fastinit.materialize(deferred(TwoLayers))
    torch.manual_seed(3)
    b = fastinit.materialize(deferred(TwoLayers))
    c = fastinit.materialize(deferred(TwoLayers))
    assert torch.equal(a.a.weight, b.a.weight)
    assert not torch.equal(a.a.weight, c.a.weight)


def test_distributions_without_a_fill_are_reproducible():
    def build():
        return nn.ParameterList([torch.empty(100).exponential_() for _ in range(2)])

    a, b, c = (fastinit.materialize(deferred(build), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], c[0])


def test_values_seeded_by_the_constructor_are_those_of_eager_code():
    def build():
        torch.randn(2)
        first = torch.randn(4)
        torch.manual_seed(8)
        torch.randn(3)
        second = torch.randn(4)
        generator = torch.Generator().manual_seed(1)
        return nn.ParameterList([first, second, torch.rand(3, generator=generator)])

    eager = build()
    for seed in (0, 1):
        ours = fastinit.materialize(deferred(build), seed=seed)
        assert torch.equal(eager[1], ours[1])
        assert torch.equal(eager[2], ours[2])
        assert torch.equal(ours[0], expected((4,), Normal(), "0", seed))


def test_what_was_read_stays_true():
    def build():
        w = nn.Parameter(torch.randn(5))
        w.seen = w.tolist()
        return nn.ParameterList([w, torch.randn(5)])

    torch.manual_seed(6)
    eager = build()
    torch.manual_seed(6)
    ours = deferred(build)
    assert ours[0].seen == eager[0].tolist()
    fastinit.materialize(ours, seed=0)
    assert torch.equal(ours[0], eager[0])
    assert torch.equal(ours[1], expected((5,), Normal(), "1", 0))


# --- dtype and device -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_dtype_is_a_cast_of_the_recorded_program(dtype):
    def build():
        module = TwoLayers()
        module.register_buffer("count", torch.tensor(3))
        module.register_buffer("scale", torch.linspace(0, 1, 5))
        module.tied = module.a.weight
        return module

    plain = fastinit.materialize(deferred(build), seed=0)
    cast = fastinit.materialize(deferred(build), seed=0, dtype=dtype)
    for name, t in tensors_of(plain).items():
        assert same_bits(t.to(dtype) if t.is_floating_point() else t, tensors_of(cast)[name]), name
    assert cast.tied is cast.a.weight


def test_dtype_of_each_tensor():
    rule = {"a.weight": torch.bfloat16, "b.bias": torch.float64}
    model = fastinit.materialize(deferred(TwoLayers), dtype=lambda name, tensor: rule.get(name))
    assert {name: t.dtype for name, t in model.named_parameters() if t.dtype is not torch.float32} == rule


def test_a_cast_after_the_context_is_recorded():
    a = fastinit.materialize(deferred(TwoLayers).to(torch.bfloat16), seed=0)
    b = fastinit.materialize(deferred(TwoLayers), seed=0, dtype=torch.bfloat16)
    assert same_bits(a.a.weight, b.a.weight)
    assert same_bits(a.a.bias, b.a.bias)


# --- in place ---------------------------------------------------------------------------------------------------------


def test_identity_attributes_hooks_and_optimizer_survive():
    model = deferred(TwoLayers)
    weight = model.a.weight
    weight.no_decay = True
    seen = []
    handle = weight.register_hook(lambda grad: seen.append("hook"))
    weight.register_post_accumulate_grad_hook(lambda p: seen.append("post"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    reference = weakref.ref(weight)
    fastinit.materialize(model, seed=0)
    assert model.a.weight is weight
    assert reference() is weight
    assert type(weight) is nn.Parameter
    assert weight.__dict__ == {"no_decay": True}
    before = weight.detach().clone()
    model.b(model.a(torch.ones(2, 8))).sum().backward()
    optimizer.step()
    assert seen == ["hook", "post"]
    assert not torch.equal(before, weight)
    handle.remove()
    model.b(model.a(torch.ones(2, 8))).sum().backward()
    assert seen == ["hook", "post", "post"]


def test_results_of_autograd_in_the_constructor():
    def build():
        module = TwoLayers()
        module.product = module.a.weight * 2
        return module

    model = fastinit.materialize(deferred(build), seed=0)
    assert torch.equal(model.product, model.a.weight * 2)
    assert model.product.requires_grad


def test_real_tensors_are_left_alone():
    model = deferred(TwoLayers)
    model.b = nn.Linear(6, 4)
    before = model.b.weight
    copy = before.detach().clone()
    fastinit.materialize(model)
    assert model.b.weight is before
    assert torch.equal(before, copy)
    state = torch.get_rng_state()
    assert fastinit.materialize(model) is model
    assert torch.equal(state, torch.get_rng_state())  # nothing to do, no seed drawn


def test_a_buffer_that_nothing_writes_is_zero_and_listed():
    def build():
        module = nn.Module()
        module.register_buffer("scratch", torch.empty(3))
        return module

    module = deferred(build)
    assert [row.how for row in fastinit.plan(module).rows] == ["zeros"]
    assert fastinit.materialize(module).scratch.tolist() == [0, 0, 0]


def test_memory_is_released():
    model = deferred(TwoLayers)
    tape = weakref.ref(model.a.weight._value.storage.tape)
    code = nn.init.sparse_.__code__
    fastinit.materialize(model)
    gc.collect()
    assert tape() is None
    del model
    assert nn.init.sparse_.__code__ is not code or threading.active_count() > 1


# --- errors -----------------------------------------------------------------------------------------------------------


class Unwritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.good = nn.Linear(3, 3)
        self.bad = nn.Parameter(torch.empty(3))
        self.worse = nn.Parameter(torch.empty(2))


def test_a_parameter_that_nothing_writes():
    model = deferred(Unwritten)
    before = snapshot(model)
    assert [row.name for row in fastinit.plan(model).rows if row.how == "unwritten"] == ["bad", "worse"]
    with pytest.raises(RuntimeError, match="'bad', 'worse': nothing ever writes"):
        fastinit.materialize(model)
    assert snapshot(model) == before
    with torch.no_grad():
        model.bad.zero_()
        model.worse.fill_(2)
    fastinit.materialize(model)
    assert model.worse.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "bfloat15"}, TypeError, "torch.dtype such as torch.bfloat16.*'bfloat15'"),
        ({"dtype": lambda name, t: "bfloat15"}, TypeError, "dtype for 'a.weight'.*'bfloat15'"),
        ({"device": "cuda:7"}, RuntimeError, "'a.weight'.*cuda:7"),
        ({"device": "nowhere"}, ValueError, "device is 'nowhere'"),
        ({"seed": "zero"}, TypeError, "seed must be an integer, not 'zero'"),
        ({"names": lambda name: 3}, TypeError, "a.weight.*must be a string, not 3"),
        ({"replay": "numpy"}, ValueError, "numpy"),
        ({"replay": "torch", "seed": 1}, ValueError, "manual_seed"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    model = deferred(TwoLayers)
    before, state = snapshot(model), torch.get_rng_state()
    with pytest.raises(error, match=message):
        fastinit.materialize(model, **arguments)
    assert snapshot(model) == before
    assert fastinit.materialize(model).a.weight.isfinite().all()
    assert not torch.equal(state, torch.get_rng_state())  # one seed was drawn, by the call that succeeded


@pytest.mark.parametrize("call", [0, 1, 3, 4])
@pytest.mark.parametrize("mode", [None, "torch"])
def test_memory_runs_out_half_way(monkeypatch, call, mode):
    def build():
        module = TwoLayers()
        module.register_buffer("computed", torch.arange(4.0).sin())
        module.c = nn.Parameter(torch.randn(4) + 1)
        return module

    torch.manual_seed(9)
    model = deferred(build)
    before, state = snapshot(model), torch.get_rng_state()
    allocate, calls = memory.allocate, []

    def exhausted(*arguments):
        calls.append(arguments)
        if len(calls) > call:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return allocate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("torch_fastinit.recording.memory.allocate", exhausted)
        patch.setattr("torch_fastinit.execution.executor.allocate", exhausted)
        if mode is None or call == 0:
            with pytest.raises(RuntimeError, match=r"'.+' \(shape .*can't allocate memory"):
                fastinit.materialize(model, replay=mode)
            assert snapshot(model) == before
            assert mode is None or torch.equal(state, torch.get_rng_state())
    fastinit.materialize(model)
    assert not fastinit.is_deferred(model)


def test_an_operation_that_fails_when_run_names_its_tensor():
    def build():
        module = TwoLayers()
        module.c = nn.Parameter(torch.zeros(3)[torch.tensor([5])])
        return module

    model = deferred(build)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"'c'.*out of bounds"):
        fastinit.materialize(model)
    assert snapshot(model) == before


def test_what_is_no_module():
    with pytest.raises(TypeError, match="Tensor"):
        fastinit.materialize(torch.zeros(2))
    with pytest.raises(TypeError, match="int"):
        fastinit.plan(3)
    with pytest.raises(TypeError, match="str"):
        fastinit.is_deferred("x")
    with pytest.raises(RuntimeError, match="Module"):
        fastinit.skip_init(torch.zeros, 2)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_names_what_was_not_written():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.full = nn.Linear(3, 3)
            self.part = nn.Parameter(torch.empty(10))
            self.register_buffer("derived", torch.empty(4).mul(2))
            with torch.no_grad():
                self.part[:6].normal_()

    model = deferred(Half)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"'part' \(4 elements\), 'derived' \(\d elements\)"):
        fastinit.materialize(model, verify=True)
    assert snapshot(model) == before
    with torch.no_grad():
        model.part[6:].zero_()
        model.derived.zero_()
    fastinit.materialize(model, verify=True, seed=0)
    other = fastinit.materialize(deferred(TwoLayers), verify=True, seed=0)
    assert torch.equal(other.a.weight, fastinit.materialize(deferred(TwoLayers), seed=0).a.weight)


# --- parity -----------------------------------------------------------------------------------------------------------


def test_parity_needs_the_generator_where_it_was():
    torch.manual_seed(0)
    model = deferred(TwoLayers)
    torch.randn(1)
    with pytest.raises(RuntimeError, match="has moved since"):
        fastinit.materialize(model, replay="torch")
    torch.manual_seed(0)
    fastinit.materialize(model, replay="torch")
    torch.manual_seed(0)
    assert torch.equal(TwoLayers().b.weight, model.b.weight)


def test_parity_refuses_a_part_of_a_context():
    torch.manual_seed(0)
    with fastinit.deferred():
        first, second = TwoLayers(), TwoLayers()
    with pytest.raises(RuntimeError, match=r"4 parameters from it.*not part of this module"):
        fastinit.materialize(first, replay="torch")
    both = fastinit.materialize(nn.ModuleList([first, second]), replay="torch")
    torch.manual_seed(0)
    eager = nn.ModuleList([TwoLayers(), TwoLayers()])
    assert all(torch.equal(a, b) for a, b in zip(both.parameters(), eager.parameters(), strict=True))


def test_parity_casts_after_the_replay():
    torch.manual_seed(0)
    ours = fastinit.materialize(deferred(TwoLayers), replay="torch", dtype=torch.bfloat16)
    torch.manual_seed(0)
    assert same_bits(TwoLayers().to(torch.bfloat16).a.weight, ours.a.weight)


# --- contexts ---------------------------------------------------------------------------------------------------------


def test_contexts_nest_and_repeat():
    with fastinit.deferred():
        a = nn.Linear(2, 2)
        with fastinit.deferred():
            b = nn.Linear(2, 2)
        c = fastinit.skip_init(nn.Linear, 2, 2)
        assert a.weight.device.type == b.weight.device.type == c.weight.device.type == "cpu"
        assert a.weight._value.storage.tape is c.weight._value.storage.tape
    assert not fastinit.is_deferred(nn.Linear(2, 2))
    d = deferred(lambda: nn.Linear(2, 2))
    d.tied = a.weight
    fastinit.materialize(nn.ModuleList([a, b, c, d]), seed=0)
    assert d.tied is a.weight


def test_each_thread_has_its_own_context():
    results = {}
    inside, leave = threading.Event(), threading.Event()

    def work(name):
        with fastinit.deferred():
            results[name] = nn.Linear(4, 4)
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work, args=("thread",))
    thread.start()
    assert inside.wait(10)
    assert not fastinit.is_deferred(nn.Linear(2, 2))
    results["main"] = deferred(lambda: nn.Linear(4, 4))
    leave.set()
    thread.join()
    a, b = (fastinit.materialize(results[name], seed=0) for name in ("thread", "main"))
    assert torch.equal(a.weight, b.weight)


def test_an_exception_leaves_the_context():
    def fails():
        nn.Linear(2, 2)
        raise ValueError("constructor")

    with pytest.raises(ValueError, match="constructor"):
        deferred(fails)
    assert not fastinit.is_deferred(nn.Linear(2, 2))


def test_reading_outside():
    model = deferred(lambda: nn.BatchNorm1d(3))
    assert model.running_var.tolist() == [1, 1, 1]
    model = deferred(lambda: nn.Linear(3, 3))
    assert "Deferred" in repr(model.weight)
    with pytest.raises(RuntimeError, match=r"shape \(3, 3\).*materialize"):
        model.weight.tolist()
    with pytest.raises(RuntimeError, match="materialize"):
        torch.save(model, "/dev/null")


def test_init_after_the_context_is_recorded():
    model = deferred(TwoLayers)
    nn.init.trunc_normal_(model.a.weight, std=0.5, a=-0.5, b=0.5)
    nn.init.ones_(model.a.bias)
    fastinit.materialize(model, seed=0)
    assert model.a.weight.abs().max() <= 0.5
    assert model.a.bias.tolist() == [1] * 6


@pytest.mark.parametrize("enabled", [True, False])
def test_python_looks_for_no_garbage_meanwhile(enabled: bool) -> None:
    seen: list[bool] = []

    def name(name: str) -> str:
        seen.append(gc.isenabled())
        if len(seen) > 2:
            raise KeyError(name)
        return name

    try:
        (gc.enable if enabled else gc.disable)()
        fastinit.materialize(fastinit.skip_init(torch.nn.Linear, 3, 2), names=name)
        assert gc.isenabled() is enabled
        with pytest.raises(KeyError):
            fastinit.materialize(fastinit.skip_init(torch.nn.Linear, 3, 2), names=name)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert seen == [False, False, False]
