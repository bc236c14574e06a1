"""What `materialize` and `initialize` wrote to the tensors of a module, remembered as long as the module lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

from torch_fastinit.planning.planner import Assignment
from torch_fastinit.planning.tensors import Target


@dataclass(slots=True)
class Promise:
    """Where a tensor's values came from, as plain data.

    `of_stream`: by this package's stream, and not by torch's generators.
    """

    assignment: Assignment
    of_stream: bool = True


#: By the module that owns a tensor, so that each part of a model knows its own, and by the rest of its name. (Not by
#: the tensor: torch does not swap one that is weakly referred to.)
_noted: WeakIdKeyDictionary = WeakIdKeyDictionary(ref_type=WeakIdRef)


def note(
    module: torch.nn.Module, targets: Sequence[Target], assignments: Sequence[Assignment], *, of_stream: bool = True
) -> None:
    """Remember what was written to `targets`, which are tensors of `module`."""
    if not targets:
        return
    modules = dict(module.named_modules(remove_duplicate=False))
    owned: dict[str, dict[str, Promise]] = {}
    for target, one in zip(targets, assignments, strict=True):
        promise = Promise(one, of_stream)
        for name in (target.name, *target.others):
            owner, rest = _owner(modules, name)
            owned.setdefault(owner, {})[rest] = promise
    for owner, some in owned.items():
        _noted.setdefault(modules[owner], {}).update(some)


def promised(module: torch.nn.Module, names: Sequence[str]) -> Mapping[str, Promise]:
    """What is remembered of the tensors that `module` has by these names."""
    modules = dict(module.named_modules(remove_duplicate=False))
    of_owner: dict[str, Mapping[str, Promise]] = {}
    found = {}
    for name in names:
        owner, rest = _owner(modules, name)
        if owner not in of_owner:
            of_owner[owner] = _noted.get(modules[owner], {})
        promise = of_owner[owner].get(rest)
        if promise is not None:
            found[name] = promise
    return found


def _owner(modules: Mapping[str, torch.nn.Module], name: str) -> tuple[str, str]:
    """The name of the innermost module that `name` leads through, and the rest of it."""
    owner, dot, _ = name.rpartition(".")
    while owner not in modules:
        owner, dot, _ = owner.rpartition(".")
    return owner, name[len(owner) + len(dot) :]
