"""`fastinit.init` on DTensors: on every mesh, a rank's part of what the unsharded tensor gets under the same seed.

What a rank holds is found here by `torch.chunk` on index tensors, never by the code that is tested.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.fake_ranks import fake_rank, on_fake_ranks
from support.ranks import Ranks
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import torch_fastinit as fastinit
from torch_fastinit import init

S, R = Shard, Replicate()


def strided(dim: int, split: int) -> Placement:
    return _StridedShard(dim, split_factor=split)


#: Every function of `init`, called with more than its defaults, and the shapes that it is called for. 3 and 4 divide
#: few of their dimensions, and some have fewer rows than there are ranks.
MATRICES: list[tuple[int, ...]] = [(7, 5), (2, 9), (16, 12)]
KERNELS: list[tuple[int, ...]] = [(7, 5, 3), (4, 2, 3, 3)]
ANY: list[tuple[int, ...]] = [(11,), *MATRICES, *KERNELS]
CALLS: list[tuple[Callable[..., Tensor], tuple[Any, ...], list[tuple[int, ...]]]] = [
    (init.uniform_, (-2.0, 3.0), ANY),
    (init.normal_, (0.5, 2.0), ANY),
    (init.trunc_normal_, (0.1, 0.5, -1.0, 0.7), ANY),
    (init.constant_, (0.3,), ANY),
    (init.ones_, (), ANY),
    (init.zeros_, (), ANY),
    (init.eye_, (), MATRICES),
    (init.dirac_, (), KERNELS),
    (init.dirac_, (2,), KERNELS[1:]),
    (init.xavier_uniform_, (1.5,), MATRICES + KERNELS),
    (init.xavier_normal_, (), MATRICES + KERNELS),
    (init.kaiming_uniform_, (math.sqrt(5), "fan_out"), MATRICES + KERNELS),
    (init.kaiming_normal_, (0, "fan_in", "relu"), MATRICES + KERNELS),
    (init.variance_scaling_, (2.0, "fan_avg"), MATRICES + KERNELS),
    (init.lecun_normal_, (), MATRICES + KERNELS),
    (init.lecun_uniform_, (), MATRICES + KERNELS),
    (init.orthogonal_, (1.5,), MATRICES + KERNELS),
    (init.delta_orthogonal_, (1.5,), [shape for shape in KERNELS if shape[0] >= shape[1]]),
    (init.sparse_, (0.3, 0.7), MATRICES),
    (fastinit.mixture_, ([(0.5, 0), (0.3, init.normal_), (0.2, init.uniform_)],), ANY),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]

#: Meshes of so many ranks, and placements on them.
LAYOUTS: dict[int, list[tuple[tuple[int, ...], list[Placement]]]] = {
    1: [((1,), [S(0)])],
    2: [((2,), [S(0)]), ((2,), [S(1)]), ((2,), [R]), ((2,), [strided(0, 2)])],
    3: [((3,), [S(0)]), ((3,), [S(1)]), ((3,), [strided(1, 2)])],
    4: [
        ((4,), [S(0)]),
        ((2, 2), [S(0), S(1)]),
        ((2, 2), [S(0), S(0)]),
        ((2, 2), [R, S(0)]),
        ((2, 2), [strided(0, 2), S(0)]),
    ],
}


def chunk(tensor: Tensor, chunks: int, index: int, dim: int) -> Tensor:
    """`torch.chunk`, which makes fewer chunks than asked for where there is not enough."""
    made = tensor.chunk(chunks, dim)
    return made[index] if index < len(made) else tensor.narrow(dim, 0, 0)


def box(tensor: Tensor, mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Placement]) -> Tensor:
    """The part of a whole tensor that placements give to a coordinate."""
    for size, index, placement in zip(mesh, coordinate, placements, strict=True):
        if isinstance(placement, _StridedShard):
            outer = [chunk(tensor, placement.split_factor, n, placement.dim) for n in range(placement.split_factor)]
            tensor = torch.cat([chunk(part, size, index, placement.dim) for part in outer], placement.dim)
        elif isinstance(placement, Shard):
            tensor = chunk(tensor, size, index, placement.dim)
    return tensor


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and found.dtype == expected.dtype and torch.equal(bits(found), bits(expected))


def expected_box(whole: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """By an index tensor: which elements they are, looked up in the whole tensor."""
    where = torch.arange(whole.numel()).reshape(whole.shape)
    where = box(where, tuple(mesh.shape), mesh.get_coordinate() or (), placements)
    return whole.detach().flatten()[where.flatten()].reshape(where.shape)


def empty_dtensor(
    shape: Sequence[int], mesh: DeviceMesh, placements: Sequence[Placement], dtype: torch.dtype = torch.float32
) -> Tensor:
    """As `to_empty` leaves one: a DTensor on meta, made real; of memory that holds something else."""
    on_meta = torch.empty(tuple(shape), dtype=dtype, device="meta")
    tensor = distribute_tensor(on_meta, mesh, placements, src_data_rank=None)
    tensor = torch.empty_like(tensor, device="cpu")
    assert isinstance(tensor, DTensor)
    tensor._local_tensor.view(torch.uint8).fill_(0x55)
    return tensor


def test_every_function_is_called() -> None:
    assert {call.__name__ for call, _, _ in CALLS} == set(init.__all__) - {"calculate_gain"} | {"mixture_"}


def usable(shape: tuple[int, ...], placements: Sequence[Placement]) -> bool:
    return all(getattr(placement, "dim", 0) < len(shape) for placement in placements)


def fill_on_mesh(mesh_shape: tuple[int, ...], placements: list[Placement], gather: bool) -> list[str]:
    """What differs from the unsharded fills, on this rank."""
    mesh = init_device_mesh("cpu", mesh_shape)
    wrong: list[str] = []
    seeds = torch.Generator().manual_seed(7)
    plain = torch.Generator().manual_seed(7)
    for number, (call, args, shapes) in enumerate(CALLS):
        for shape in shapes:
            if not usable(shape, placements):
                continue
            dtype = DTYPES[number % len(DTYPES)]
            tensor, whole = empty_dtensor(shape, mesh, placements, dtype), torch.empty(shape, dtype=dtype)
            random = "generator" in call.__code__.co_varnames
            result = call(tensor, *args, **({"generator": seeds} if random else {}))
            call(whole, *args, **({"generator": plain} if random else {}))
            assert isinstance(tensor, DTensor) and result is tensor
            what = f"{call.__name__} {shape} {dtype}"
            if not same(tensor._local_tensor, expected_box(whole, mesh, placements)):
                wrong.append(what)
            if gather and not same(tensor.full_tensor(), whole):
                wrong.append(f"full_tensor() of {what}")
            if not torch.equal(seeds.get_state(), plain.get_state()):
                wrong.append(f"generator after {what}")
    return wrong


@pytest.mark.parametrize("world", LAYOUTS)
def test_equal_on_gloo_ranks(ranks: Ranks, world: int) -> None:
    for mesh, placements in LAYOUTS[world]:
        gather = not any(isinstance(placement, _StridedShard) for placement in placements)
        assert ranks.run(world, fill_on_mesh, mesh, placements, gather) == [[]] * world, (mesh, placements)


@pytest.mark.parametrize(
    "mesh, placements",
    [
        ((2, 3), [S(1), S(0)]),
        ((2, 2, 2), [R, strided(0, 2), S(0)]),
        ((5,), [S(0)]),
        ((5,), [S(-1)]),
        ((2, 3), [strided(0, 3), S(0)]),
    ],
    ids=str,
)
def test_equal_on_every_fake_rank(mesh: tuple[int, ...], placements: list[Placement]) -> None:
    for wrong in on_fake_ranks(mesh, lambda _: fill_on_mesh(mesh, placements, gather=False)).values():
        assert wrong == []


# ---- Models ---------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """3 ranks divide neither 10 nor 7, and `head` has fewer rows than 3 ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(10, 16)
        self.norm = nn.LayerNorm(16)
        self.down = nn.Linear(16, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.norm(self.up(x))).relu())  # type: ignore[no-any-return]

    def init_weights(self) -> Model:
        """As model libraries write it, from torch's default generator."""
        for name, parameter in self.named_parameters():
            if name == "down.weight":
                init.orthogonal_(parameter)
            elif parameter.dim() == 2:
                init.kaiming_uniform_(parameter, a=math.sqrt(5))
            elif name.startswith("norm"):
                init.constant_(parameter, 1.0 if name == "norm.weight" else 0.0)
            else:
                init.trunc_normal_(parameter, std=0.02, a=-0.03, b=0.03)
        return self


