"""Which operations become one pass over memory, what the plan says, and that folding changes no bit."""

from __future__ import annotations

import gc
import pickle
import types
import weakref

import pytest
import torch
from support.comparison import same_bits, tensors_of
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit._torch import float8_saturates
from torch_fastinit.execution.executor import Executor
from torch_fastinit.initializers import Normal, Sparse
from torch_fastinit.ops import Fill, fill
from torch_fastinit.planning.draws import assign_draws
from torch_fastinit.planning.planner import Filled, Kept, Planner, Replayed, Shared, Zeros
from torch_fastinit.planning.tensors import targets_of
from torch_fastinit.recording.replay import closure
from torch_fastinit.recording.tape import Entry, Tape, need
from torch_fastinit.recording.tensor import Deferred
from torch_fastinit.stream import draw_stream, stream_id


def deferred(build):
    with fastinit.deferred():
        return build()


def parameter(write, *shape, dtype=torch.float32):
    """A module with one parameter ``w``, written by a function under no_grad."""

    def build():
        module = nn.Module()
        module.w = nn.Parameter(torch.empty(shape, dtype=dtype))
        with torch.no_grad():
            module.w = nn.Parameter(result) if (result := write(module.w)) is not None else module.w
        return module

    return deferred(build)


def in_place(*_):
    """For a parameter that is written in place: there is no other."""


def rows_then_zero(w):
    w.normal_()
    w[2].zero_()
    w[:, 1].fill_(3.0)


def twice(w):
    w.uniform_()
    w.copy_(torch.randn(6, 5))
    w.normal_(1.0, 2.0)


ONE_PASS = {
    "normal": (lambda w: (w.normal_(0.5, 2.0), None)[1], "Normal(mean=0.5, std=2)"),
    "rows": (rows_then_zero, "Normal(mean=0, std=1), then Constant(value=0), then Constant(value=3)"),
    "dead writes": (twice, "Normal(mean=1, std=2)"),
    "randn": (lambda w: torch.randn(6, 5), "Normal(mean=0, std=1)"),
    "rand": (lambda w: torch.rand(6, 5), "Uniform(a=0, b=1)"),
    "torch.normal": (lambda w: torch.normal(0.5, 2.0, (6, 5)), "Normal(mean=0.5, std=2)"),
    "clone": (lambda w: torch.randn(6, 5).clone(), "Normal(mean=0, std=1)"),
    "narrow cast": (lambda w: torch.randn(6, 5).to(torch.bfloat16), "Normal(mean=0, std=1)"),
    "constant cast": (lambda w: torch.full((6, 5), 0.1).half(), "Constant(value=0.0999756)"),
    "full": (lambda w: torch.full((6, 5), 0.3), "Constant(value=0.3)"),
    "halves": (lambda w: (w[:3].normal_(), w[3:].uniform_(-1, 1), None)[2], "Normal(mean=0, std=1), then Uniform"),
    "transposed": (lambda w: (w.t().normal_(), None)[1], "Normal"),
    "trunc": (lambda w: (nn.init.trunc_normal_(w, std=0.1), None)[1], "TruncatedNormal(mean=0, std=0.1, a=-2, b=2)"),
    "sparse": (lambda w: (nn.init.sparse_(w, 0.5), None)[1], "Sparse(sparsity=0.5, std=0.01)"),
    "eye": (lambda w: (nn.init.eye_(w), None)[1], "Eye()"),
    "scaled": (lambda w: torch.randn(6, 5) * 0.02, "Normal(mean=0, std=1) times 0.02"),
    "scaled and shifted": (lambda w: in_place(w.normal_().mul_(0.3).add_(1)), "Normal(mean=0, std=1) times 0.3 plus 1"),
    "affine": (lambda w: torch.rand(6, 5) * 2 - 1, "Uniform(a=0, b=1) times 2 plus -1"),
    "reversed": (lambda w: 1 - torch.rand(6, 5), "Uniform(a=0, b=1) times -1 plus 1"),
    "divided": (lambda w: torch.randn(6, 5) / 30**0.5, "Normal(mean=0, std=1) divided by 5.47723"),
    "divided in place": (lambda w: in_place(w.normal_().div_(3)), "Normal(mean=0, std=1) divided by 3"),
    "negated": (lambda w: -torch.randn(6, 5), "Normal(mean=0, std=1) times -1"),
    "truncated, then scaled": (
        lambda w: in_place(nn.init.trunc_normal_(w).mul_(0.02)),
        "TruncatedNormal(mean=0, std=1, a=-2, b=2) times 0.02",
    ),
    "a row of zeros, then scaled": (
        lambda w: in_place(w.normal_(), w[2].fill_(3.0), w.mul_(0.1)),
        "Normal(mean=0, std=1) times 0.1, then Constant(value=0.3)",
    ),
    "halves, one scaled": (
        lambda w: in_place(w[:3].normal_(), w[3:].normal_(), w[3:].mul_(0.5)),
        "Normal(mean=0, std=1), then Normal(mean=0, std=1) times 0.5",
    ),
    "a number in a tensor": (lambda w: torch.randn(6, 5) * torch.tensor(0.1), "Normal(mean=0, std=1) times 0.1"),
    "a number in a float64 tensor": (
        lambda w: torch.randn(6, 5).mul_(torch.tensor(0.1, dtype=torch.float64)),
        "Normal(mean=0, std=1) times 0.1",
    ),
    "uniform, cast": (lambda w: torch.rand(6, 5).to(torch.bfloat16), "Uniform(a=0, b=1) as bfloat16"),
    "cast and back": (
        lambda w: (torch.rand(6, 5).half() * 0.1).float() + 1,
        "Uniform(a=0, b=1) as float16 times 0.1 as float32 plus 1",
    ),
    "float64": (
        lambda w: torch.randn(6, 5, dtype=torch.float64) * 0.1 + 0.2,
        "Normal(mean=0, std=1) times 0.1 plus 0.2",
    ),
    "constants": (lambda w: torch.full((6, 5), 0.3) * 0.1 + 7, "Constant(value=7.03)"),
    "permuted copy": (lambda w: torch.randn(5, 6).t().contiguous(), "Normal(mean=0, std=1)"),
}

