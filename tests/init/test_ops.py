"""The two custom ops: what torch's machinery asks of them, and the manners of the Python side."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torch_fastinit as fastinit
from torch_fastinit import backend, eager, init, ops
from torch_fastinit.codes import Kind, Op
from torch_fastinit.initializers import (
    Bits,
    Constant,
    Dirac,
    Eye,
    Mixture,
    Normal,
    Pattern,
    Program,
    Sparse,
    Step,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.ops import Fill, Region
from torch_fastinit.stream import draw_stream

fill_op = torch.ops.fastinit.fill_.default
batch_op = torch.ops.fastinit.fill_batch_.default

MATRICES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "uniform_": init.uniform_,
    "normal_": init.normal_,
    "trunc_normal_": init.trunc_normal_,
    "xavier_uniform_": init.xavier_uniform_,
    "kaiming_normal_": init.kaiming_normal_,
    "lecun_normal_": init.lecun_normal_,
    "orthogonal_": init.orthogonal_,
    "sparse_": lambda t: init.sparse_(t, 0.5),
    "eye_": init.eye_,
    "constant_": lambda t: init.constant_(t, 2.0),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_the_eager_op(requires_grad: bool) -> None:
    t = torch.empty(5, 4, requires_grad=requires_grad)
    opcheck(fill_op, (t, int(Kind.UNIFORM), [-1.0, 1.0]))
    opcheck(fill_op, (t, int(Kind.NORMAL), [0.0, 1.0]), {"generator": None})


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_the_batch_op(requires_grad: bool) -> None:
    tensors = [torch.empty(5, 4, requires_grad=requires_grad), torch.empty(3, dtype=torch.bfloat16)]
    recipe = [Kind.NORMAL, 1, 2, 2, 0, 0, Kind.UNIFORM, 3, 4, 2, 1, 0, 10, 7]
    opcheck(batch_op, (tensors, [int(x) for x in recipe], [0.0, 1.0, -1.0, 1.0]))


@pytest.mark.parametrize("name", MATRICES)
def test_compiled_fill_equals_eager(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(MATRICES[name], fullgraph=True, backend="aot_eager")
    eager, t, leaf = torch.zeros(6, 5), torch.zeros(6, 5), torch.nn.Parameter(torch.zeros(6, 5))
    torch.manual_seed(3)
    MATRICES[name](eager)
    torch.manual_seed(3)
    version = t._version
    result = compiled(t)
    assert torch.equal(t, eager)
    assert torch.equal(result, eager)
    assert t._version > version
    compiled(leaf)
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert bool(leaf.any())


def test_compiled_fills_are_neither_merged_nor_dropped() -> None:
    torch._dynamo.reset()

    def two() -> tuple[torch.Tensor, torch.Tensor]:
        a, b = torch.empty(8), torch.empty(8)
        init.normal_(a)
        init.normal_(b)
        return a, b + 1

    torch.manual_seed(0)
    a, b = two()
    torch.manual_seed(0)
    x, y = torch.compile(two, fullgraph=True, backend="aot_eager")()
    assert torch.equal(a, x)
    assert torch.equal(b, y)
    assert not torch.equal(x, y - 1)


@pytest.mark.parametrize("name", MATRICES)
def test_fake_tensors(name: str) -> None:
    state = torch.get_rng_state()
    with FakeTensorMode():
        t = torch.empty(4, 3)
        assert MATRICES[name](t) is t
        assert t.shape == (4, 3)
        assert type(t).__name__ == "FakeTensor"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", MATRICES)
def test_inference_mode(name: str) -> None:
    normal = torch.full((4, 4), 7.0)
    with torch.inference_mode():
        inference = MATRICES[name](torch.full((4, 4), 7.0))
        MATRICES[name](normal)
    assert inference.is_inference()
    assert not bool((inference == 7).any())
    assert not bool((normal == 7).any())
    before = inference.clone()
    with pytest.raises(RuntimeError, match="inference tensor"):
        MATRICES[name](inference)
    assert torch.equal(inference, before)


def test_threads_draw_as_one_would() -> None:
    """Fills in eight threads, each with its own generator, give what they give in one."""

    def run(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([init.normal_(torch.empty(16), generator=generator) for _ in range(50)])

    results: dict[int, torch.Tensor] = {}
    threads = [threading.Thread(target=lambda s=s: results.__setitem__(s, run(s))) for s in range(8)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for s in range(8):
        assert torch.equal(results[s], run(s))


def test_batch_of_everything() -> None:
    kinds: list[tuple[Any, torch.dtype]] = [
        (Uniform(-1.0, 1.0), torch.bfloat16),
        (Normal(0.0, 0.02), torch.complex64),
        (TruncatedNormal(), torch.float64),
        (Constant(2.5), torch.float16),
        (Constant(-3), torch.int64),
        (Eye(), torch.float32),
        (Sparse(0.5, 1.0), torch.float32),
        (Bits(5), torch.int32),
    ]
    fills = [Fill(torch.zeros(6, 4, dtype=d), i, seed=9, stream=n) for n, (i, d) in enumerate(kinds)]
    ops.fill(fills)
    for n, f in enumerate(fills):
        alone = torch.zeros_like(f.tensor)
        ops.fill([Fill(alone, f.initializer, seed=9, stream=n)])
        assert torch.equal(alone, f.tensor)
        assert bool(alone.any())
    dirac = torch.empty(4, 2, 3)
    ops.fill([Fill(dirac, Dirac(2))])
    assert torch.equal(dirac, torch.nn.init.dirac_(torch.empty(4, 2, 3), 2))
    ops.fill([])


@pytest.mark.parametrize("initializer", [Uniform(), Normal(), TruncatedNormal(), Sparse(0.5), Eye()], ids=str)
def test_region_is_a_part_of_the_whole(initializer: Any) -> None:
    whole, part = torch.empty(9, 7), torch.empty(4, 3)
    ops.fill([Fill(whole, initializer, 1, 2)])
    ops.fill([Fill(part, initializer, 1, 2, Region((9, 7), (3, 2)))])
    assert torch.equal(part, whole[3:7, 2:5])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [2, 255, 256, 257, 1300])
def test_a_batch_of_fresh_tensors_is_the_batch_as_an_op(count: int) -> None:
    def fills() -> list[Fill]:
        return [Fill(torch.zeros(300 + n % 7), Normal(), 1, n) for n in range(count)]

    fresh, as_op = fills(), fills()
    ops.fill(fresh, fresh=True)
    ops.fill(as_op)
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(fresh, as_op, strict=True))
    assert all(bool(f.tensor.any()) for f in as_op)


@pytest.mark.usefixtures("threads")
def test_nothing_is_at_work_when_a_batch_has_failed() -> None:
    """Its last fill is refused when the others have begun: they are finished first, so their memory may go."""
    tensors = [torch.zeros(20_000) for _ in range(600)]
    bad = Fill(torch.zeros(3, 1).expand(3, 3), Normal())
    with pytest.raises(RuntimeError, match="more than one element"):
        ops.fill([*(Fill(t, Normal(), 1, n) for n, t in enumerate(tensors)), bad], fresh=True)
    assert all(bool(t.any()) for t in tensors[:512])
    for t in tensors:
        t.zero_()
    time.sleep(0.02)
    assert not any(bool(t.any()) for t in tensors)


STEPS = (Step(Op.MUL, 0.1, torch.float32), Step(Op.CAST, 0.0, torch.bfloat16))
EVERY: list[tuple[Any, torch.dtype]] = [
    (Uniform(-1.0, 1.0), torch.bfloat16),
    (Normal(0.0, 0.02), torch.complex64),
    (TruncatedNormal(0.0, 1.0, -math.inf, 3.0), torch.float64),
    (Constant(2.5), torch.float16),
    (Constant(-3), torch.int64),
    (Constant(1 - 2j), torch.complex128),
    (Eye(), torch.float32),
    (Sparse(0.5, 1.0), torch.float32),
    (Bits(2**65 + 2**63 + 5), torch.int32),
    (Mixture(((0.25, Uniform(-2.0, -1.0)), (0.5, Constant(0.0)), (0.25, Normal(3.0, 0.5)))), torch.float16),
    (Program(TruncatedNormal(), torch.float32, STEPS), torch.bfloat16),
]


def test_decode_is_the_inverse_of_encode() -> None:
    words = (0, 1, 2**63 - 1, 2**63, 2**64 - 1)
    for n, (initializer, dtype) in enumerate(EVERY):
        for region in (None, Region((9, 8), (2, 1))):
            seed, stream = words[n % 5], words[(n + 2) % 5]
            batch = [Fill(torch.zeros(6, 4, dtype=dtype), initializer, seed, stream, region), Fill(T3, Dirac(2))]
            fills = [ops.ready(fill) for fill in batch]
            lists = ops.encode(batch)
            assert all(-(2**63) <= number < 2**63 for number in lists[1])  # what an op's integers hold
            decoded = ops.decode(*lists)
            assert ops.encode(decoded)[1:] == lists[1:]
            for fill, other in zip(fills, decoded, strict=True):
                assert fill.tensor is other.tensor or torch.equal(fill.tensor, other.tensor)
                assert fill.initializer == other.initializer
                assert fill.region == other.region
                assert fill.second == other.second
                if not isinstance(fill.initializer, Pattern):
                    assert (fill.seed, fill.stream) == (other.seed, other.stream)


T3 = torch.zeros(4, 2, 3)


def test_an_ordinary_fill_is_ready_as_it_is() -> None:
    fill = Fill(torch.zeros(3), Normal(), 1, 2)
    assert ops.ready(fill) is fill


class _Entry:
    """In the place of the compiled module: notes what reaches it, and from where."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.types: list[type] = []
        self.stack: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def fill_cpu(self, fills: Any, *args: Any) -> None:
        fills = list(fills)
        self.types += [type(fill) for fill in fills]
        frame = sys._getframe(1)
        self.stack = []
        while frame is not None and frame.f_code.co_filename != __file__:
            self.stack.append((frame.f_code.co_filename, frame.f_code.co_name))
            frame = frame.f_back  # type: ignore[assignment]
        self.module.fill_cpu(fills, *args)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> _Entry:
    entry = _Entry(backend._C)
    monkeypatch.setattr(backend, "_C", entry)
    return entry