def whole_model() -> Model:
    model = Model().to_empty(device="cpu")
    torch.manual_seed(3)
    return model.init_weights()


def init_after_fsdp(mesh_shape: tuple[int, ...], names: tuple[str, ...]) -> list[str]:
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    with torch.device("meta"):
        model = Model()
    for part in (model.up, model.down, model):
        fully_shard(part, mesh=mesh)
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    model.init_weights()
    state = torch.get_rng_state()
    whole = whole_model()
    wrong = [] if torch.equal(state, torch.get_rng_state()) else ["generator"]
    placements = [S(0)] if len(mesh_shape) == 1 else [R, S(0)]
    for (name, parameter), (_, value) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert isinstance(parameter, DTensor)
        if not same(parameter._local_tensor, expected_box(value, mesh, placements)):
            wrong.append(name)
        if not same(parameter.full_tensor(), value):
            wrong.append(f"full_tensor() of {name}")
    x = torch.linspace(-1, 1, 40).reshape(4, 10)
    if not torch.allclose(model(x), whole(x), atol=1e-6):  # FSDP gathers from the memory that was filled
        wrong.append("forward")
    return wrong


@pytest.mark.parametrize(
    "mesh, names",
    [((1,), ("dp",)), ((2,), ("dp",)), ((3,), ("dp",)), ((4,), ("dp",)), ((2, 2), ("replicate", "shard"))],
    ids=str,
)
def test_fsdp(ranks: Ranks, mesh: tuple[int, ...], names: tuple[str, ...]) -> None:
    world = math.prod(mesh)
    assert ranks.run(world, init_after_fsdp, mesh, names) == [[]] * world


