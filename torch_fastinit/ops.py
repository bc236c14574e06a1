"""The two custom ops that every fill goes through, and the Python side of a fill.

``fastinit::fill_batch_`` writes many tensors with explicit seeds; ``fastinit::fill_`` writes one and draws its own seed.
Neither bumps a version counter nor refuses a leaf that requires gradients: the public functions above them do both.

A batch travels as two flat lists. ``recipe`` holds, for each tensor::

    kind, word0, word1, number of params, dimensions of the region, [logical shape ...], [offsets ...]

``word0, word1`` are the seed and the stream of the first draw; for a constant they are its bit pattern. A region of
dimension 0 is the whole tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_fastinit.backend import DTYPE_CODES, fill_cpu
from torch_fastinit.initializers import Constant, Initializer, Kind, Normal
from torch_fastinit.stream import draw_seed, to_signed

__all__ = ["RANDOM_DTYPES", "Fill", "Region", "fill", "fill_one"]

#: dtypes that a random fill can write (complex ones as pairs of reals).
RANDOM_DTYPES = frozenset(DTYPE_CODES) - {torch.int32}

_library = torch.library.Library("fastinit", "DEF")
_library.define("fill_batch_(Tensor(a!)[] tensors, int[] recipe, float[] params) -> ()")
_library.define(
    "fill_(Tensor(a!) tensor, int kind, float[] params, *, Generator? generator=None) -> ()",
    tags=(torch.Tag.nondeterministic_seeded,),
)


@dataclass(frozen=True, slots=True)
class Region:
    """The box ``[offsets, offsets + tensor.shape)`` of a logical tensor of shape ``shape``."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fill:
    """Where an initializer's values go: a tensor, the stream that they come from, and the part of it that this is."""

    tensor: torch.Tensor
    initializer: Initializer
    seed: int = 0
    stream: int = 0
    region: Region | None = None


def fill(fills: Sequence[Fill]) -> None:
    """Run a batch of fills (all on one device) as one op."""
    tensors: list[torch.Tensor] = []
    recipe: list[int] = []
    params: list[float] = []
    for f in fills:
        tensor, initializer, region = f.tensor, f.initializer, f.region
        if tensor.is_complex() and isinstance(initializer, Normal):
            tensor, initializer = torch.view_as_real(tensor), initializer.component()
            if region is not None:
                region = Region((*region.shape, 2), (*region.offsets, 0))
        if isinstance(initializer, Constant):
            words = constant_words(initializer.value, tensor.dtype)
        else:
            words = (to_signed(f.seed), to_signed(f.stream))
        where = () if region is None else (*region.shape, *region.offsets)
        tensors.append(tensor)
        recipe += (initializer.kind, *words, len(initializer.params), len(where) // 2, *where)
        params += initializer.params
    if tensors:
        torch.ops.fastinit.fill_batch_(tensors, recipe, params)


def fill_one(tensor: torch.Tensor, initializer: Initializer, generator: torch.Generator | None = None) -> None:
    """Fill one tensor with random values under a seed drawn from ``generator`` (default: torch's CPU generator)."""
    if tensor.is_complex() and isinstance(initializer, Normal):
        tensor, initializer = torch.view_as_real(tensor), initializer.component()
    torch.ops.fastinit.fill_(tensor, initializer.kind, initializer.params, generator=generator)


@functools.lru_cache(maxsize=4096)
def _constant_words(value: complex | float | int | bool, dtype: torch.dtype, _key: str) -> tuple[int, int]:
    item = torch.empty((), dtype=dtype, device="cpu").fill_(value)
    raw = bytes(item.reshape(1).view(torch.uint8).tolist()).ljust(16, b"\0")
    return (
        int.from_bytes(raw[:8], "little", signed=True),
        int.from_bytes(raw[8:], "little", signed=True),
    )


def constant_words(value: complex | float | int | bool, dtype: torch.dtype) -> tuple[int, int]:
    """The bit pattern of ``value`` in ``dtype``, as ``Tensor.fill_`` converts it, padded to 16 bytes."""
    return _constant_words(value, dtype, repr(value))  # repr: 0.0 == -0.0 == False, and nan != nan


def _fill_batch_cpu(tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]) -> None:
    fill_cpu(tensors, recipe, params)


def _fill_one(
    tensor: torch.Tensor, kind: int, params: Sequence[float], *, generator: torch.Generator | None = None
) -> None:
    recipe = (int(kind), draw_seed(generator), 0, len(params), 0)
    torch.ops.fastinit.fill_batch_([tensor], recipe, params)


def _nothing(*args: object, **kwargs: object) -> None:
    """The fake implementation of an op that returns nothing and changes no shape."""


_library.impl("fill_batch_", _fill_batch_cpu, "CPU")
_library.impl("fill_", _fill_one, "CPU")
torch.library.register_fake("fastinit::fill_batch_", _nothing, lib=_library)
torch.library.register_fake("fastinit::fill_", _nothing, lib=_library)