@pytest.mark.parametrize("name", ["normal_", "uniform_"])
def test_an_eager_call_is_four_calls_in_three_files(name: str, entry: _Entry) -> None:
    """From whoever calls it to C++, on an ordinary CPU tensor."""
    for tensor in (torch.empty(3), torch.nn.Parameter(torch.empty(3, 4))):
        getattr(init, name)(tensor)
        assert len(entry.stack) <= 4, entry.stack
        assert len({file for file, _ in entry.stack}) <= 3, entry.stack


def test_materialize_and_an_eager_call_hand_the_same_to_the_same(entry: _Entry) -> None:
    init.normal_(torch.empty(3))
    init.eye_(torch.empty(3, 3))
    fastinit.random_bits_(torch.empty(3, dtype=torch.int32), seed=0, stream=0)
    assert entry.types == [Fill] * 3
    with fastinit.deferred():
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(3))
    fastinit.materialize(model)
    assert entry.types == [Fill] * 7


def test_region_of_a_complex_tensor() -> None:
    whole, part = torch.empty(9, 7, dtype=torch.complex64), torch.empty(4, 3, dtype=torch.complex64)
    ops.fill([Fill(whole, Normal(), 1, 2)])
    ops.fill([Fill(part, Normal(), 1, 2, Region((9, 7), (3, 2)))])
    assert torch.equal(part, whole[3:7, 2:5])