def init_after_fsdp_and_tp() -> list[str]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 12))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    model.to_empty(device="cpu")
    whole = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 12))
    generator, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    wrong = []
    row, column = mesh.get_coordinate() or ()
    # The dimension that tensor parallelism shards; FSDP shards the rows of what is left.
    sharded = {"0.weight": 0, "0.bias": 0, "1.weight": 1, "1.bias": None}
    for (name, parameter), (_, value) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert isinstance(parameter, DTensor)
        init.normal_(parameter, generator=generator)
        init.normal_(value, generator=other)
        where = torch.arange(value.numel()).reshape(value.shape)
        if sharded[name] is not None:
            where = where.chunk(2, sharded[name])[column]
        where = where.chunk(2)[row]
        if not same(parameter._local_tensor, value.detach().flatten()[where]):
            wrong.append(name)
    return wrong


def test_fsdp_over_tensor_parallelism(ranks: Ranks) -> None:
    assert ranks.run(4, init_after_fsdp_and_tp) == [[]] * 4


def fill_alone() -> None:
    mesh = init_device_mesh("cpu", (2,))
    tensors = [empty_dtensor((8, 6), mesh, [placement]) for placement in (S(0), S(1), R)]
    if dist.get_rank() == 1:
        for tensor in tensors:
            init.normal_(tensor)
            init.orthogonal_(tensor)
            init.sparse_(tensor, 0.5)


def test_no_rank_waits_for_another(ranks: Ranks) -> None:
    ranks.run(2, fill_alone, timeout=20.0)


# ---- One rank at a time ---------------------------------------------------------------------------------------------


def on_rank(rank: int, world: int, check: Callable[[DeviceMesh], None]) -> None:
    with fake_rank(rank, world):
        check(init_device_mesh("cpu", (world,)))


def test_nothing_is_communicated() -> None:
    def check(mesh: DeviceMesh) -> None:
        tensor = empty_dtensor((8, 6), mesh, [S(0)])
        with CommDebugMode() as mode:
            for call, args, shapes in CALLS:
                if (7, 5) in shapes:
                    call(tensor, *args)
        assert mode.get_total_counts() == 0

    on_rank(1, 2, check)


def test_ranks_that_hold_nothing_stay_in_step() -> None:
    """Those with an empty shard, and those outside of the mesh."""
    torch.manual_seed(11)
    for call, args, shapes in CALLS:
        if (2, 9) in shapes:
            call(torch.empty(2, 9), *args)
    expected = torch.get_rng_state()

    def check(mesh: DeviceMesh, size: int) -> None:
        tensor = empty_dtensor((2, 9), mesh, [S(0)])
        assert isinstance(tensor, DTensor) and tensor._local_tensor.numel() == size
        torch.manual_seed(11)
        for call, args, shapes in CALLS:
            if (2, 9) in shapes:
                assert call(tensor, *args) is tensor
        assert torch.equal(torch.get_rng_state(), expected)

    on_rank(1, 3, functools.partial(check, size=9))
    on_rank(2, 3, functools.partial(check, size=0))
    with fake_rank(2, 3):
        check(DeviceMesh("cpu", [0, 1]), size=0)


