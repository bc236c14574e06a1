"""Allocate, run the plan, put the tensors in place: nothing is changed until everything has been computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_fastinit.deferred import Deferred
from torch_fastinit.ops import Fill, fill
from torch_fastinit.planner import (
    DtypeRule,
    FillStep,
    Work,
    lowered,
    make_plan,
    own_draws,
    streams_of,
    targets_of,
)
from torch_fastinit.replay import Replay, allocate, closure, freeze, from_state, outside
from torch_fastinit.stream import draw_seed, mixed_seed, to_signed
from torch_fastinit.tape import Entry, Storage, Value, as_real

__all__ = ["materialize"]


def materialize(
    module: torch.nn.Module,
    *,
    device: torch.device | str | int | None = None,
    dtype: DtypeRule = None,
    seed: int | None = None,
    names: Callable[[str], str] | None = None,
) -> torch.nn.Module:
    """Give every deferred tensor of ``module`` its memory and its value, in place.

    The value of a random tensor is a function of the seed, its name under ``module`` and the index of the element.
    Parameters keep their identity, attributes and hooks, so an optimizer that was built before still holds them.
    Tensors that are real already are left alone.

    Args:
        module: a module built inside :func:`torch_fastinit.deferred` or by :func:`torch_fastinit.skip_init`.
        device: where the tensors go. Default: the device that the constructor asked for.
        dtype: a dtype, for floating-point and complex tensors, as in ``module.to(dtype)``; or a function of a tensor's
            name and the deferred tensor that returns its dtype, or None for the dtype that it has.
        seed: the key of the random stream, taken modulo 2**64. Default: drawn from torch's default generator, so
            ``torch.manual_seed`` governs.
        names: a function from a tensor's name under ``module`` to its name in the random stream, for parts of a model.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is not a module, or ``dtype`` is or returns something that is no dtype.
        RuntimeError: nothing writes a parameter; the device is not there; memory ran out; a recorded operation failed.
            The message names the tensors, and the module is as it was.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> with fastinit.deferred():
        ...     model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
        >>> _ = fastinit.materialize(model, seed=0)
        >>> model[1].weight.sum().item()
        8.0
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"materialize() takes a torch.nn.Module, not {type(module).__name__}")
    if dtype is not None and not isinstance(dtype, torch.dtype) and not callable(dtype):
        raise TypeError(f"dtype must be a torch.dtype such as torch.bfloat16, or a function, not {dtype!r}")
    where = None if device is None else torch.device(device)
    targets = targets_of(module)
    deferred = [target for target in targets if isinstance(target.tensor, Deferred)]
    plain = [target.name for target in targets if target.tensor.is_meta and not isinstance(target.tensor, Deferred)]
    if plain:
        raise RuntimeError(
            f"{_list(plain)}: on the meta device with no recording of how to initialise them; "
            "build the module inside fastinit.deferred()"
        )
    works = make_plan(deferred, where, dtype)
    unwritten = [work.target.name for work in works if work.how == "unwritten"]
    if unwritten:
        raise RuntimeError(
            f"{_list(unwritten)}: nothing ever writes to these parameters, so they have no initial value; initialise "
            "them in the constructor, or inside fastinit.deferred() afterwards"
        )
    with outside():
        streams = streams_of(own_draws(deferred, names))
        key = to_signed(draw_seed() if seed is None else seed)
        reals = _Builder(works, key, streams).build()
        _put_in_place(works, reals)
    return module


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"


