"""Random constructors: a grammar of what constructors do, programs over it, and a way to make a failing one small.

A program is a list of steps, each an operation and the seed of its choices. A step looks at the tensors that there are
only for their metadata, so it means the same in eager and in deferred construction, and without the steps before it
it still means something: what a failing program does not need is taken out.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

Step = tuple[str, int]

OPERATIONS: dict[str, Callable[[State, random.Random], Any]] = {}
FLOATS = (torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)


class Skipped(Exception):  # noqa: N818
    """There is no tensor that the step could take."""


class State:
    """A constructor at work: the module, the tensors that there are, and what it has read."""

    def __init__(self) -> None:
        self.module = nn.Module()
        self.module.register_buffer("first", torch.zeros(1))  # something that materialize finds
        self.tensors: list[torch.Tensor] = []
        self.reads: list[Any] = []
        self.generator = torch.Generator().manual_seed(77)
        self.count = 0

    def any(self, r: random.Random, wanted: Callable[[torch.Tensor], bool] = lambda t: True) -> torch.Tensor:
        found = [t for t in self.tensors if wanted(t)]
        if not found:
            raise Skipped
        return r.choice(found[-6:] if r.random() < 0.7 else found)

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"


def operation(function: Callable[[State, random.Random], Any]) -> None:
    OPERATIONS[function.__name__.strip("_")] = function


def family(**functions: Callable[..., Any]) -> None:
    """Operations that make a tensor of random shape: functions of `(shape, r)`."""
    for name, function in functions.items():
        OPERATIONS[name] = lambda s, r, function=function: function(shape(r), r)


def takes(wanted: Callable[[torch.Tensor], bool] = lambda t: True, **functions: Callable[..., Any]) -> None:
    """Operations on one tensor that there is: functions of `(t, r)`."""
    for name, function in functions.items():
        OPERATIONS[name] = lambda s, r, function=function: function(s.any(r, wanted), r)


def draws(**functions: Callable[..., Any]) -> None:
    """In-place operations that draw, now and then from a generator of the constructor's own."""
    for name, function in functions.items():

        def draw(s: State, r: random.Random, function: Callable[..., Any] = function) -> torch.Tensor:
            t = s.any(r, lambda t: writable(t) and t.is_floating_point())
            return function(t, r, {"generator": s.generator} if r.random() < 0.2 else {})

        OPERATIONS[name] = draw


def reads(wanted: Callable[[torch.Tensor], bool] = lambda t: True, **functions: Callable[..., Any]) -> None:
    """Operations whose result is compared: functions of `(t, r)`."""
    for name, function in functions.items():

        def read(s: State, r: random.Random, function: Callable[..., Any] = function) -> None:
            s.reads.append(function(s.any(r, wanted), r))

        OPERATIONS[name] = read


def shape(r: random.Random) -> tuple[int, ...]:
    return tuple(r.choice((1, 2, 3, 4)) for _ in range(r.choice((0, 1, 1, 2, 2, 2, 3))))


def writable(t: torch.Tensor) -> bool:
    """In place, by torch's rules: no leaf that wants gradients, no element that is in two places."""
    if t.requires_grad:
        return False
    reach = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1):
        if stride < reach:
            return False
        reach = stride * size
    return True


def number(r: random.Random) -> float:
    return r.choice((0.0, 1.0, -1.0, 0.5, 2.0, 0.02, -3.25, 1e-3))


def floating(t: torch.Tensor) -> bool:
    return t.is_floating_point() and not t.requires_grad


def real(t: torch.Tensor) -> bool:
    return t.dtype is not torch.bool


def has(dims: int) -> Callable[[torch.Tensor], bool]:
    return lambda t: t.dim() >= dims and t.numel() > 0


def whole(t: torch.Tensor) -> bool:
    return writable(t) and t.is_floating_point()


def dimension(t: torch.Tensor, r: random.Random) -> int:
    return r.randrange(-t.dim(), t.dim())


# --- creation ---------------------------------------------------------------------------------------------------------

