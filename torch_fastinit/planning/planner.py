"""Where each tensor's values come from: the plan, as plain data.

The first of `RESOLVERS` that has an answer gives it; the executor has one method for each kind of answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit._torch import mesh_device
from torch_fastinit.initializers import Constant
from torch_fastinit.ops import Region
from torch_fastinit.planning.devices import DeviceOf, refuse_split
from torch_fastinit.planning.draws import logical_value
from torch_fastinit.planning.fills import Draw, PlannedFill
from torch_fastinit.planning.fold import cast_fill, fold, short_name
from torch_fastinit.planning.tensors import Target, is_plain_meta
from torch_fastinit.planning.written import is_written
from torch_fastinit.recording.memory import View
from torch_fastinit.recording.replay import copy_of
from torch_fastinit.recording.tape import Entry, Storage, Value
from torch_fastinit.recording.tensor import Deferred

DtypeRule = torch.dtype | Callable[[str, torch.Tensor], "torch.dtype | None"] | None

# --- where a tensor's values come from --------------------------------------------------------------------------------


@dataclass(slots=True)
class Source:
    """Base class: `how` and `why` are what `Row` says."""

    how: ClassVar[str]
    why: str = ""


@dataclass(slots=True)
class Filled(Source):
    """Fills of its storage, in order."""

    how = "one pass"
    fills: Sequence[PlannedFill] = ()


@dataclass(slots=True)
class Replayed(Source):
    """The recorded operations, run again."""

    how = "replayed"


@dataclass(slots=True)
class Shared(Source):
    """Memory that the constructor got from elsewhere."""

    how = "shared"


@dataclass(slots=True)
class Copied(Source):
    """The copy of a real tensor that was taken when it was recorded, as it is."""

    how = "copied"


@dataclass(slots=True)
class Kept(Source):
    """It is real already."""

    how = "kept"


@dataclass(slots=True)
class Refused(Kept):
    """On the plain meta device, where what the constructor did is lost: an error, unless somebody only asks."""

    how = "refused"
    why: str = "on the plain meta device, not from deferred(); reset=True runs the modules' own methods"


@dataclass(slots=True)
class Zeros(Source):
    """A buffer that nothing writes, or a parameter of which that is meant."""

    how = "zeros"
    why: str = "nothing writes it"


@dataclass(slots=True)
class Unwritten(Source):
    """A parameter that nothing writes: an error, unless somebody only asks."""

    how = "unwritten"
    why: str = "nothing writes it"


@dataclass(slots=True)
class Shard:
    """What a rank's tensor is a part of: the logical shape, and torch's placements, as it writes them."""

    shape: tuple[int, ...]
    placements: str


@dataclass(slots=True)
class Assignment:
    """One tensor of the module: what it will be, and where its values come from. Plain data, as all that it holds.

    `view` is its place in the storage that the constructor wrote to; `storage` numbers these, and `whole` says
    that the tensor is all of its own, of `storage_nbytes` bytes. `padding` is the memory around a shard.
    A tensor that is kept has a shape alone.
    """

    name: str
    source: Source
    dtype: torch.dtype
    device: torch.device
    view: View
    storage: int = -1
    storage_nbytes: int = 0
    whole: bool = True
    shard: Shard | None = None
    padding: bool = False

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.view.shape)


# --- who knows --------------------------------------------------------------------------------------------------------


def _shared(planner: Planner, target: Target, value: Value, dtype: torch.dtype) -> Source | None:
    return Shared() if value.storage.shared is not None else None


def _unwritten(planner: Planner, target: Target, value: Value, dtype: torch.dtype) -> Source | None:
    origin = logical_value(target)
    if origin.storage.writes or origin.shadow.numel() == 0:
        return None
    if origin is not value and is_written(value):  # since it was cut: loaded, for one
        return None
    if target.lazy:
        return Zeros("nothing writes it, and its module waits for the first forward")
    return Zeros() if planner.zeros or target.role != "parameter" else Unwritten()


def _copied(planner: Planner, target: Target, value: Value, dtype: torch.dtype) -> Source | None:
    """A tensor that was loaded: what it was copied from has the layout that it has, and nobody else will read that."""
    return Copied() if copy_of(value.storage) is not None else None


def _recorded(planner: Planner, target: Target, value: Value, dtype: torch.dtype) -> Source | None:
    """Fills if the recording is nothing but fills; else it is replayed."""
    fills = planner.fills_of(value.storage)
    if isinstance(fills, str):
        return Replayed(fills)
    before = value.shadow.dtype
    if dtype is before:
        return Filled(fills=fills)
    casts = [cast_fill(fill, dtype) if fill.view.dtype is before else None for fill in fills]
    sharded = target.spec is not None or target.role == "padding"
    if (value.whole or (sharded and not value.lazy)) and None not in casts:
        return Filled(fills=[cast for cast in casts if cast is not None])
    return Replayed(f"cast to {short_name(dtype)} after {short_name(before)}")


#: Where the values of a target that has a value, in a dtype, come from: the first that answers decides.
RESOLVERS: tuple[Callable[[Planner, Target, Value, torch.dtype], Source | None], ...] = (
    _shared,
    _unwritten,
    _copied,
    _recorded,
)


class Planner:
    """Asks the resolvers about every tensor. To be used under `outside()`."""

    def __init__(self, draws: Mapping[Entry, Draw], *, fold: bool = True, zeros: bool = False) -> None:
        self._draws = draws
        self.zeros = zeros  # whether parameters that nothing writes become zeros
        self._fold = fold
        self._fills: dict[Storage, list[PlannedFill] | str] = {}
        self._numbers: dict[Storage, int] = {}
        self._devices: dict[Storage, torch.device] = {}  # of shards: their meshes'
        self._mesh: torch.device | None = None  # where tensors go that are beside shards, as `fully_shard` moves them
        self._dtypes: dict[Storage, torch.dtype] = {}  # of shards: what they become
        self._asked_for: dict[Storage, torch.device | None] = {}  # by a rule for devices

    def plan(
        self, targets: Sequence[Target], device: torch.device | DeviceOf | None = None, dtype: DtypeRule = None
    ) -> list[Assignment]:
        """One assignment for each of `targets`."""
        for target in targets:
            if target.spec is not None and isinstance(target.tensor, Deferred):
                self._mesh = mesh_device(target.spec)
                self._devices[target.tensor._value.storage] = torch.device("cpu") if target.on_cpu else self._mesh
        if device is None or isinstance(device, torch.device):
            return [self._assignment(target, device, dtype) for target in targets]
        plan = [self._assignment(target, self._asked(device, target), dtype) for target in targets]
        refuse_split(targets, [one.device for one in plan])
        return plan

    def _asked(self, device_of: DeviceOf, target: Target) -> torch.device | None:
        """What a rule for devices says of a target. The memory around a shard goes where that goes."""
        if not isinstance(target.tensor, Deferred):
            return None
        storage = target.tensor._value.storage
        if target.role != "padding":
            self._asked_for[storage] = device_of(target)
        return self._asked_for[storage]

    def fills_of(self, storage: Storage) -> list[PlannedFill] | str:
        """What `storage` holds in the end, as fills, or why it cannot be said so; worked out once."""
        fills = self._fills.get(storage)
        if fills is None:
            fills = fold(storage, self._draws) if self._fold or not storage.writes else "fold=False"
            self._fills[storage] = fills
        return fills

    def _assignment(self, target: Target, device: torch.device | None, rule: DtypeRule) -> Assignment:
        tensor = target.tensor
        if not isinstance(tensor, Deferred):
            shape = () if isinstance(tensor, UninitializedTensorMixin) else tuple(tensor.shape)
            answer = Refused() if is_plain_meta(tensor) else Kept()
            return Assignment(target.name, answer, tensor.dtype, tensor.device, View(tensor.dtype, shape, (), 0))
        value = tensor._value
        storage = value.storage
        before = value.shadow.dtype
        seen = tensor if target.holder is None else target.holder
        dtype = self._dtypes.get(storage) if target.role == "padding" else None  # its shard's
        if dtype is None:
            dtype = before if rule is None else result_dtype(rule, target.name, seen)
        if target.spec is not None:
            self._dtypes[storage] = dtype
        where = device or self._devices.get(storage) or (storage.device.type == "cpu" and self._mesh) or storage.device
        if target.holder is not None and target.spec is None and (dtype is not before or where != storage.device):
            raise RuntimeError(
                f"{target.name!r} is held by a {type(target.holder).__name__}, which says that it is "
                f"{before} on {storage.device}, and so cannot be made {dtype} on {where}: call module.to() afterwards"
            )
        source = next(s for resolve in RESOLVERS if (s := resolve(self, target, value, dtype)) is not None)
        number = self._numbers.setdefault(storage, len(self._numbers))
        spec, region = target.spec, target.region
        shard = None if spec is None else Shard(tuple(spec.shape), str(spec.placements))
        if region is not None:
            shard = Shard(region.shape, f"at {region.offsets}")
            source = in_region(source, region, target, value)
        padding = target.role == "padding"
        return Assignment(
            target.name, source, dtype, where, value.view, number, storage.nbytes, value.whole, shard, padding
        )


def in_region(source: Source, region: Region, target: Target, value: Value) -> Source:
    """`source`, which was recorded for a tensor of the shard's shape, as that part of a larger tensor."""
    shape, name = tuple(value.shadow.shape), target.name
    if target.spec is not None:
        raise ValueError(f"shards: {name!r} is a DTensor, which says itself what part it is")
    inside = len(region.shape) == len(region.offsets) == len(shape) and all(
        start >= 0 and start + size <= whole
        for start, size, whole in zip(region.offsets, shape, region.shape, strict=True)
    )
    if not inside:
        raise ValueError(
            f"shards: {name!r} has shape {shape}, which is no part at {region.offsets} of a tensor of shape "
            f"{region.shape}"
        )
    if isinstance(source, Zeros) or not math.prod(shape):
        return source
    if not isinstance(source, Filled):
        raise ValueError(f"shards: {name!r} cannot be cut to a part, since it is {source.how}: {source.why}")
    return replace(source, fills=[_in_region(fill, region, name, value.view) for fill in source.fills])


