"""Fills of DTensors: each rank writes its own part of the logical tensor, with the values of the unsharded fill.

No rank talks to another. Every rank draws its seed from its own generator, also where it holds nothing: ranks whose
generators are equal write parts of one tensor, and their generators stay equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_fastinit._torch import has_no_contents, increment_version, is_plain_partial, local_of, spec_of
from torch_fastinit.initializers import Initializer, Uniform
from torch_fastinit.ops import RANDOM_DTYPES, Fill, ready, refuse_inference_update
from torch_fastinit.ops import fill as fill_batch
from torch_fastinit.shards import Part, checked_part
from torch_fastinit.stream import draw_seed


def fill(
    tensor: Tensor, initializer: Initializer, generator: torch.Generator | None, seed: int | None, stream: int
) -> Tensor:
    """What `torch_fastinit.eager.fill` does, of a DTensor."""
    if tensor.dtype not in RANDOM_DTYPES and tensor.numel() == 0 and not isinstance(initializer, Uniform):
        return tensor  # where torch, too, looks at no dtype

    def write(local: Tensor, part: Part) -> None:
        ready(Fill(local, initializer, 0, stream))  # raises on every rank, or on none, and before anything is drawn
        if has_no_contents(local):
            return
        drawn = seed
        if drawn is None:
            drawn = draw_seed(generator) if initializer.draws else 0
        fill_batch([Fill(piece.of(local), initializer, drawn, stream, piece.region) for piece in part.pieces()])

    return update(tensor, write)


def write_whole(tensor: Tensor, write: Callable[[Tensor], object]) -> Tensor:
    """Let `write` write the logical tensor, and keep this rank's part: for what no region can be computed of alone."""

    def write_part(local: Tensor, part: Part) -> None:
        logical = torch.empty(part.shape, dtype=local.dtype, device=local.device)
        write(logical)
        for piece in part.pieces():
            piece.of(local).copy_(piece.of_logical(logical))

    return update(tensor, write_part)


def update(tensor: Tensor, write: Callable[[Tensor, Part], object]) -> Tensor:
    """Let `write` write the local tensor, and count that as an in-place operation on `tensor`."""
    spec, local = spec_of(tensor), local_of(tensor)
    if type(local) is not Tensor:
        _refuse_deferred(tensor, local)
    refuse_inference_update(tensor)
    refuse_inference_update(local)
    part = checked_part(spec, local)
    divisors = _divisors(tensor, spec, part)
    with torch.no_grad():
        if not divisors and not local.is_neg() and not local.is_conj():
            write(local, part)
        else:
            values = torch.empty(local.shape, dtype=local.dtype, device=local.device)
            write(values, part)
            for ranks in divisors:
                values = values / ranks
            local.copy_(values)
    increment_version((tensor, local))
    return tensor


def _divisors(tensor: Tensor, spec: Any, part: Part) -> list[int]:
    """What `Partial` placements divide the values by, one after another, as `distribute_tensor` does."""
    divisors: list[int] = []
    for dim in part.partial:
        placement, ranks = spec.placements[dim], int(spec.mesh.shape[dim])
        if not is_plain_partial(placement) or placement.reduce_op not in ("sum", "avg", "min", "max"):
            raise ValueError(
                f"{placement!r} has no values that reduce to those of an initialisation: redistribute the tensor first"
            )
        if placement.reduce_op == "sum" and ranks > 1:
            divisors.append(ranks)
    if divisors and not (tensor.is_floating_point() or tensor.is_complex()):
        raise ValueError(f"{tensor.dtype} values cannot be divided among the {math.prod(divisors)} ranks of a sum")
    return divisors


def _refuse_deferred(tensor: Tensor, local: Tensor) -> None:
    from torch_fastinit.recording.tensor import Deferred

    if isinstance(local, Deferred):
        raise RuntimeError(
            f"the shard of a DTensor of shape {tuple(tensor.shape)} is deferred, and what initialises it now would be "
            "recorded for this shard alone: initialise it before it is sharded, or after fastinit.materialize(module)"
        )