REPLAYED = {
    "scaled by itself": (lambda w: (lambda x: x * x)(torch.randn(6, 5)), "mul"),
    "scaled by infinity": (lambda w: torch.randn(6, 5) * float("inf"), "mul"),
    "divided by zero": (lambda w: torch.randn(6, 5) / 0, "div"),
    "a multiple added": (lambda w: torch.rand(6, 5).add(0.1, alpha=0.7), "add"),
    "more steps than a program has": (lambda w: torch.rand(6, 5) * 2 * 3 * 4 * 5 * 6 * 7, "mul"),
    "a column scaled": (lambda w: in_place(w[:, 0].normal_(), w[:, 1:].zero_(), w[:, 0].mul_(0.5)), "mul_"),
    "part of a fill scaled": (lambda w: in_place(w.normal_(), w[2].mul_(0.5)), "mul_"),
    "sparse, scaled": (lambda w: in_place(nn.init.sparse_(w, 0.5).mul_(2)), "mul_"),
    "integers scaled": (lambda w: torch.full((6, 5), 7) * 2.5, "mul to float32 after int64"),
    "float64 to float32": (
        lambda w: torch.randn(6, 5, dtype=torch.float64).float(),
        "_to_copy to float32 after float64",
    ),
    "computed": (lambda w: torch.arange(30.0).view(6, 5), "arange"),
    "orthogonal": (lambda w: (nn.init.orthogonal_(w), None)[1], "orthogonal_: no fill has this distribution"),
    "exponential": (lambda w: (w.exponential_(), None)[1], "exponential_: no fill has this distribution"),
    "seeded": (lambda w: (torch.manual_seed(0), torch.randn(6, 5))[1], "normal_: seeded by the constructor"),
    "read": (lambda w: (w.normal_(), w.tolist(), None)[2], "normal_: read by the constructor"),
}


@pytest.mark.parametrize("name", ONE_PASS)
def test_one_pass(name):
    write, what = ONE_PASS[name]
    (row,) = fastinit.plan(parameter(write, 6, 5)).rows
    assert row.how == "one pass", row
    assert row.what.startswith(what)


@pytest.mark.parametrize("name", REPLAYED)
def test_replayed_and_why(name):
    write, why = REPLAYED[name]
    (row,) = fastinit.plan(parameter(write, 6, 5)).rows
    assert (row.how, row.why) == ("replayed", why)


@pytest.mark.parametrize("name", ONE_PASS)
def test_folding_changes_no_bit(name):
    """A fill into final memory has the bits of the recorded operations, run one by one with draws of the stream."""
    module = parameter(ONE_PASS[name][0], 6, 5)
    targets = targets_of(module)
    results = []
    for fold in (True, False):
        draws = assign_draws(targets)
        plan = Planner(draws, fold=fold).plan(targets)
        assert [one.source.how for one in plan] == ["one pass" if fold else "replayed"]
        results.append(Executor(plan, [target.tensor for target in targets], 7, draws).run()[0])
    assert same_bits(*results)


