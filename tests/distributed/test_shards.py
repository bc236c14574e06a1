"""Which part of a logical tensor a rank holds, against how torch itself cuts index tensors."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.fake_ranks import fake_rank, on_fake_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, ShardOrderEntry, TensorMeta
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import torch_fastinit as fastinit
from torch_fastinit._torch import spec_of
from torch_fastinit.ops import Region
from torch_fastinit.shards import Part, checked_part, local_part, part_of, part_of_spec


def indices(shape: Sequence[int]) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(tuple(shape))


def by_pieces(part: Part) -> Tensor:
    """The local tensor whose elements are logical indices, piece by piece: each element must be written once."""
    local, logical = torch.full(part.local_shape, -1), indices(part.shape)
    for piece in part.pieces():
        assert piece.region.shape == part.shape and min(piece.shape, default=1) > 0
        view = piece.of(local)
        assert view.shape == piece.shape and bool((view == -1).all())
        view.copy_(piece.of_logical(logical))
    assert not (local == -1).any()
    return local


def strided(dim: int, split: int) -> Placement:
    return _StridedShard(dim, split_factor=split)


S, R = Shard, Replicate()
CASES: list[tuple[tuple[int, ...], list[Any]]] = [
    ((1,), [S(0)]),
    ((3,), [S(0)]),
    ((3,), [S(-1)]),
    ((4,), [S(1)]),
    ((3,), [R]),
    ((3,), [strided(0, 2)]),
    ((2,), [strided(-1, 3)]),
    ((2, 2), [S(0), S(1)]),
    ((2, 2), [S(0), S(0)]),
    ((2, 3), [S(1), S(0)]),
    ((2, 2), [R, S(0)]),
    ((2, 2), [S(-1), R]),
    ((2, 2), [strided(0, 2), S(0)]),
    ((3, 2), [strided(0, 2), S(0)]),
    ((2, 3), [strided(-2, 3), S(0)]),
    ((2, 2), [S(0), strided(0, 3)]),
    ((2, 2), [strided(0, 2), strided(0, 3)]),
    ((2, 2), [strided(0, 2), strided(1, 2)]),
    ((2, 2, 2), [R, strided(0, 2), S(0)]),
    ((2, 2, 2), [strided(1, 4), S(1), S(1)]),
    ((2, 2, 2), [S(0), S(1), R]),
    ((2, 1, 3), [S(0), S(0), S(0)]),
]
SHAPES = [(7, 5), (8, 12), (1, 1), (2, 9), (13, 3, 2), (0, 4), (24, 24)]


def torchs_own(mesh: DeviceMesh, placements: Sequence[Placement]) -> list[tuple[DTensorSpec, Tensor]]:
    """Each shape, as torch distributes an index tensor by local cuts alone."""
    made = [distribute_tensor(indices(shape), mesh, placements, src_data_rank=None) for shape in SHAPES]
    return [(tensor._spec, tensor._local_tensor) for tensor in made]


@pytest.mark.parametrize("mesh, placements", CASES, ids=str)
def test_every_rank_holds_what_torch_gives_it(mesh: tuple[int, ...], placements: list[Placement]) -> None:
    refused: list[tuple[int, ...]] = []

    def check(device_mesh: DeviceMesh) -> None:
        for shape, (spec, local) in zip(SHAPES, torchs_own(device_mesh, placements), strict=True):
            part = part_of(shape, mesh, device_mesh.get_coordinate(), placements)
            assert part.local_shape == tuple(local.shape)
            assert torch.equal(by_pieces(part), local)
            assert part == part_of_spec(spec)
            try:
                assert checked_part(spec, local) == part
            except RuntimeError:  # FSDP over tensor parallelism would have left the same placements and other rows
                assert any(isinstance(placement, _StridedShard) for placement in placements)
                refused.append(shape)
            assert torch.equal(local_part(indices(shape), part), local)
            for runs in part.runs or ():  # as few runs as there can be, none empty
                assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(runs))
                assert all(length > 0 for _, length in runs)

    on_fake_ranks(mesh, check)
    assert all(refused.count(shape) == math.prod(mesh) for shape in refused)  # on every rank, or on none


def test_a_scalar_is_replicated() -> None:
    part = part_of((), (2, 3), (1, 2), [R, R])
    (piece,) = part.pieces()
    assert part.local_shape == () and part.is_all
    assert piece == ((), (), Region((), ()))
    assert by_pieces(part).tolist() == 0


def test_another_order_of_cuts() -> None:
    """A spec may say that the last dimension of the mesh cuts first; it is then what `_StridedShard` says."""

    def check(mesh: DeviceMesh) -> None:
        meta = TensorMeta(torch.Size((13, 3)), (3, 1), torch.int64)
        spec = DTensorSpec(mesh, (S(0), S(0)), meta, shard_order=(ShardOrderEntry(0, (1, 0)),))
        row, column = mesh.get_coordinate() or ()
        chunk = indices((13, 3)).chunk(3)[column]
        empty = chunk[:0]
        assert torch.equal(by_pieces(part_of_spec(spec)), [*chunk.chunk(2), empty][row])
        usual = DTensorSpec(mesh, (S(0), S(0)), meta)
        assert part_of_spec(usual) == part_of((13, 3), (2, 3), (row, column), [S(0), S(0)])

    on_fake_ranks((2, 3), check)


def test_partial_says_so_and_keeps_the_other_cuts() -> None:
    part = part_of((6, 4), (2, 3), (1, 2), [Partial(), S(0)])
    assert part.partial == (0,)
    assert by_pieces(part).tolist() == indices((6, 4))[4:].tolist()
    assert part_of((6, 4), (2,), None, [Partial()]).partial == (0,)


def test_a_rank_outside_of_the_mesh() -> None:
    """torch gives it an empty tensor of one dimension, whatever the logical shape."""

    def check(shape: tuple[int, ...], placements: list[Placement]) -> None:
        mesh = DeviceMesh("cpu", [0, 1])
        tensor = distribute_tensor(indices(shape), mesh, placements, src_data_rank=None)
        part = checked_part(tensor._spec, tensor._local_tensor)
        assert part == part_of(shape, (2,), None, placements)
        assert part.local_shape == (0,) and not part.is_all and list(part.pieces()) == []
        assert local_part(indices(shape), part).shape == (0,)

    with fake_rank(2, 3):
        check((4, 3), [S(0)])
        check((4, 3), [R])
        check((), [R])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 16)
        self.down = nn.Linear(16, 12)
        self.odd = nn.Linear(5, 7)

    def with_indices(self) -> Block:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(indices(parameter.shape))
        return self


def fsdp_matches(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, DTensor)
        part = checked_part(parameter._spec, parameter._local_tensor, name)
        assert torch.equal(by_pieces(part), parameter._local_tensor.to(torch.int64))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_fsdp(world: int) -> None:
    """Padded chunks of rows, and empty ones: 5 ranks leave nothing of 7 rows to the last."""
    on_fake_ranks((world,), lambda mesh: fsdp_matches(fully_shard(Block().with_indices(), mesh=mesh)))


def test_fsdp_on_another_dimension() -> None:
    def check(mesh: DeviceMesh) -> None:
        module = nn.Linear(12, 4, bias=False)
        with torch.no_grad():
            module.weight.copy_(indices((4, 12)))
        fsdp_matches(fully_shard(module, mesh=mesh, shard_placement_fn=lambda parameter: S(1)))

    on_fake_ranks((3,), check)


def test_hsdp() -> None:
    def check(mesh: DeviceMesh) -> None:
        fsdp_matches(fully_shard(Block().with_indices(), mesh=mesh))

    on_fake_ranks((2, 2), check, names=("replicate", "shard"))


def test_fsdp_over_tensor_parallelism() -> None:
    """On the same dimension (a `_StridedShard`) and on another one."""

    def check(mesh: DeviceMesh) -> None:
        module = Block().with_indices()
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(module, mesh["tp"], plan, src_data_rank=None)
        fully_shard(module, mesh=mesh["dp"])
        placements = module.up.weight.placements
        assert isinstance(placements[0], _StridedShard)
        fsdp_matches(module)

    on_fake_ranks((2, 2), check, names=("dp", "tp"))


def test_a_shard_that_is_not_as_its_placements_say() -> None:
    """FSDP over tensor parallelism, with rows that the mesh does not divide (pytorch#168134)."""

    def build(mesh: DeviceMesh) -> str | None:
        module = nn.Linear(4, 7)
        parallelize_module(module, mesh["tp"], ColwiseParallel(), src_data_rank=None)
        fully_shard(module, mesh=mesh["dp"])
        weight: Any = module.weight
        try:
            checked_part(weight._spec, weight._local_tensor, "weight")
        except RuntimeError as error:
            return str(error)
        return None

    found = on_fake_ranks((3, 2), build, names=("dp", "tp"))
    for message in found.values():  # on every rank, since nobody else knows
        assert message is not None
        assert message.startswith("weight: torch's placements (_StridedShard(dim=0, sf=2), Shard(dim=0))")
        assert "on a mesh of shape (3, 2) say that the shard at" in message


def test_all_ranks_hold_everything_once() -> None:
    """512 x 8 ranks, by runs alone."""
    placements = [strided(0, 8), S(0)]
    rows = torch.zeros(28672, dtype=torch.int64)
    for data in range(512):
        for model in range(8):
            runs, _ = part_of((28672, 8192), (512, 8), (data, model), placements).runs or ((), ())
            for start, length in runs:
                rows[start : start + length] += 1
    assert bool((rows == 1).all())


@pytest.mark.parametrize(
    "placements, message",
    [
        ([S(2)], r"Shard\(dim=2\) shards no dimension of a tensor of 2 dimensions"),
        ([S(-3)], "shards no dimension of a tensor of 2 dimensions"),
        ([S(0), R], "2 placements for a mesh of 1 dimensions"),
    ],
)
def test_what_is_no_layout(placements: list[Placement], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part_of((4, 4), (2,), (0,), placements)


def test_a_placement_of_somebody_else() -> None:
    class Ragged(Placement):
        def is_partial(self, reduce_op: str | None = None) -> bool:
            return False

        def is_replicate(self) -> bool:
            return False

        def __repr__(self) -> str:
            return "Ragged()"

    with pytest.raises(ValueError, match=r"Ragged\(\) is no placement that is known here"):
        part_of((4, 4), (2,), (0,), [Ragged()])


@pytest.mark.parametrize("placements", [[S(0)], [S(1)], [strided(0, 2)], [R], [strided(1, 3)]], ids=str)
@pytest.mark.parametrize("inside", [True, False])
def test_local_part_of_a_deferred_tensor(placements: list[Placement], inside: bool) -> None:
    with fastinit.deferred():
        layer = nn.Linear(12, 8)
        layer.weight.data.copy_(indices((8, 12)))
        part = part_of((8, 12), (2,), (1,), placements)
        if inside:
            layer.weight = nn.Parameter(local_part(layer.weight, part))
    if not inside:
        layer.weight = nn.Parameter(local_part(layer.weight, part))
    assert fastinit.is_deferred(layer.weight)
    fastinit.materialize(layer, seed=0)
    expected = local_part(indices((8, 12)), part)
    assert layer.weight.is_contiguous() and torch.equal(layer.weight, expected.float())


def test_local_part_is_contiguous_detached_and_has_memory_of_its_own() -> None:
    whole = torch.randn(8, 6, requires_grad=True)
    for placement in (S(0), S(1), strided(0, 2), strided(1, 3)):
        local = local_part(whole, part_of((8, 6), (2,), (1,), [placement]))
        assert local.is_contiguous() and not local.requires_grad
        assert local.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()
    assert local_part(whole, part_of((8, 6), (2,), (1,), [R])).data_ptr() == whole.data_ptr()
    assert local_part(whole.t(), part_of((6, 8), (2,), (1,), [R])).is_contiguous()
    with pytest.raises(ValueError, match=r"a part of a tensor of shape \(8, 6\), but tensor has shape \(6, 8\)"):
        local_part(whole.t(), part_of((8, 6), (2,), (1,), [S(0)]))


def test_a_dtensor_is_recognised_without_an_import() -> None:
    with fake_rank(0, 2):
        mesh = init_device_mesh("cpu", (2,))
        tensor = distribute_tensor(torch.ones(4), mesh, [S(0)], src_data_rank=None)
        assert spec_of(tensor) is tensor._spec
        assert spec_of(nn.Parameter(tensor)).placements == (S(0),)
        assert spec_of(tensor.to_local()) is None
    assert not dist.is_initialized()
    code = (
        "import sys, torch, torch_fastinit.shards as shards\n"
        "from torch_fastinit._torch import spec_of\n"
        "assert spec_of(torch.ones(2)) is None\n"
        "assert 'torch.distributed.tensor' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