@pytest.mark.parametrize("call, args, shapes", CALLS, ids=lambda value: getattr(value, "__name__", None))
def test_a_leaf_that_requires_gradients(call: Any, args: Any, shapes: Any) -> None:
    def check(mesh: DeviceMesh) -> None:
        parameter = nn.Parameter(empty_dtensor(shapes[-1], mesh, [S(0)]))
        before = parameter._version
        assert call(parameter, *args) is parameter
        assert parameter._version == before + 1
        assert parameter.requires_grad and parameter.is_leaf and parameter.grad_fn is None
        assert not parameter._local_tensor.requires_grad  # type: ignore[attr-defined]

    on_rank(0, 2, check)


@pytest.mark.parametrize("call, args, shapes", CALLS, ids=lambda value: getattr(value, "__name__", None))
def test_meta(call: Any, args: Any, shapes: Any) -> None:
    """Nothing is written or drawn, as for plain tensors on meta."""

    def check(mesh: DeviceMesh) -> None:
        tensor = distribute_tensor(torch.empty(shapes[0], device="meta"), mesh, [S(0)])
        state = torch.get_rng_state()
        assert call(tensor, *args) is tensor and tensor.is_meta
        assert torch.equal(torch.get_rng_state(), state)

    on_rank(0, 2, check)


def test_fake_tensors() -> None:
    def check(mesh: DeviceMesh) -> None:
        with FakeTensorMode():
            tensor = distribute_tensor(torch.empty(6, 4), mesh, [S(0)], src_data_rank=None)
            assert init.normal_(tensor) is tensor

    on_rank(0, 2, check)


#: Dtypes that random fills write and others, and the functions for which they go another way.
OTHERS: list[tuple[Callable[..., Tensor], tuple[Any, ...], tuple[int, ...], torch.dtype]] = [
    (init.eye_, (), (5, 4), torch.int64),
    (init.dirac_, (), (5, 4, 3), torch.int32),
    (init.normal_, (1.0, 2.0), (5, 4), torch.complex64),
    (init.uniform_, (), (5, 4), torch.complex64),
    (init.sparse_, (0.4,), (5, 4), torch.complex64),
    (init.orthogonal_, (), (5, 4), torch.complex64),
    (init.normal_, (), (5, 4), torch.float8_e4m3fn),
    (init.trunc_normal_, (), (5, 4), torch.float16),
    (init.orthogonal_, (), (5, 4), torch.bfloat16),
    (functools.partial(fastinit.random_bits_, seed=3, stream=4, offset=9), (), (5, 4), torch.int32),
]


@pytest.mark.parametrize("call, args, shape, dtype", OTHERS)
@pytest.mark.parametrize("placements", [[S(0)], [S(1)], [strided(0, 2)]], ids=str)
def test_other_dtypes(call: Any, args: Any, shape: Any, dtype: torch.dtype, placements: list[Placement]) -> None:
    def check(mesh: DeviceMesh) -> None:
        tensor, whole = empty_dtensor(shape, mesh, placements, dtype), torch.empty(shape, dtype=dtype)
        for each in (tensor, whole):
            torch.manual_seed(1)
            call(each, *args)
        assert same(tensor._local_tensor, expected_box(whole, mesh, placements))  # type: ignore[attr-defined]

    on_fake_ranks((3,), check)


@pytest.mark.parametrize("reduce", ["sum", "avg", "min", "max"])
def test_partial(reduce: str) -> None:
    """The terms that `distribute_tensor` makes of the unsharded tensor."""

    def check(mesh: DeviceMesh, placements: list[Placement]) -> None:
        for call, args, shapes in CALLS:
            tensor, whole = empty_dtensor(shapes[-1], mesh, placements), torch.empty(shapes[-1])
            for each in (tensor, whole):
                torch.manual_seed(2)
                call(each, *args)
            expected = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            assert same(tensor._local_tensor, expected._local_tensor), call  # type: ignore[attr-defined]

    for placements in ([Partial(reduce), S(0)], [Partial(reduce), Partial(reduce)]):
        on_fake_ranks((3, 5), functools.partial(check, placements=placements))


def test_partial_that_no_initialisation_makes() -> None:
    def check(mesh: DeviceMesh) -> None:
        state = torch.get_rng_state()
        for call in (init.normal_, init.ones_, init.orthogonal_):
            tensor = DTensor.from_local(torch.zeros(4, 4), mesh, [Partial("product")])
            with pytest.raises(ValueError, match=r"Partial\(product\) has no values that reduce to those of"):
                call(tensor)
            assert not tensor._local_tensor.any()
        whole_numbers = DTensor.from_local(torch.zeros(4, 4, dtype=torch.int64), mesh, [Partial("sum")])
        with pytest.raises(ValueError, match=r"torch.int64 values cannot be divided among the 2 ranks of a sum"):
            init.eye_(whole_numbers)
        assert torch.equal(torch.get_rng_state(), state)

    on_rank(0, 2, check)


