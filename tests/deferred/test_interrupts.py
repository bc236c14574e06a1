"""All or nothing: what `materialize` leaves behind when something ends it, whatever that is and whenever it comes."""

from __future__ import annotations

import collections
import dis
import functools
import gc
import random
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import torch_fastinit as fastinit
from torch_fastinit.execution import parity
from torch_fastinit.execution.swap import exchange
from torch_fastinit.recording.active import active
from torch_fastinit.recording.memory import poisoned_with

PATCHED = [torch.nn.init._no_grad_trunc_normal_, nn.init.sparse_, torch.manual_seed, nn.Parameter.__new__]


class Stop(BaseException):
    """What a signal handler raises: no `except Exception` sees it."""


class Small(nn.Module):
    """One tensor of each way to its values, two that are tied and one that has a hook."""

    def __init__(self):
        super().__init__()
        self.filled = nn.Parameter(torch.randn(4))
        self.folded = nn.Parameter(torch.rand(4) * 2 + 1)
        self.replayed = nn.Parameter(torch.randn(3, 3).exponential_())
        self.tied = self.filled
        self.filled.register_hook(lambda grad: grad)
        self.register_buffer("empty", torch.empty(3))
        self.register_buffer("shared", torch.from_numpy(np.arange(3.0)))
        self.register_buffer("view", self.filled.data[1:])
        self.plain = torch.full((2,), 3.0)