def test_second_draw_of_a_sparse_fill() -> None:
    """Its stream places the zeros, and no value depends on it; the default is what an eager fill takes."""
    a, b, c = torch.empty(30, 8), torch.empty(30, 8), torch.empty(30, 8)
    ops.fill([Fill(a, Sparse(0.5), 1, 2), Fill(b, Sparse(0.5), 1, 2, second=draw_stream(2, 1))])
    ops.fill([Fill(c, Sparse(0.5), 1, 2, second=3)])
    assert torch.equal(a, b)
    assert not torch.equal(a == 0, c == 0)
    both = (a != 0) & (c != 0)
    assert bool(both.any())
    assert torch.equal(a[both], c[both])


def test_eager_fill_is_draw_0_of_stream_0() -> None:
    for initializer in (Normal(), Sparse(0.5)):
        eager, explicit = torch.empty(8, 8), torch.empty(8, 8)
        ops.fill_one(eager, initializer, torch.Generator().manual_seed(4))
        seed = torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=torch.Generator().manual_seed(4))
        ops.fill([Fill(explicit, initializer, int(seed), 0)])
        assert torch.equal(eager, explicit)


@pytest.mark.parametrize("initializer", [Normal(), Constant(1.0), Eye(), Bits()], ids=str)
def test_overlap_is_refused_in_a_batch(initializer: Any) -> None:
    dtype = torch.int32 if isinstance(initializer, Bits) else torch.float32
    fine, expanded = torch.full((3, 3), 7, dtype=dtype), torch.zeros(3, 1, dtype=dtype).expand(3, 3)
    with pytest.raises(RuntimeError, match=r"more than one element.*\(3, 3\)"):
        ops.fill([Fill(fine, initializer), Fill(expanded, initializer)])
    assert bool((fine == 7).all())
    assert not bool(expanded.any())
    ops.fill([Fill(torch.zeros(1, 3, dtype=dtype).expand(1, 3), initializer)])  # a dimension of 1 repeats nothing