def _in_region(fill: PlannedFill, region: Region, name: str, view: View) -> PlannedFill:
    if isinstance(fill.initializer, Constant):
        return fill
    at = (fill.view.offset, fill.view.shape, fill.view.stride)
    if fill.box is not None or at != (view.offset, view.shape, view.stride):
        raise ValueError(
            f"shards: {name!r} is written in parts, of which nothing says where they are in a tensor of shape "
            f"{region.shape}"
        )
    return replace(fill, box=region)


def result_dtype(dtype: DtypeRule, name: str, tensor: torch.Tensor) -> torch.dtype:
    """The dtype that `materialize(dtype=)` asks for."""
    if dtype is None:
        return tensor.dtype
    of_numbers = tensor.is_floating_point() or tensor.is_complex()
    if isinstance(dtype, torch.dtype):
        wanted: Any = dtype if of_numbers else None
    else:
        wanted = dtype(name, tensor)
    if wanted is None:
        return tensor.dtype
    if not isinstance(wanted, torch.dtype):
        raise TypeError(f"dtype for {name!r} must be a torch.dtype or None, not {wanted!r}")
    if of_numbers:
        check_dtype(wanted, f"dtype for {name!r}")
    return wanted


def check_dtype(dtype: torch.dtype, name: str) -> None:
    """Raise, as `module.to` does, for a dtype that no weight is cast to."""
    if not (dtype.is_floating_point or dtype.is_complex):
        raise TypeError(f"{name} must be a floating-point or complex dtype, as of module.to(), not {dtype}")