family(
    zeros=lambda n, r: torch.zeros(n, dtype=r.choice(DTYPES)),
    ones=lambda n, r: torch.ones(*n, dtype=r.choice(DTYPES)),
    full=lambda n, r: torch.full(n, number(r), dtype=r.choice(FLOATS)),
    full_of_integers=lambda n, r: torch.full(n, r.randrange(-5, 5)),
    empty_and_fill=lambda n, r: torch.empty(n, dtype=r.choice(FLOATS)).fill_(number(r)),
    empty_strided=lambda n, r: torch.empty_strided((3, 2), (1, 4), dtype=r.choice(FLOATS)).normal_(),
    rand=lambda n, r: torch.rand(n, dtype=r.choice(FLOATS)),
    randn=lambda n, r: torch.randn(*n, dtype=r.choice(FLOATS)),
    randint=lambda n, r: torch.randint(-3, 9, n),
    normal_of_numbers=lambda n, r: torch.normal(number(r), 0.5, n),
    randn_out=lambda n, r: torch.randn(n, out=torch.empty(0)),
    tensor=lambda n, r: torch.tensor(np.arange(np.prod(n, dtype=int)).reshape(n).tolist(), dtype=r.choice(FLOATS)),
    from_numpy=lambda n, r: torch.from_numpy(np.arange(np.prod(n, dtype=int), dtype=np.float32).reshape(n)),
    as_tensor=lambda n, r: torch.as_tensor(np.full(n, 3), dtype=r.choice(DTYPES)),
    arange=lambda n, r: torch.arange(r.randrange(1, 9)),
    arange_of_floats=lambda n, r: torch.arange(0, 2, r.choice((0.25, 0.3, 0.7)), dtype=r.choice(FLOATS)),
    linspace=lambda n, r: torch.linspace(-1, number(r), r.randrange(1, 6)),
    logspace=lambda n, r: torch.logspace(-1, 1, r.randrange(1, 6)),
    eye=lambda n, r: torch.eye(r.randrange(1, 4), r.randrange(1, 4)),
    scalar=lambda n, r: torch.tensor(number(r)),
    randperm=lambda n, r: torch.randperm(r.randrange(1, 7)),
    tril_indices=lambda n, r: torch.tril_indices(3, r.randrange(1, 4)),
    hann_window=lambda n, r: torch.hann_window(r.randrange(1, 6)),
    complex_of_two=lambda n, r: torch.view_as_real(torch.complex(torch.rand(n), torch.rand(n)) * 2j),
)
takes(
    zeros_like=lambda t, r: torch.zeros_like(t),
    ones_like=lambda t, r: torch.ones_like(t, dtype=r.choice((None, torch.float32))),
    full_like=lambda t, r: torch.full_like(t, r.randrange(3)),
    empty_like=lambda t, r: torch.empty_like(t).zero_(),
    new_zeros=lambda t, r: t.new_zeros(shape(r)),
    new_full=lambda t, r: t.new_full(shape(r), 1),
    new_tensor=lambda t, r: t.new_tensor([0, 1, 1]),
)
takes(
    lambda t: t.is_floating_point(),
    rand_like=lambda t, r: torch.rand_like(t),
    randn_like=lambda t, r: torch.randn_like(t),
    randint_like=lambda t, r: torch.randint_like(t, 1, 9),
)

# --- views ------------------------------------------------------------------------------------------------------------

