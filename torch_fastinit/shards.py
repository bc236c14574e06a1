"""Which part of a logical tensor a rank holds, by the placements of a DTensor.

Along each dimension a rank holds *runs* of the logical tensor, `(start, length)` in local order: one by `Shard`, up to
`split_factor` by a `_StridedShard`, which FSDP leaves over tensor parallelism on the same dimension. Every combination
of one run a dimension is a box of the logical tensor, a `Piece`: what one fill can write.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from torch_fastinit._torch import shard_order_of, split_of
from torch_fastinit.ops import Region

Runs = tuple[tuple[int, int], ...]


class Piece(NamedTuple):
    """A box of a local tensor, and the box of the logical tensor that it is."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    region: Region

    def of(self, local: torch.Tensor) -> torch.Tensor:
        """The piece as a view of the local tensor."""
        return _box(local, self.offsets, self.shape)

    def of_logical(self, tensor: torch.Tensor) -> torch.Tensor:
        """The piece as a view of the logical tensor."""
        return _box(tensor, self.region.offsets, self.shape)


def _box(tensor: torch.Tensor, offsets: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    for dim, (start, length) in enumerate(zip(offsets, shape)):
        if length != tensor.shape[dim]:
            tensor = tensor.narrow(dim, start, length)
    return tensor


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank holds of a logical tensor of shape `shape`.

    `runs` has the runs of each dimension; None on a rank outside of the mesh, whose local tensor has shape (0,).
    `partial` has the dimensions of the mesh that wait for a reduction: the local tensor is then one term of it, which
    has to be computed from the values of the whole part.
    """

    shape: tuple[int, ...]
    runs: tuple[Runs, ...] | None
    partial: tuple[int, ...] = ()

    @property
    def local_shape(self) -> tuple[int, ...]:
        if self.runs is None:
            return (0,)
        return tuple([sum([length for _, length in runs]) for runs in self.runs])

    @property
    def is_all(self) -> bool:
        """Whether this is all of the logical tensor."""
        return self.runs is not None and self.local_shape == self.shape

    def pieces(self) -> Iterator[Piece]:
        """The boxes that make up the local tensor, none of them empty."""
        if self.runs is None or not math.prod(self.local_shape):
            return
        placed = []
        for runs in self.runs:
            at = itertools.accumulate([length for _, length in runs], initial=0)
            placed.append([(here, start, length) for here, (start, length) in zip(at, runs)])
        for box in itertools.product(*placed):
            offsets, starts, shape = tuple(zip(*box)) or ((), (), ())
            yield Piece(offsets, shape, Region(self.shape, starts))


def _take(runs: Runs, first: int, last: int) -> Runs:
    """What elements `first` to `last` of these runs are."""
    found, at = [], 0
    for start, length in runs:
        low, high = max(first - at, 0), min(last - at, length)
        if low < high:
            found.append((start + low, high - low))
        at += length
    return tuple(found)


def _chunk(runs: Runs, chunks: int, index: int) -> Runs:
    """The chunk of that index, as `torch.chunk` cuts: chunks of equal length, the last ones shorter or empty."""
    size = sum([length for _, length in runs])
    each = -(-size // chunks)
    return _take(runs, min(size, each * index), min(size, each * (index + 1)))


def _strided(runs: Runs, factor: int, chunks: int, index: int) -> Runs:
    """The same chunk of each of `factor` chunks: the cut of another dimension of the mesh, which was made before."""
    parts = [_chunk(_chunk(runs, factor, outer), chunks, index) for outer in range(factor)]
    return _merged(tuple(itertools.chain.from_iterable(parts)))


def _merged(runs: Runs) -> Runs:
    found: list[tuple[int, int]] = []
    for start, length in runs:
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((start, length))
    return tuple(found)


def part_of(
    shape: Sequence[int],
    mesh: Sequence[int],
    coordinate: Sequence[int] | None,
    placements: Sequence[Any],
    order: Sequence[int] | None = None,
) -> Part:
    """The part of a logical tensor at a coordinate of a mesh.

    Args:
        shape: the shape of the logical tensor.
        mesh: the shape of the mesh.
        coordinate: where the rank is in the mesh; None outside of it.
        placements: torch's placements, one for each dimension of the mesh.
        order: the order in which the dimensions of the mesh cut (default: from the first to the last).

    Raises:
        ValueError: not one placement for each dimension of the mesh; a placement of a dimension that the tensor has
            not; a placement of another class than torch's `Shard`, `_StridedShard`, `Replicate`, `Partial`.
    """
    shape = tuple([int(size) for size in shape])
    if len(placements) != len(mesh):
        raise ValueError(f"{len(placements)} placements for a mesh of {len(mesh)} dimensions")
    partial = tuple([dim for dim, placement in enumerate(placements) if placement.is_partial()])
    if coordinate is None:
        return Part(shape, None, partial)
    dims: list[Runs] = [((0, size),) if size else () for size in shape]
    for mesh_dim in range(len(mesh)) if order is None else order:
        placement, chunks, index = placements[mesh_dim], mesh[mesh_dim], coordinate[mesh_dim]
        if placement.is_partial() or placement.is_replicate():
            continue
        split = split_of(placement)
        if split is None:
            raise ValueError(f"{placement!r} is no placement that is known here")
        dim, factor = split
        if not -len(shape) <= dim < len(shape):
            raise ValueError(f"{placement!r} shards no dimension of a tensor of {len(shape)} dimensions")
        runs = dims[dim]
        dims[dim] = _strided(runs, factor, chunks, index)
    return Part(shape, tuple(dims), partial)


def part_of_spec(spec: Any) -> Part:
    """The part of a logical tensor that this rank holds, by the `_spec` of a DTensor."""
    mesh = spec.mesh
    return part_of(spec.shape, mesh.shape, mesh.get_coordinate(), spec.placements, shard_order_of(spec))


def checked_part(spec: Any, local: torch.Tensor, name: str = "") -> Part:
    """As `part_of_spec`, for a local tensor that there is.

    Raises:
        RuntimeError: it has another shape than the placements say, as with uneven shards of FSDP over tensor
            parallelism (https://github.com/pytorch/pytorch/issues/168134): nobody can tell which rows it holds.
    """
    part = part_of_spec(spec)
    if tuple(local.shape) != part.local_shape or not _as_cut(spec):
        where = spec.mesh.get_coordinate()
        raise RuntimeError(
            f"{name + ': ' if name else ''}torch's placements {tuple(spec.placements)} of a tensor of shape "
            f"{part.shape} on a mesh of shape {tuple(spec.mesh.shape)} say that the shard at "
            f"{where and tuple(where)} has shape {part.local_shape}, the shard is {tuple(local.shape)}, and "
            "on some ranks FSDP cuts otherwise than they say: shard dimensions that the mesh divides"
        )
    return part


def _as_cut(spec: Any) -> bool:
    """Whether FSDP's cut of what was cut before is what its strided placement says, on every rank."""
    splits = [split_of(placement) for placement in spec.placements]
    mesh = tuple(spec.mesh.shape)
    for mesh_dim, split in enumerate(splits):
        if split is None or split[1] == 1:
            continue
        dims = len(spec.shape)
        before = [d for d in range(mesh_dim + 1, len(mesh)) if (s := splits[d]) and s[0] % dims == split[0] % dims]
        chunks = tuple([mesh[d] for d in before])
        if math.prod(chunks) == split[1] and not _strided_as_cut(spec.shape[split[0]], chunks, mesh[mesh_dim]):
            return False
    return True


@functools.lru_cache(maxsize=1 << 10)
def _strided_as_cut(size: int, before: tuple[int, ...], chunks: int) -> bool:
    factor = math.prod(before)
    if size % (factor * chunks) == 0:
        return True
    for *coordinate, index in itertools.product(*map(range, before), range(chunks)):
        cut: Runs = ((0, size),)
        said = _strided(cut, factor, chunks, index)
        for ranks, at in zip(before, coordinate):
            cut, said = _chunk(cut, ranks, at), _chunk(said, ranks, at)
        if _chunk(cut, chunks, index) != said:
            return False
    return True


def local_part(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    """A rank's part of a logical tensor, by torch's own slices and copies: contiguous, detached, before any `Partial`.

    It has memory of its own, but where it is all of a contiguous tensor: then it shares that tensor's. It takes
    deferred tensors, too, inside a context and outside, and has then a recording of how it was cut.
    """
    if tuple(tensor.shape) != part.shape:
        raise ValueError(f"a part of a tensor of shape {part.shape}, but tensor has shape {tuple(tensor.shape)}")
    tensor = tensor.detach()
    if part.is_all:
        return tensor.contiguous()
    pieces = list(part.pieces())
    if len(pieces) == 1:
        return pieces[0].of_logical(tensor).clone(memory_format=torch.contiguous_format)
    local = tensor.new_empty(part.local_shape)
    for piece in pieces:  # no torch.cat: outside a context, deferred tensors take copies alone
        piece.of(local).copy_(piece.of_logical(tensor))
    return local