class Meta(nn.Module):
    """Layers for the meta device, one of which is real, and a method that ties."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.layers = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
            self.head = nn.Linear(2, 2, bias=False)
        self.real = nn.Parameter(torch.ones(2))

    def tie_weights(self):
        self.head.weight = self.layers[0].weight


def tensors(module):
    return [*module.parameters(), *module.buffers(), *([module.plain] if hasattr(module, "plain") else [])]


def is_real(t):
    return not isinstance(t, torch._subclasses.FakeTensor) and not t.is_meta


def surroundings():
    """What is to be as it was, apart from the module."""
    return (
        gc.isenabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch._C._get_torch_function_state(),
        _get_current_dispatch_mode_stack(),
        active.tape,
        poisoned_with(),
    )


#: The interpreter looks for signals when it has executed one of these.
CHECKS = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "POP_JUMP_BACKWARD")


@functools.cache
def operations(code):
    return {i.offset: i.opname for i in dis.get_instructions(code)}


def at_moments(function, moment):
    """Run `function`; call `moment(code, offset)` wherever the interpreter may run a signal handler meanwhile."""

    def trace(frame, event, arg):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        known, previous = operations(frame.f_code), [""]

        def local(frame, event, arg):
            if event == "opcode":
                before, previous[0] = previous[0], known.get(frame.f_lasti, "")
                if before.startswith(CHECKS) and previous[0] != "PUSH_EXC_INFO":  # that call has raised
                    moment(frame.f_code, frame.f_lasti)
            return local

        return local

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(old)


def moments_of(function):
    """The first and the last time that each of them comes: instruction and number."""
    counts = collections.Counter()
    at_moments(function, lambda *place: counts.update([place]))
    return [(place, n) for place, count in counts.items() for n in sorted({1, count})]


def stop_at(function, place, number):
    """Run `function` and raise `Stop` at this moment. Whether it came."""
    left = [number]

    def moment(*here):
        if here == place:
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise Stop

    try:
        at_moments(function, moment)
    except Stop:
        return True
    return left[0] <= 0  # in what a destructor calls Python prints exceptions and goes on


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)


def deferred(build):
    torch.manual_seed(0)
    with fastinit.deferred():
        return build()


CASES = {
    "stream": (lambda: deferred(Small), {"seed": 0}),
    "parity": (lambda: deferred(Small), {"replay": "torch"}),
    "verify": (lambda: deferred(lambda: nn.Linear(2, 2)), {"seed": 0, "verify": True}),
    "meta": (Meta, {"seed": 0, "reset": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_at_every_instruction_at_which_python_runs_signal_handlers(case, quiet, monkeypatch):
    monkeypatch.setattr(parity, "_deferred_parameters", lambda tapes: ())  # goes over all objects of the process
    build, arguments = CASES[case]
    for _ in range(2):  # earlier recordings: a tensor of which torch holds a view outlives one collection
        gc.collect()
    codes = [function.__code__ for function in PATCHED]
    expected = fastinit.materialize(build(), **arguments)
    names = list(expected.state_dict())
    moments = moments_of(functools.partial(fastinit.materialize, build(), **arguments))
    assert len(moments) > 300
    before = surroundings()
    seen = collections.Counter()
    module = build()
    for moment in moments:
        generator = torch.get_rng_state()
        came = stop_at(functools.partial(fastinit.materialize, module, **arguments), *moment)
        after = surroundings()
        assert after == before, moment
        real = [is_real(t) for t in tensors(module) if t is not getattr(module, "real", None)]
        assert all(real) or not any(real), moment
        if case == "parity" and not real[0]:
            assert torch.equal(generator, torch.get_rng_state()), moment
        seen[came, real[0]] += 1
        assert list(module.state_dict()) == names, moment
        if real[0]:
            for a, b in zip(tensors(module), tensors(expected), strict=True):
                assert torch.equal(a, b), moment
            module = build()
    fastinit.materialize(module, **arguments)
    for a, b in zip(tensors(module), tensors(expected), strict=True):
        assert torch.equal(a, b)
    del module
    for _ in range(2):
        gc.collect()
    assert [function.__code__ for function in PATCHED] == codes
    assert seen[True, False] > 200
    assert seen[True, True] > 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python drops it in a weak callback
def test_signals_at_300_moments():
    def build():
        with fastinit.deferred():
            return nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(3000)])

    def handler(*_):
        raise Stop

    rng = random.Random(0)
    module = build()
    start = time.perf_counter()
    fastinit.materialize(module, seed=0)
    total = time.perf_counter() - start
    expected = torch.cat([p.detach() for p in module])
    old = signal.signal(signal.SIGALRM, handler)
    module, interrupted = build(), 0
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.01, 1.0) * total)
                fastinit.materialize(module, seed=0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                interrupted += 1
            assert gc.isenabled()
            assert torch.is_grad_enabled()
            real = sum(map(is_real, module))
            assert real in (0, 3000)
            if real:
                assert torch.equal(torch.cat([p.detach() for p in module]), expected)
                module = build()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupted > 100
    fastinit.materialize(module, seed=0)
    assert torch.equal(torch.cat([p.detach() for p in module]), expected)


ALLOCATIONS = ("empty_strided", "empty", "to", "clone", "detach", "_make_subclass", "rand", "randn", "zero_")


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_at_each_allocation(kind):
    """Whenever there is no memory the error keeps its type, and there is one more chance."""
    module, messages = deferred(Small), []
    for limit in range(1000):
        count = 0

        def profile(frame, event, function, limit=limit):
            nonlocal count
            if event == "c_call" and function.__name__ in ALLOCATIONS:
                count += 1
                if count > limit:
                    raise kind("there is no more memory")

        before, generator = surroundings(), torch.get_rng_state()
        sys.setprofile(profile)
        try:
            fastinit.materialize(module, replay="torch")
            break
        except kind as error:
            messages.append(str(error))
        finally:
            sys.setprofile(None)
        assert surroundings() == before
        assert torch.equal(generator, torch.get_rng_state())
        assert not any(map(is_real, tensors(module)))
    assert limit > 10
    assert all("there is no more memory" in message for message in messages)
    assert all(map(is_real, tensors(module)))


def test_the_tensor_that_has_no_memory_is_named(monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    layer = deferred(lambda: nn.Linear(2, 2))
    monkeypatch.setattr("torch_fastinit.execution.executor.allocate", refuse)
    with pytest.raises(torch.OutOfMemoryError, match=r"'weight' .*could not be materialised: CUDA out of memory"):
        fastinit.materialize(layer, seed=0)


@pytest.mark.parametrize("argument", ["names", "dtype"])
def test_a_function_of_the_caller_that_raises(argument):
    """Wherever it does, and `module.reset_parameters` too."""
    for limit in range(3):
        module = deferred(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        left = iter(range(limit))

        def call(name, tensor=None, left=left):
            next(left, None) is not None or 1 / 0
            return name if tensor is None else tensor.dtype

        with pytest.raises(ZeroDivisionError):
            fastinit.materialize(module, seed=0, **{argument: call})
        assert not any(map(is_real, tensors(module)))


def test_an_initializer_that_raises():
    module = Meta()
    module.layers[1].reset_parameters = lambda: 1 / 0
    before = {name: dict(vars(m)) for name, m in module.named_modules()}
    kept = module.real
    with pytest.raises(ZeroDivisionError):
        fastinit.materialize(module, seed=0, reset=True)
    assert {name: dict(vars(m)) for name, m in module.named_modules()} == before
    assert module.real is kept
    assert torch.equal(kept, torch.ones(2))
    assert module.head.weight is not module.layers[0].weight
    assert all(type(p) is nn.Parameter and p.is_meta for p in module.parameters() if p is not kept)


class Slotted(torch.Tensor):
    __slots__ = ("slot",)


@pytest.mark.parametrize("how", ["memory", "class"])
@pytest.mark.parametrize("which", range(3))
def test_exchange_all_or_none(which, how):
    """When torch, or Python, refuses one of them the others are what they were, hooks too."""
    olds = [torch.full((2,), float(i), requires_grad=True) for i in range(3)]
    calls = []
    for i, t in enumerate(olds):
        t.mark = i
        t.register_hook(lambda grad, i=i: calls.append(i))
    news = [nn.Parameter(torch.full((3,), 10.0 + i)) for i in range(3)]
    if how == "memory":
        kept = torch._C._WeakTensorRef(olds[which])
    else:
        kept = news[which] = torch.ones(2).as_subclass(Slotted)
    names = ["a", "b", "c"]
    with pytest.raises(RuntimeError, match=rf"'{names[which]}' could not be put in place: "):
        exchange(names, olds, news)
    for i, (old, new) in enumerate(zip(olds, news, strict=True)):
        assert type(old) is torch.Tensor
        assert vars(old) == {"mark": i}
        assert old.tolist() == [i, i]
        assert type(new) is (Slotted if new is kept else nn.Parameter)
        assert vars(new) == {}
    sum(t.sum() for t in olds).backward()
    assert sorted(calls) == [0, 1, 2]
    del kept
    if how == "memory":
        exchange(names, olds, news)
        assert [t.tolist() for t in olds] == [[10 + i] * 3 for i in range(3)]
        assert [type(t) for t in olds] == [nn.Parameter] * 3


def test_no_thread_writes_once_the_call_has_left(monkeypatch):
    """An interrupt comes while other threads are at the first fills: these are complete, and stay as they are."""
    from torch_fastinit import ops

    reals = []
    original = ops.ready

    def ready(fill):
        if len(reals) == 600:
            raise Stop
        reals.append(fill.tensor)
        return original(fill)

    monkeypatch.setattr(ops, "ready", ready)
    module = deferred(lambda: nn.ParameterList([nn.Parameter(torch.randn(1 << 15)) for _ in range(700)]))
    with pytest.raises(Stop):
        fastinit.materialize(module, seed=0)
    assert not any(map(is_real, module))
    begun = [t for t in reals[:512] if bool((t != 0).float().mean() > 0.99)]
    assert len(begun) == 512  # two chunks
    then = [t.clone() for t in reals]
    time.sleep(0.1)
    assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(then, reals, strict=True))


def test_a_materialize_of_another_thread_raises_what_was_sent_to_it():
    """`PyThreadState_SetAsyncExc`, by which notebooks and test runners stop threads."""
    import ctypes

    module = deferred(lambda: nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(500)]))
    for _ in range(30):
        ended = threading.Event()

        def work(module=module, ended=ended):
            try:
                for _ in range(1000):
                    fastinit.materialize(module, seed=0)
            except Stop:
                pass
            finally:
                ended.set()

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(random.uniform(0, 0.005))
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Stop))
        thread.join()
        assert ended.is_set()
        assert gc.isenabled()
        assert sum(map(is_real, module)) in (0, 500)
        if is_real(module[0]):
            module = deferred(lambda: nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(500)]))