# Autograd forbids writing in place to one of several views that a call returned: hence `detach`.
takes(
    has(1),
    integer=lambda t, r: t[r.randrange(t.shape[0])],
    slice=lambda t, r: t[r.randrange(2) : t.shape[0] : r.choice((1, 1, 2))],
    last=lambda t, r: t[..., -1:],
    narrow=lambda t, r: t.narrow(0, t.shape[0] // 2, t.shape[0] - t.shape[0] // 2),
    chunk=lambda t, r: r.choice(t.chunk(2, dimension(t, r))).detach(),
    split=lambda t, r: r.choice(t.split(1)).detach(),
    unbind=lambda t, r: r.choice(t.unbind()).detach(),
    iterate=lambda t, r: r.choice(list(t)).detach(),
    unfold=lambda t, r: t.unfold(0, 1, 1),
)
takes(
    has(2),
    transpose=lambda t, r: t.transpose(0, -1),
    permute=lambda t, r: t.permute(*r.sample(range(t.dim()), t.dim())),
    diagonal=lambda t, r: t.diagonal(),
    corner=lambda t, r: t[1:, :1],
    adjoint=lambda t, r: t.mT,
)
takes(
    detach=lambda t, r: t.detach(),
    data=lambda t, r: t.data,
    flatten=lambda t, r: t.flatten(),
    reshape=lambda t, r: t.reshape(-1, 1),
    view=lambda t, r: t.view(t.shape[::-1]) if t.is_contiguous() else t.view(t.shape),
    view_dtype=lambda t, r: t.view(torch.int16) if t.element_size() == 2 else t.view_as(t),
    unsqueeze=lambda t, r: t.unsqueeze(0),
    squeeze=lambda t, r: t.squeeze(),
    expand=lambda t, r: t.expand(2, *t.shape),
    expand_as=lambda t, r: t[None].expand(3, *t.shape),
    as_strided=lambda t, r: t.as_strided((1,), (1,), t.storage_offset()),
    ellipsis=lambda t, r: t[...],
    movedim=lambda t, r: t.movedim(0, -1) if t.dim() else t,
    contiguous=lambda t, r: t.contiguous(),
    broadcast_to=lambda t, r: torch.broadcast_to(t, (2, *t.shape)),
)

# --- in place ---------------------------------------------------------------------------------------------------------

takes(
    lambda t: writable(t) and real(t),
    zero_=lambda t, r: t.zero_(),
    fill_=lambda t, r: t.fill_(r.randrange(5)),
    neg_=lambda t, r: t.neg_(),
    abs_=lambda t, r: t.abs_(),
    clamp_=lambda t, r: t.clamp_(0, 2),
    add_a_number=lambda t, r: t.add_(r.randrange(3)),
    operator=lambda t, r: t.__imul__(2),
    set_all=lambda t, r: t.__setitem__(..., 1),
    copy_itself=lambda t, r: t.copy_(t * 2),
    square_=lambda t, r: t.square_(),
)
takes(
    whole,
    mul_=lambda t, r: t.mul_(number(r)),
    sub_=lambda t, r: t.sub_(number(r)),
    div_=lambda t, r: t.div_(r.choice((2.0, 3.0, 0.7))),
    sigmoid_=lambda t, r: t.sigmoid_(),
    erfinv_=lambda t, r: t.float().erfinv_(),
    pow_=lambda t, r: t.pow_(2),
    nan_to_num_=lambda t, r: t.nan_to_num_(),
    constant_=lambda t, r: nn.init.constant_(t, number(r)),
    set_data=lambda t, r: setattr(t, "data", t.data * 2),
)
takes(
    lambda t: has(1)(t) and writable(t) and t.is_floating_point(),
    set_first=lambda t, r: t.__setitem__(0, number(r)),
    set_slice=lambda t, r: t.__setitem__(slice(1, None), number(r)),
    set_mask=lambda t, r: t.__setitem__(t > 0, number(r)),
    set_indices=lambda t, r: t.__setitem__(torch.tensor([0]), number(r)),
    masked_fill_=lambda t, r: t.masked_fill_(t < 0, number(r)),
    index_fill_=lambda t, r: t.index_fill_(0, torch.tensor([0]), number(r)),
    set_strided=lambda t, r: t.__setitem__(slice(None, None, 2), torch.rand(())),
    cumsum_=lambda t, r: t.cumsum_(0),
    scatter_=lambda t, r: t.scatter_(0, torch.zeros(t.shape, dtype=torch.int64), number(r)),
)
takes(
    lambda t: has(2)(t) and whole(t),
    tril_=lambda t, r: t.tril_(),
    triu_=lambda t, r: t.triu_(1),
    fill_diagonal_=lambda t, r: t.fill_diagonal_(1.0),
    embedding_padding=lambda t, r: t.data[0].fill_(0),
)
takes(
    lambda t: writable(t) and t.dim() == 2 and not t.is_inference(),
    t_=lambda t, r: t.t_(),
    unsqueeze_=lambda t, r: t.unsqueeze_(0),
)


@operation
def copy_(s: State, r: random.Random) -> None:
    t = s.any(r, writable)
    t.copy_(s.any(r, lambda other: other.shape == t.shape and not other.requires_grad))


@operation
def add_(s: State, r: random.Random) -> torch.Tensor:
    t = s.any(r, whole)
    return t.add_(s.any(r, lambda other: other.shape == t.shape and not other.requires_grad), alpha=r.choice((1, 0.5)))


@operation
def lerp_(s: State, r: random.Random) -> torch.Tensor:
    t = s.any(r, whole)
    return t.lerp_(s.any(r, lambda other: other.shape == t.shape and other.dtype is t.dtype), 0.25)


# --- new tensors ------------------------------------------------------------------------------------------------------

takes(
    clone=lambda t, r: t.clone(),
    deepcopy=lambda t, r: copy.deepcopy(t.detach()),
    copy=lambda t, r: copy.copy(t.detach()),
    to=lambda t, r: t.to(r.choice(DTYPES)),
    to_same=lambda t, r: t.to(t.dtype),
    half=lambda t, r: t.half(),
    bfloat16=lambda t, r: t.bfloat16(),
    double=lambda t, r: t.double(),
    long=lambda t, r: t.long(),
    bool=lambda t, r: t.bool(),
    type_as=lambda t, r: t.type_as(torch.zeros(1)),
    repeat=lambda t, r: t.repeat(2, *[1] * t.dim()),
    compare=lambda t, r: t > 0,
    where=lambda t, r: torch.where(t > 0, t, torch.zeros_like(t)),
    stack=lambda t, r: torch.stack([t, t]),
    sum=lambda t, r: t.sum(),
    flip=lambda t, r: t.flip(0) if t.dim() else t,
    nonzero=lambda t, r: t.nonzero(),
    masked_select=lambda t, r: t[t > 0],
    tensor_of_tensors=lambda t, r: torch.tensor([t.flatten()[:1].sum().item(), 2.0]),
    numel_of=lambda t, r: torch.full((2,), float(t.numel())),
)
takes(
    floating,
    times=lambda t, r: t * number(r),
    plus=lambda t, r: t + 1,
    minus_from=lambda t, r: 1 - t,
    over=lambda t, r: t / 3,
    exp=lambda t, r: t.exp(),
    mean=lambda t, r: t.mean(),
    std=lambda t, r: t.float().std(correction=0),
    norm=lambda t, r: t.float().norm(),
    softmax=lambda t, r: t.softmax(-1) if t.dim() else t.exp(),
    outer=lambda t, r: torch.outer(t.flatten()[:4], t.flatten()[:3]),
    relu=lambda t, r: torch.nn.functional.relu(t),
    log1p=lambda t, r: t.abs().log1p(),
)
takes(
    lambda t: has(1)(t) and not t.requires_grad,
    cumsum=lambda t, r: t.cumsum(0),
    sort=lambda t, r: t.sort(0).values,
    argmax=lambda t, r: t.float().argmax(0),
    topk=lambda t, r: t.float().topk(1, 0).values,
    roll=lambda t, r: t.roll(1, 0),
    index_select=lambda t, r: t.index_select(0, torch.tensor([0, 0])),
    pick=lambda t, r: t[torch.randperm(t.shape[0])],
    pad=lambda t, r: torch.nn.functional.pad(t, (1, 0)),
    unique=lambda t, r: t.unique(),
    concatenate=lambda t, r: torch.cat([t, t[:1]]),
)
takes(
    lambda t: t.dim() == 2 and floating(t) and t.numel() > 0,
    matmul=lambda t, r: t.float() @ t.float().T,
    einsum=lambda t, r: torch.einsum("ij,kj->ik", t, t),
    triu=lambda t, r: t.triu(1),
    addmm=lambda t, r: torch.addmm(torch.zeros(t.shape[0], t.shape[0]), t.float(), t.float().T),
)


@operation
def add(s: State, r: random.Random) -> torch.Tensor:
    t = s.any(r)
    return t + s.any(r, lambda other: other.shape == t.shape)


@operation
def multiply_out(s: State, r: random.Random) -> torch.Tensor:
    t = s.any(r, floating)
    out = s.any(
        r, lambda other: other.shape == t.shape and other.dtype is t.dtype and writable(other) and other is not t
    )
    return torch.mul(t, number(r), out=out)


# --- random draws -----------------------------------------------------------------------------------------------------

draws(
    normal_=lambda t, r, g: t.normal_(number(r), 0.5, **g),
    uniform_=lambda t, r, g: t.uniform_(-1, 2, **g),
    exponential_=lambda t, r, g: t.exponential_(2.0, **g),
    bernoulli_=lambda t, r, g: t.bernoulli_(0.25, **g),
    random_=lambda t, r, g: t.random_(0, 9, **g),
    geometric_=lambda t, r, g: t.geometric_(0.5, **g),
    log_normal_=lambda t, r, g: t.log_normal_(**g),
    cauchy_=lambda t, r, g: t.cauchy_(**g),
    init_normal_=lambda t, r, g: nn.init.normal_(t, std=0.02, **g),
    init_uniform_=lambda t, r, g: nn.init.uniform_(t, **g),
    trunc_normal_=lambda t, r, g: nn.init.trunc_normal_(t, std=0.5, **g),
)


def fans(t: torch.Tensor) -> bool:
    return has(2)(t) and whole(t)


takes(
    fans,
    xavier_uniform_=lambda t, r: nn.init.xavier_uniform_(t),
    kaiming_normal_=lambda t, r: nn.init.kaiming_normal_(t),
    orthogonal_=lambda t, r: nn.init.orthogonal_(t) if t.dtype is torch.float32 else None,
    sparse_=lambda t, r: nn.init.sparse_(t, 0.3) if t.dim() == 2 and t.dtype is torch.float32 else None,
    part_drawn=lambda t, r: t[:1].normal_(),
    eye_=lambda t, r: nn.init.eye_(t) if t.dim() == 2 else None,
)
takes(
    floating,
    dropout=lambda t, r: torch.nn.functional.dropout(t, 0.5),
    bernoulli=lambda t, r: torch.bernoulli(t.float().nan_to_num(0, 0, 0).clamp(0, 1)),
    multinomial=lambda t, r: torch.multinomial(torch.ones(5), 3),
    normal_of_tensors=lambda t, r: torch.normal(t.float(), 0.5),
    poisson=lambda t, r: torch.poisson(t.float().nan_to_num(0, 0, 0).clamp(0, 3)),
    dropped_draw=lambda t, r: None if torch.rand(3).dim() else t,
)


@operation
def seed(s: State, r: random.Random) -> None:
    torch.manual_seed(r.randrange(5))


@operation
def fork_rng(s: State, r: random.Random) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(r.randrange(5))
        return torch.rand(2)


@operation
def rewind(s: State, r: random.Random) -> torch.Tensor:
    state = torch.get_rng_state()
    t = torch.rand(2)
    torch.set_rng_state(state)
    return t


# --- reads ------------------------------------------------------------------------------------------------------------

reads(
    tolist=lambda t, r: t.tolist(),
    item=lambda t, r: t.sum().item(),
    text=lambda t, r: str(t.detach()),
    truth=lambda t, r: bool((t > 0).any()),
    equal=lambda t, r: torch.equal(t, t.clone()),
    length_of_mask=lambda t, r: len(t[t > 0]),
    shape_and_stride=lambda t, r: (tuple(t.shape), t.stride(), t.storage_offset(), t.dtype, t.is_contiguous()),
    flags=lambda t, r: (t.requires_grad, t.is_leaf, str(t.device), t.is_floating_point(), isinstance(t, nn.Parameter)),
    numpy_sum=lambda t, r: t.detach().float().numpy().sum().item(),
    allclose=lambda t, r: torch.allclose(t, t),
    format=lambda t, r: f"{t.flatten()[:1].sum().item():.3f}",
)
takes(
    lambda t: writable(t) and t.dtype in (torch.float32, torch.int64),
    numpy_write=lambda t, r: np.copyto(t.numpy(), r.randrange(9)),
    numpy_shared=lambda t, r: torch.from_numpy(t.numpy()),
)


@operation
def branch(s: State, r: random.Random) -> torch.Tensor:
    t = s.any(r)
    return torch.rand(2) if t.float().sum() > 0 else torch.zeros(2)


# --- modules ----------------------------------------------------------------------------------------------------------


@operation
def parameter(s: State, r: random.Random) -> torch.Tensor:
    t = nn.Parameter(s.any(r, floating), requires_grad=r.random() < 0.7)
    s.module.register_parameter(s.name(), t)
    return t


@operation
def buffer(s: State, r: random.Random) -> None:
    s.module.register_buffer(s.name(), s.any(r, lambda t: t.is_leaf), persistent=r.random() < 0.8)


@operation
def attribute(s: State, r: random.Random) -> None:
    setattr(s.module, s.name(), [s.any(r, lambda t: not isinstance(t, nn.Parameter) and t.is_leaf)])


@operation
def tie(s: State, r: random.Random) -> None:
    s.module.register_parameter(s.name(), s.any(r, lambda t: isinstance(t, nn.Parameter)))


@operation
def requires_grad_(s: State, r: random.Random) -> torch.Tensor:
    t = s.any(r, lambda t: isinstance(t, nn.Parameter) and t.is_leaf)
    return t.requires_grad_(r.random() < 0.5)


@operation
def write_parameter(s: State, r: random.Random) -> None:
    t = s.any(r, lambda t: isinstance(t, nn.Parameter) and writable(t.detach()))
    with torch.no_grad():
        t.mul_(0.5) if r.random() < 0.5 else t.normal_(std=0.02)


@operation
def deepcopy_parameter(s: State, r: random.Random) -> torch.Tensor:
    t = copy.deepcopy(s.any(r, lambda t: isinstance(t, nn.Parameter)))
    s.module.register_parameter(s.name(), t)
    return t


@operation
def layer(s: State, r: random.Random) -> torch.Tensor:
    made = r.choice(
        (
            lambda: nn.Linear(3, 2),
            lambda: nn.Conv1d(2, 3, 2),
            lambda: nn.Embedding(4, 3, padding_idx=0),
            lambda: nn.LayerNorm(3),
            lambda: nn.BatchNorm1d(3),
            lambda: nn.GRUCell(2, 2),
            lambda: nn.MultiheadAttention(4, 2),
        )
    )()
    s.module.add_module(s.name(), made)
    return next(made.parameters())


@operation
def deepcopy_layer(s: State, r: random.Random) -> torch.Tensor:
    made = copy.deepcopy(r.choice(children(s)))
    s.module.add_module(s.name(), made)
    return next(made.parameters())


@operation
def cast_layer(s: State, r: random.Random) -> None:
    r.choice(children(s)).to(r.choice(FLOATS))


@operation
def load(s: State, r: random.Random) -> None:
    child = r.choice(children(s))
    child.load_state_dict({name: torch.full_like(t, 0.5) for name, t in child.state_dict().items()})


@operation
def load_of_another(s: State, r: random.Random) -> None:
    child = r.choice(children(s))
    copy.deepcopy(child).load_state_dict(child.state_dict(), assign=r.random() < 0.3)


@operation
def freeze(s: State, r: random.Random) -> None:
    r.choice(children(s)).requires_grad_(False)


@operation
def forward(s: State, r: random.Random) -> torch.Tensor:
    found = [m for m in children(s) if type(m) is nn.Linear and m.weight.dtype is torch.float32]
    if not found:
        raise Skipped
    with torch.no_grad():
        return r.choice(found)(torch.ones(1, 3))


def children(s: State) -> list[nn.Module]:
    found = list(s.module.children())
    if not found:
        raise Skipped
    return found


# --- programs ---------------------------------------------------------------------------------------------------------


def program(seed: int) -> list[Step]:
    r = random.Random(seed)
    names = list(OPERATIONS)
    some = r.choices(names, k=8)  # more often than others, so that they meet
    return [(r.choice(some if r.random() < 0.4 else names), r.randrange(1 << 30)) for _ in range(r.randrange(6, 26))]


def construct(steps: list[Step], log: Callable[[str], None] | None = None) -> tuple[nn.Module, list[Any]]:
    """Run a program: the module, and what it has read. An error of torch's is something that it has read, too."""
    s = State()
    for name, choices in steps:
        try:
            made = OPERATIONS[name](s, random.Random(choices))
        except Skipped:
            continue
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            s.reads.append((name, type(error).__name__))
            made = None
        if isinstance(made, torch.Tensor) and not any(made is t for t in s.tensors):
            s.tensors.append(made)
        if log is not None:
            log(f"{name}: {describe(made) if isinstance(made, torch.Tensor) else made or ''}")
    for t in s.tensors[-12:]:  # so that what was made is looked at
        name, leaf = s.name(), False
        with contextlib.suppress(RuntimeError):  # autograd has a rule for views that a call returned together
            leaf = t.is_leaf
        if isinstance(t, nn.Parameter):
            s.module.register_parameter(name, t)
        elif leaf:
            s.module.register_buffer(name, t)
    return s.module, s.reads


def describe(t: torch.Tensor) -> str:
    return f"{type(t).__name__} {tuple(t.shape)} {t.stride()} +{t.storage_offset()} {t.dtype}"


def smallest(steps: list[Step], fails: Callable[[list[Step]], bool]) -> list[Step]:
    """A part of a failing program that fails, and of which no step can be taken out."""
    size = len(steps)
    while size:
        i = 0
        while i < len(steps):
            shorter = steps[:i] + steps[i + size :]
            if fails(shorter):
                steps = shorter
            else:
                i += size
        size //= 2
    return steps