DRAWS = {
    "normal": lambda w: w.normal_(),
    "uniform": lambda w: w.uniform_(-1, 1),
    "truncated": lambda w: nn.init.trunc_normal_(w),
    "large": lambda w: w.normal_(std=3e4),
    "tiny": lambda w: w.uniform_(-3e-8, 3e-8),
}
CHANGES = {
    "times": lambda w: w * 0.3,
    "times an integer": lambda w: w * 3,
    "plus": lambda w: w + 0.7,
    "minus": lambda w: w - 0.7,
    "from": lambda w: 0.7 - w,
    "over": lambda w: w / 1.7,
    "negative": lambda w: -w,
    "times 0": lambda w: w * 0,
    "times a number in a tensor": lambda w: w * torch.tensor(0.3, dtype=w.dtype),
    "times a number in a wider tensor": lambda w: w * torch.tensor(0.3, dtype=torch.float64),
    "all in place": lambda w: w.mul_(0.3).add_(0.7).sub_(0.1).div_(1.7),
    "cast": lambda w: w.to(torch.bfloat16 if w.dtype is not torch.bfloat16 else torch.float16),
    "cast, times": lambda w: w.to(torch.bfloat16) * 0.3,
    "times, cast": lambda w: (w * 0.3).to(torch.float16),
    "float8": lambda w: w.to(torch.float8_e4m3fn),
    "other float8": lambda w: (w + 1).to(torch.float8_e5m2),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_step_is_torchs_own(dtype, draw):
    """The fold against torch's operations, on enough elements for its vectorised loops and their rests."""
    module = nn.Module()
    with fastinit.deferred(), torch.no_grad():
        for number, change in enumerate(CHANGES.values()):
            w = torch.empty(1003, dtype=dtype)
            DRAWS[draw](w)
            module.register_buffer(f"w{number}", change(w))
    targets = targets_of(module)
    tensors = [target.tensor for target in targets]
    draws = assign_draws(targets)
    folded, replayed = (Planner(draws, fold=fold).plan(targets) for fold in (True, False))
    across = {"cast", "cast, times", "times, cast", "float8", "other float8"} if dtype is torch.float64 else set()
    if not float8_saturates():
        across |= {"float8"}
    for name, one in zip(CHANGES, folded, strict=True):
        assert one.source.how == ("replayed" if name in across else "one pass"), name
    for name, *pair in zip(
        CHANGES, *(Executor(plan, tensors, 7, draws).run() for plan in (folded, replayed)), strict=True
    ):
        assert same_bits(*pair), name


def test_arithmetic_recorded_on_a_gpu_is_folded_where_torch_has_the_same_bits_there():
    """There, torch divides by multiplying with the reciprocal, and rounds no number that it adds to a bfloat16."""

    def build():
        module = nn.Module()
        for name, change in {"scaled": lambda w: w * 0.1 + 1, "divided": lambda w: w / 3}.items():
            module.register_buffer(name, change(torch.randn(6, 5)))
        module.register_buffer("narrow", torch.randn(6, 5, dtype=torch.bfloat16) + 0.1)
        return module

    module = deferred(build)
    for buffer in module.buffers():  # torch without CUDA does not even let a constructor name the device
        for entry in closure([need(buffer._value)]):
            entry.args[0].storage.device = torch.device("cuda")
    rows = fastinit.plan(module).rows
    assert [(row.name, row.how) for row in rows] == [
        ("scaled", "one pass"),
        ("divided", "replayed"),
        ("narrow", "replayed"),
    ]


def test_a_copy_of_a_parameter_is_filled_again_from_the_same_stream():
    def build():
        layer = nn.Linear(16, 16)
        other = nn.Linear(16, 16)
        other.load_state_dict(layer.state_dict())
        with torch.no_grad():
            layer.weight[0].zero_()
        return nn.ModuleList([layer, other])

    module = deferred(build)
    assert {row.how for row in fastinit.plan(module).rows} == {"one pass"}
    fastinit.materialize(module, seed=0)
    assert torch.equal(module[0].weight[1:], module[1].weight[1:])
    assert module[0].weight[0].abs().max() == 0 < module[1].weight[0].abs().max()


def test_a_sparse_fill_takes_the_two_draws_after_those_before_it():
    def write(w):
        w.normal_()
        scale = w[0, 0].abs() + 1  # depends on the first draw, which is live therefore
        return nn.init.sparse_(torch.empty_like(w), 0.5) * scale

    module = parameter(write, 64, 8)
    fastinit.materialize(module, seed=3)
    first = stream_id("w")
    expected = torch.empty(64, 8)
    fill([Fill(expected, Sparse(0.5), 3, draw_stream(first, 1), second=draw_stream(first, 2))])
    other = torch.empty(64, 8)
    fill([Fill(other, Sparse(0.5), 3, draw_stream(first, 1))])
    assert torch.equal(module.w == 0, expected == 0)
    assert not torch.equal(module.w == 0, other == 0)


def test_views_of_one_storage_share_final_memory():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            flat = torch.empty(24)
            self.a = nn.Parameter(flat[:8].view(2, 4))
            self.b = nn.Parameter(flat[8:].view(4, 4))
            self.register_buffer("flat", flat)
            nn.init.normal_(self.a)
            nn.init.ones_(self.b)

    module = deferred(Flat)
    fastinit.materialize(module, seed=0)
    assert module.a.untyped_storage()._cdata == module.flat.untyped_storage()._cdata
    assert torch.equal(module.flat[:8], module.a.flatten())
    assert module.flat[8:].tolist() == [1] * 16


def test_a_draw_into_a_part_belongs_to_the_tensor_that_shows_it():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            flat = torch.empty(32)
            self.a = nn.Parameter(flat[:8])
            self.b = nn.Parameter(flat[8:24])
            for part in (flat[24:], self.b, self.a):  # the first is no tensor's
                nn.init.normal_(part)
            self.c = nn.Parameter(flat[8:24] * 2)

    module = fastinit.materialize(deferred(Halves), seed=0)
    for name, size in (("a", 8), ("b", 16)):
        want = torch.empty(size)
        fill([Fill(want, Normal(), 0, fastinit.stream_id(name))])
        assert torch.equal(getattr(module, name), want)
    assert torch.equal(module.c, module.b * 2)


def test_the_table():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3, bias=False)
            self.b = nn.Module()
            self.b.weight = self.a.weight
            self.register_buffer("table", torch.linspace(0, 1, 5))
            self.register_buffer("scratch", torch.empty(2, dtype=torch.int32))
            self.real = nn.Parameter(torch.empty(1, device="meta"))

    model = deferred(Model)
    model.real = nn.Parameter(torch.zeros(1))
    plan = fastinit.plan(model, dtype=torch.bfloat16)
    lines = str(plan).splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "what", "bytes", "how"]
    assert " ".join(lines[3].split()) == (
        "a.weight (= b.weight) 3x4 bfloat16 Uniform(a=-0.5, b=0.5) as bfloat16 24 one pass"
    )
    assert " ".join(lines[4].split()) == "table 5 bfloat16 recorded operations 10 replayed: linspace"
    assert [(row.name, row.how) for row in plan.rows] == [
        ("real", "kept"),
        ("a.weight", "one pass"),
        ("table", "replayed"),
        ("scratch", "zeros"),
    ]
    assert lines[-1] == "4 tensors, 42 bytes; 57.1% in one pass"
    assert plan.share(random=True) == 1.0