class _Builder:
    """Computes the real tensors of a plan."""

    def __init__(self, works: Sequence[Work], key: int, streams: dict[Entry, int]):
        self.works = works
        self.key = key
        self.streams = streams
        self.reals: dict[int, torch.Tensor] = {}
        #: Final memory of storages that keep their dtype: tensors that share it go on sharing it.
        self.final: dict[tuple[Storage, torch.device], torch.Tensor] = {}

    def build(self) -> list[torch.Tensor]:
        """One real tensor for each piece of work."""
        waves: list[list[tuple[Work, Fill]]] = []
        replays: dict[Storage, list[Work]] = {}
        for work in self.works:
            try:
                self._allocate(work, waves, replays)
            except RuntimeError as error:
                raise self._failed(work, error) from error
        for wave in waves:
            self._fill(wave)
        if replays:
            self._replay(replays)
        return [self.reals[id(work)] for work in self.works]

    def _allocate(self, work: Work, waves: list[list[tuple[Work, Fill]]], replays: dict[Storage, list[Work]]) -> None:
        value, shadow = work.value, work.value.shadow
        if work.how == "shared":
            shared = value.storage.shared
            assert shared is not None
            self.reals[id(work)] = as_real(shadow, shared).to(device=work.device, dtype=work.dtype)
        elif work.steps is None:
            replays.setdefault(value.storage, []).append(work)
        elif work.how == "zeros":
            real = allocate(shadow.shape, shadow.stride(), work.dtype, work.device)
            self.reals[id(work)] = real.zero_()
        else:
            real, fresh = self._memory(work)
            self.reals[id(work)] = real
            if fresh:
                for level, step in enumerate(work.steps):
                    if level == len(waves):
                        waves.append([])
                    waves[level].append((work, self._place(step, real)))

    def _memory(self, work: Work) -> tuple[torch.Tensor, bool]:
        """Memory for a filled tensor, and whether it is the first to see that memory."""
        value, shadow = work.value, work.value.shadow
        if work.dtype is not shadow.dtype:  # a cast makes a tensor of its own
            return allocate(shadow.shape, shadow.stride(), work.dtype, work.device), True
        key = (value.storage, work.device)
        base = self.final.get(key)
        if base is not None:
            return as_real(shadow, base.untyped_storage()), False
        if value.whole:
            real = self.final[key] = allocate(shadow.shape, shadow.stride(), work.dtype, work.device)
            return real, True
        base = self.final[key] = allocate((value.storage.nbytes,), (1,), torch.uint8, work.device)
        return as_real(shadow, base.untyped_storage()), True

    def _place(self, step: FillStep, real: torch.Tensor) -> Fill:
        if step.shape != real.shape or step.stride != real.stride() or step.offset != 0 or step.dtype is not real.dtype:
            part = torch.empty(0, dtype=step.dtype, device=real.device)
            real = part.set_(real.untyped_storage(), step.offset, step.shape, step.stride)
        return Fill(real, step.initializer, self.key, self.streams.get(step.entry, 0))

    def _fill(self, wave: list[tuple[Work, Fill]]) -> None:
        devices: dict[torch.device, list[Fill]] = {}
        for _, one in wave:
            devices.setdefault(one.tensor.device, []).append(one)
        for fills in devices.values():
            fill(fills)

    def _replay(self, replays: dict[Storage, list[Work]]) -> None:
        """Run what could not be filled, and move and cast each tensor as soon as its storage is complete."""
        entries = closure([(storage, float("inf")) for storage in replays])
        freeze([entry for entry in entries if entry.random and entry.seeded])
        replay = Replay(self._randomness)

        def done(storage: Storage) -> None:
            for work in replays.get(storage, ()):
                real = replay.tensor(work.value)
                if work.dtype is real.dtype and work.device == real.device:
                    self.reals[id(work)] = real
                else:
                    self.reals[id(work)] = real.to(device=work.device, dtype=work.dtype)

        try:
            replay.run(entries, done)
        except Exception as error:
            left = [work for works in replays.values() for work in works if id(work) not in self.reals]
            raise self._failed(left[0], error) from error
        for storage, works in replays.items():
            for work in works:
                if id(work) not in self.reals:
                    done(storage)

    def _randomness(self, entry: Entry, tensor: Callable[[Value], torch.Tensor], call: Callable[[], Any]) -> Any:
        if entry.state is not None:
            return from_state(entry, tensor, call)
        stream = self.streams[entry]
        initializer = lowered(entry)
        if initializer is not None:
            return fill([Fill(tensor(entry.writes[0]), initializer, self.key, stream)])
        generator = torch.default_generator
        saved = generator.get_state()
        generator.manual_seed(mixed_seed(self.key, stream))
        try:
            return call()
        finally:
            generator.set_state(saved)

    def _failed(self, work: Work, error: Exception) -> RuntimeError:
        size = work.value.shadow.numel() * torch.empty((), dtype=work.dtype, device="meta").element_size()
        return RuntimeError(
            f"{work.target.name!r} (shape {tuple(work.value.shadow.shape)}, {work.dtype}, {size:,} bytes on "
            f"{work.device}) could not be materialised: {error}"
        )


# --- in place ---------------------------------------------------------------------------------------------------------


def _put_in_place(works: Sequence[Work], reals: Sequence[torch.Tensor]) -> None:
    """Make each deferred tensor object the real tensor. When one cannot be, all are as they were."""
    order = sorted(range(len(works)), key=lambda i: works[i].target.tensor.is_leaf)  # results of autograd hold leaves
    undo: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for i in order:
            old = works[i].target.tensor
            new = _finished(old, reals[i])
            _swap(old, new)
            undo.append((old, new))
    except Exception as error:
        for old, new in reversed(undo):
            _swap(old, new)
        raise RuntimeError(f"{works[i].target.name!r} could not be put in place: {error}") from error


def _finished(old: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """``real`` with the class, the attributes and ``requires_grad`` of the deferred tensor ``old``."""
    attributes = dict(old.__dict__)
    del attributes["_value"]
    if attributes.pop("_is_param", False):
        real = torch.Tensor._make_subclass(torch.nn.Parameter, real, old.requires_grad)
    elif old.requires_grad:
        real = real.detach().requires_grad_()
    elif real._is_view():
        real = real.detach()
    real.__dict__.update(attributes)
    return real


def _swap(old: torch.Tensor, new: torch.Tensor) -> None:
    """Exchange what two tensor objects are; hooks stay with the object that they were registered on."""
    hooks, later = old._backward_hooks, getattr(old, "_post_accumulate_grad_hooks", None)
    old_class, new_class = type(old), type(new)
    old_dict, new_dict = old.__dict__, new.__dict__
    torch._C._swap_tensor_impl(old, new)
    old.__class__, new.__class__ = new_class, old_class
    old.__dict__, new.__dict__ = new_dict, old_dict
    if hooks is not None:
        old._backward_hooks = hooks
    if later is not None:
        old._post_accumulate_grad_hooks = later