@pytest.mark.parametrize("initializer", [Normal(), Eye(), Sparse(0.5), Bits()], ids=str)
def test_dtype_is_refused_in_a_batch(initializer: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.int64"):
        ops.fill([Fill(torch.zeros(3, 3, dtype=torch.int64), initializer)])


@pytest.mark.parametrize("value", [0.0, -0.0, float("nan"), False, 1, 3.7, 1 + 2j])
def test_constant_is_what_fill_writes(value: complex) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2, torch.complex64, torch.int64, torch.bool):
        if isinstance(value, complex) != dtype.is_complex:
            continue
        if value != value and not dtype.is_floating_point:
            continue
        t = torch.empty(5, dtype=dtype)
        ops.fill([Fill(t, Constant(value))])
        assert t.view(torch.uint8).tolist() == torch.empty(5, dtype=dtype).fill_(value).view(torch.uint8).tolist()


# A fill of an ordinary tensor that nothing watches goes without the dispatcher. It must not be told apart from the op.


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("kind", ["tensor", "parameter", "expanded", "bfloat16", "own generator"])
def test_without_the_dispatcher_is_as_with_it(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[Any, int, torch.Tensor]:
        t = torch.zeros(6, 5, dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32)
        if kind == "parameter":
            t = torch.nn.Parameter(t)
        elif kind == "expanded":
            t = torch.zeros(1, 5).expand(6, 5)
        torch.manual_seed(3)
        before = t._version
        try:
            outcome: Any = MATRICES[name](t) is t
        except RuntimeError as error:
            outcome = str(error)
        return outcome, t._version - before, t.detach().clone()

    asked = []
    watched = ops.watched
    monkeypatch.setattr(eager, "watched", lambda: asked.append(watched()) or asked[-1])
    ours = run()
    assert not any(asked)
    assert len(asked) == (name not in ("orthogonal_", "constant_"))  # which are other ops of torch
    monkeypatch.setattr(eager, "watched", lambda: True)
    theirs = run()
    assert ours[:2] == theirs[:2]
    assert torch.equal(ours[2], theirs[2])


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    def __init__(self) -> None:
        self.functions: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


RANDOM = ["uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "kaiming_normal_", "lecun_normal_", "sparse_"]


@pytest.mark.parametrize("name", RANDOM)
# torch 2.10's profiler warns so of every profile.
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")
def test_whoever_watches_sees_the_op(name: str) -> None:
    fill = MATRICES[name]
    t = torch.zeros(4, 3)
    with _Seen() as seen:
        fill(t)
    assert fill_op in seen.ops
    with _Called() as called:
        fill(t)
    assert fill_op in called.functions or getattr(init, name) in called.functions
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fill(t)
    assert "fastinit::fill_" in {event.key for event in profile.key_averages()}
    graph = make_fx(lambda t: fill(t))(t).graph
    assert fill_op in {node.target for node in graph.nodes}
    with pytest.raises(RuntimeError, match="Batching rule not implemented for fastinit::fill_"):
        torch.func.vmap(fill)(torch.zeros(2, 4, 3))


def test_a_subclass_sees_the_op() -> None:
    seen = []

    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    loud = torch.zeros(3).as_subclass(Loud)
    init.trunc_normal_(loud)
    assert fill_op in seen
    assert bool(loud.any())


def test_a_lazy_conjugate_is_written_through() -> None:
    t = torch.zeros(5, dtype=torch.complex64)
    torch.manual_seed(1)
    init.normal_(t.conj())
    torch.manual_seed(1)
    assert torch.equal(t, init.normal_(torch.empty_like(t)).conj())


@pytest.mark.parametrize("name", ["uniform_", "normal_"])
def test_one_element_takes_less_than_three_times_what_torch_takes(name: str) -> None:
    """The best of many short rounds in turn. Through the dispatcher it takes five times as long."""
    t = torch.empty(1)
    least = {}
    for _ in range(60):
        for module in (torch.nn.init, init):
            function = getattr(module, name)
            start = time.perf_counter()
            for _ in range(100):
                function(t)
            least[module] = min(time.perf_counter() - start, least.get(module, 1.0))
    assert least[init] < 3 * least[torch.nn.init]