def test_views_of_a_dtensor() -> None:
    """`kaiming_uniform_(w.T)` writes through to `w`, whose columns it then shards."""

    def check(mesh: DeviceMesh) -> None:
        weight, whole = empty_dtensor((6, 4), mesh, [S(0)]), torch.empty(6, 4)
        for each in (weight, whole):
            torch.manual_seed(1)
            init.kaiming_uniform_(each.t())
        assert same(weight._local_tensor, expected_box(whole, mesh, [S(0)]))  # type: ignore[attr-defined]

    on_fake_ranks((2,), check)


def test_a_shard_that_negates_lazily() -> None:
    def check(mesh: DeviceMesh) -> None:
        local = torch.zeros(2, 3, dtype=torch.complex64).conj().imag
        assert local.is_neg()
        tensor, whole = DTensor.from_local(local, mesh, [S(0)]), torch.empty(4, 3)
        for each in (tensor, whole):
            torch.manual_seed(1)
            init.normal_(each)
        assert torch.equal(local, box(whole, (2,), mesh.get_coordinate() or (), [S(0)]))

    on_fake_ranks((2,), check)


def test_a_shard_that_is_not_as_its_placements_say() -> None:
    def check(mesh: DeviceMesh) -> None:
        tensor = DTensor.from_local(torch.zeros(3, 2), mesh, [S(0)], shape=torch.Size((8, 2)), stride=(2, 1))
        state = torch.get_rng_state()
        with pytest.raises(
            RuntimeError, match=r"say that the shard at \(0,\) has shape \(4, 2\), the shard is \(3, 2\)"
        ):
            init.normal_(tensor)
        assert torch.equal(torch.get_rng_state(), state)

    on_rank(0, 2, check)


def test_a_deferred_shard() -> None:
    def check(mesh: DeviceMesh) -> None:
        with fastinit.deferred():
            layer = nn.Linear(4, 6)
        fully_shard(layer, mesh=mesh)
        for call in (init.normal_, init.orthogonal_, init.kaiming_uniform_, init.eye_):
            with pytest.raises(RuntimeError, match=r"is deferred(.|\n)* before it is sharded, or after fastinit.mater"):
                call(layer.weight)

    on_rank(0, 2, check)


def test_errors_are_those_of_plain_tensors() -> None:
    def check(mesh: DeviceMesh) -> None:
        state = torch.get_rng_state()
        with pytest.raises(NotImplementedError, match=r"normal fill is not implemented for torch.int64"):
            init.normal_(empty_dtensor((4, 2), mesh, [S(0)], torch.int64))
        assert torch.equal(torch.get_rng_state(), state)
        with pytest.raises(ValueError, match="fewer than 2 dimensions"):
            init.xavier_normal_(empty_dtensor((4,), mesh, [S(0)]))
        with pytest.raises(ValueError, match="Only tensors with 2 or more dimensions"):
            init.orthogonal_(empty_dtensor((4,), mesh, [S(0)]))
        with pytest.raises(TypeError, match="generator must be"):
            init.normal_(empty_dtensor((4,), mesh, [S(0)]), generator=3)  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match="zero-element"):
            init.kaiming_normal_(empty_dtensor((0, 2), mesh, [S(0)]))
        with torch.inference_mode():
            tensor = empty_dtensor((4, 2), mesh, [S(0)])
            init.normal_(tensor)
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
            init.normal_(tensor)

    on_rank(0, 2, check)
    on_rank(4, 5, check)  # which holds nothing: it raises all the same, and stays in step


def test_inside_a_context_a_real_dtensor_is_filled_at_once() -> None:
    def check(mesh: DeviceMesh) -> None:
        for call in (init.normal_, init.orthogonal_):
            tensor, whole = empty_dtensor((6, 4), mesh, [S(1)]), torch.empty(6, 4)
            torch.manual_seed(1)
            call(whole)
            torch.manual_seed(1)
            with fastinit.deferred():
                call(tensor)
            assert same(tensor._local_tensor, expected_box(whole, mesh, [S(1)]))  # type: ignore[attr-defined]

    on_fake_ranks((2,), check)


def test_no_warnings() -> None:
    def check(mesh: DeviceMesh) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            init.normal_(empty_dtensor((4, 2), mesh, [S(0)]))

    on_rank(0, 2, check)
