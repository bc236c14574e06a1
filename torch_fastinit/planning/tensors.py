"""Which tensors a module holds, by what names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import filterfalse
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit.ops import Region


@dataclass(slots=True)
class Target:
    """A tensor of a module: its first name in root order, and what it is there."""

    name: str
    tensor: torch.Tensor
    role: str  # "parameter", "buffer" or "attribute"
    others: list[str] = field(default_factory=list)
    #: Whether it is a parameter of a module that still holds parameters without a shape.
    lazy: bool = False
    #: The wrapper that holds this one (`unwrap`).
    holder: torch.Tensor | None = None
    #: The part of the logical tensor that this one is; None: all of it.
    box: Region | None = None


#: Classes of attributes that hold no tensor: looked at first, since modules have many of them.
_PLAIN = frozenset({bool, int, float, str, type(None)})
_CONTAINERS = frozenset({dict, list, tuple, set, OrderedDict})
#: What every module has of its own: parameters, buffers and modules, which are looked at elsewhere, and hooks.
_OF_EVERY_MODULE = frozenset(torch.nn.Module().__dict__)


def _members(
    module: torch.nn.Module, modules: Sequence[tuple[str, torch.nn.Module]], what: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """`module.named_parameters()` or `named_buffers()`, given its `named_modules()`; all with duplicates."""
    for name in (f"named_{what}", "_named_members"):
        if getattr(getattr(module, name), "__func__", None) is not getattr(torch.nn.Module, name):
            yield from getattr(module, f"named_{what}")(remove_duplicate=False)
            return
    for path, child in modules:
        for name, tensor in getattr(child, f"_{what}").items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _attributes(modules: Sequence[tuple[str, torch.nn.Module]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in other attributes than parameters and buffers, depth first; modules in plain lists have some too."""
    seen: set[int] = {id(child) for _, child in modules}

    def walk(name: str, item: Any) -> Iterator[tuple[str, torch.Tensor]]:
        if isinstance(item, torch.Tensor):
            yield name, item
        elif isinstance(item, (dict, list, tuple, torch.nn.Module)) and id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, torch.nn.Module):
                yield from item.named_parameters(name, remove_duplicate=False)
                yield from item.named_buffers(name, remove_duplicate=False)
                for path, child in item.named_modules(prefix=name):
                    yield from own(path, child)
            else:
                for key, inner in item.items() if isinstance(item, dict) else enumerate(item):
                    if inner.__class__ not in _PLAIN:
                        yield from walk(f"{name}.{key}", inner)

    def own(path: str, child: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        for name in filterfalse(_OF_EVERY_MODULE.__contains__, child.__dict__):
            item = child.__dict__[name]
            if item.__class__ in _PLAIN or (item.__class__ in _CONTAINERS and not item):
                continue
            if isinstance(item, (torch.Tensor, dict, list, tuple, torch.nn.Module)):
                yield from walk(f"{path}.{name}" if path else name, item)

    left = set(seen)
    for path, child in modules:
        if id(child) in left:  # not again by another name
            left.remove(id(child))
            yield from own(path, child)


def targets_of(module: torch.nn.Module) -> list[Target]:
    """Every tensor of `module` in root order, tied ones once."""
    found: dict[int, Target] = {}
    modules = list(module.named_modules(remove_duplicate=False))
    for role, named in (
        ("parameter", _members(module, modules, "parameters")),
        ("buffer", _members(module, modules, "buffers")),
        ("attribute", _attributes(modules)),
    ):
        for name, tensor in named:
            known = found.get(id(tensor))
            if known is not None:
                known.others.append(name)
                continue
            found[id(tensor)] = Target(name, tensor, role)
            if hasattr(tensor, "__tensor_flatten__"):
                for path, inner, box in unwrap(name, tensor):
                    found.setdefault(id(inner), Target(path, inner, "attribute", holder=tensor, box=box))
    targets = list(found.values())
    waiting = [target.name for target in targets if isinstance(target.tensor, UninitializedTensorMixin)]
    if waiting:
        for target in targets:
            owner = target.name[: target.name.rfind(".") + 1]
            target.lazy = target.role == "parameter" and any(name.startswith(owner) for name in waiting)
    return targets


def unwrap(name: str, tensor: Any) -> list[tuple[str, torch.Tensor, Region | None]]:
    """The tensors that hold the contents of `tensor`: their names, and which box of the logical tensor each is.

    An ordinary tensor holds its own; what a wrapper subclass holds is `name.attribute`, whole.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        return [(name, tensor, None)]
    return [
        found
        for attribute in tensor.__tensor_flatten__()[0]
        for found in unwrap(f"{name}.{attribute}", getattr(tensor, attribute))
    ]