def everything():
    """A module with a tensor of each kind of source."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.filled = nn.Linear(4, 3)
            self.copied = nn.Parameter(self.filled.weight.detach().clone() * 0.5)
            nn.init.sparse_(self.copied, 0.5)
            self.replayed = nn.Parameter(torch.randn(3).exponential_().sqrt())
            self.register_buffer("zeros", torch.empty(2))
            self.register_buffer("shared", torch.tensor([1.0, 2.0]))

    model = deferred(Model)
    model.kept = nn.Parameter(torch.ones(2))
    return model


def test_a_plan_is_plain_data():
    """Neither the internal plan nor plan()'s result keeps anything of the recording alive; both can be pickled."""
    module = everything()
    tape = weakref.ref(module.filled.weight._value.storage.tape)
    targets = targets_of(module)
    deferred_targets = [target for target in targets if isinstance(target.tensor, Deferred)]
    assignments = Planner(assign_draws(deferred_targets)).plan(targets)
    assert {type(one.source) for one in assignments} == {Filled, Replayed, Zeros, Shared, Kept}
    table = fastinit.plan(module)
    assert all(isinstance(row.how, str) and isinstance(row.why, str) for row in table.rows)
    del targets, deferred_targets
    fastinit.materialize(module, seed=0)
    gc.collect()
    assert tape() is None
    assert not [thing for thing in _reachable([assignments, table]) if isinstance(thing, torch.Tensor | Tape | Entry)]
    assert pickle.loads(pickle.dumps(assignments)) == assignments
    assert pickle.loads(pickle.dumps(table)) == table


def _reachable(root):
    """Every object that ``root`` holds, but for modules and classes."""
    seen, stack = {}, [root]
    while stack:
        thing = stack.pop()
        if id(thing) not in seen and not isinstance(thing, type | types.ModuleType | types.FunctionType):
            seen[id(thing)] = thing
            stack.extend(gc.get_referents(thing))
    return seen.values()


def test_device_argument_of_a_plan():
    module = deferred(lambda: nn.Linear(2, 2))
    assert {row.device for row in fastinit.plan(module, device="cuda:1").rows} == {torch.device("cuda:1")}


def test_a_huge_model_is_planned_without_memory():
    with fastinit.deferred():
        layers = nn.ModuleList(nn.Linear(1 << 16, 1 << 16, bias=False) for _ in range(64))
    plan = fastinit.plan(layers)
    assert plan.nbytes == 64 << 34
    assert plan.share() == 1.0
    assert len(tensors_of(layers)) == 64


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.normal_(),
        lambda w: w.normal_(3.0),
        lambda w: w.normal_(std=2.0),
        lambda w: torch.ops.aten.normal_(w, std=2.0, mean=1.0),
        lambda w: w.uniform_(),
        lambda w: w.uniform_(-1.0),
        lambda w: w.uniform_(to=3.0),
        lambda w: torch.ops.aten.uniform_(w, **{"to": 3.0, "from": 2.0}),
    ],
)
def test_arguments_by_position_and_by_name(call) -> None:
    module = parameter(lambda w: in_place(call(w)), 40, 50)
    low, high = call(torch.empty(40, 50)).aminmax()
    assert fastinit.plan(module).share() == 1.0
    found = fastinit.materialize(module, seed=0).w.detach().aminmax()
    # The least and the largest of 2,000: for each of these, another mean, bound or deviation is further away.
    assert abs(found.min - low) < 0.2 * (high - low)
    assert abs(found.max - high) < 0.2 * (high - low)


def names_of(module):
    return {target.name: target.others for target in targets_of(module)}


def test_root_order_is_that_of_torchs_own_walks() -> None:
    class Layer(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("none", None)
            self.register_buffer("scale", torch.ones(2))
            self.register_parameter("nothing", None)
            self.extra = torch.zeros(2)

    def build():
        layer, tied = Layer(), Layer()
        tied.weight = layer.weight
        return nn.Sequential(nn.Sequential(layer, tied), layer, nn.Sequential(Layer()))

    module = deferred(build)
    walked = [
        (name, id(tensor))
        for walk in (module.named_parameters, module.named_buffers)
        for name, tensor in walk(remove_duplicate=False)
    ]
    expected = {}
    for name, key in walked:
        expected.setdefault(key, []).append(name)
    names = {first: others for first, *others in expected.values()}
    # A module that has two names is looked at once for other attributes, by the first.
    assert list(names_of(module).items()) == [*names.items(), *((f"{at}.extra", []) for at in ("0.0", "0.1", "2.0"))]
    assert names["0.0.weight"] == ["0.1.weight", "1.weight"]


@pytest.mark.parametrize("method", ["named_parameters", "named_buffers", "_named_members"])
@pytest.mark.parametrize("where", ["class", "instance"])
def test_a_module_that_names_its_tensors_itself(method: str, where: str) -> None:
    def renamed(module):
        plain = getattr(super(cls, module), method)
        return lambda *args, **kwargs: (("my." + name, t) for name, t in plain(*args, **kwargs))

    cls = type("Renamed", (nn.BatchNorm1d,), {})
    if where == "class":
        setattr(cls, method, lambda self, *args, **kwargs: renamed(self)(*args, **kwargs))
    module = deferred(lambda: cls(3))
    if where == "instance":
        setattr(module, method, renamed(module))
    changed = {
        "named_parameters": {"weight", "bias"},
        "named_buffers": {"running_mean", "running_var", "num_batches_tracked"},
    }
    of = changed.get(method, set.union(*changed.values()))
    order = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(names_of(module)) == ["my." + name if name in of else name for name in order]
