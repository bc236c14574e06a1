"""The ranks of a sharded module agree: on what they are to compute, before, and on that all of them have, after.

Each time, a few integers are reduced to their minimum over each dimension's group of the module's meshes, one group
after another. Every integer x goes with ~x, whose minimum is ~max(x), so one reduction finds both; a rank that has
nothing to say of it gives `_NONE` twice. Whatever happens on a rank, it takes part in both reductions: nobody waits for
one that has failed.

A rank goes to its groups in an order that all ranks have, so no ranks wait for one another in a circle; and to those
of one dimension before those of the next, so in the end all ranks of a mesh know what one of them has said.
"""

from __future__ import annotations

import contextlib
import operator
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NoReturn

import torch

from torch_fastinit._torch import mesh_device
from torch_fastinit.planning.digest import COMPARED, digests_of, lines_of
from torch_fastinit.planning.fills import Draw
from torch_fastinit.planning.planner import Assignment, Planner
from torch_fastinit.planning.tensors import Target, is_plain_meta
from torch_fastinit.recording.active import outside
from torch_fastinit.recording.tape import Entry
from torch_fastinit.recording.tensor import Deferred
from torch_fastinit.stream import draw_seed

#: It changes no minimum.
_NONE = (1 << 63) - 1
_UNKNOWN = (_NONE,) * len(COMPARED)
#: How a rank is: the minimum is the worst.
_RAISED, _DIFFERENT, _WELL = range(3)
#: What its seed is: given, drawn, or that of torch's own generator.
_GIVEN, _DRAWN, _REPLAYED = range(3)

_wait = operator.methodcaller("wait")
_words = operator.methodcaller("tolist")


class _NotAllWell(Exception):  # noqa: N818 (no error yet: `give_up` makes one of it)
    """Some rank has failed, or holds something else."""


class _Expected(dict[tuple[int, ...], None]):
    def __missing__(self, words: tuple[int, ...]) -> NoReturn:
        raise _NotAllWell


@dataclass(slots=True)
class _Group:
    """A process group of one dimension of some of the meshes."""

    names: list[str]  # of the dimension in each mesh
    handle: Any
    device: torch.device
    shards: set[int] = field(default_factory=set)  # the `id`s of the tensors that are sharded over these meshes


class Agreement:
    """What this rank and the others of a module's meshes agree on. A module without meshes pays nothing.

    Whatever ends the call that this is made for, `give_up` is to be told of it.
    """

    def __init__(self, targets: Sequence[Target], seed: int | None, *, replay: bool = False, check: bool = True):
        sharded = [target for target in targets if target.spec is not None and _waits(target)]
        if sharded and not check and seed is None and not replay:
            raise ValueError(
                "a sharded module needs a seed= with check=False: nothing tells the ranks whose seed to take"
            )
        self._seed = 0 if replay else seed
        self._kind = _REPLAYED if replay else _DRAWN if seed is None else _GIVEN
        self._groups, self._is_first = _groups_of(sharded if check else [])
        self._raised = False  # on this rank
        self._worst = _WELL  # of this rank and of all that it knows of
        self._digests: Sequence[int] = _UNKNOWN  # of all that this rank holds
        #: Reductions that were begun, and that ended: as many, but where one has raised.
        self._begun: list[None] = []
        self._ended: list[None] = []
        self._result: torch.Tensor | None = None  # of the second reduction

    @property
    def seed(self) -> int:
        """The seed of all ranks, once `before` has returned."""
        if self._seed is None:
            self._seed = draw_seed()
        return self._seed

    def before(
        self, targets: Sequence[Target], plan: Sequence[Assignment], planner: Planner, draws: Mapping[Entry, Draw]
    ) -> None:
        """The first reduction: raise unless all ranks have one seed and are to compute the same."""
        if not self._groups:
            return
        found = []
        for target, one in zip(targets, plan, strict=True):
            lines = lines_of(target, one, planner, draws)
            if lines is not None:
                found.append((None if target.spec is None else id(target.tensor), lines))
        self._digests = digests_of(lines for _, lines in found)
        self._compare(
            [
                digests_of(lines for shard, lines in found if shard is None or shard in group.shards)
                for group in self._groups
            ]
        )
        if self._worst != _WELL:
            raise _NotAllWell

    def after(self) -> Iterator[object]:
        """The second reduction, to be run just before anything changes: raise unless all ranks are well.

        It is made by functions of C, so no interrupt comes between it and what follows.
        """
        if not self._groups:
            return iter(())
        words = (*_both(self._worst), *_both(self.seed))
        self._result, reduction = self._over_all(words)
        return chain(reduction, map(_Expected({words: None}).__getitem__, map(tuple, map(_words, [self._result]))))

    def give_up(self, error: BaseException) -> None:
        """`error` ends the call. Tell the others, who wait; if it came from them, raise what can be said of it.

        Where a reduction itself has raised, its group is lost, and nobody can be told.
        """
        if not self._groups or len(self._begun) != len(self._ended):
            return
        ours = not isinstance(error, _NotAllWell)
        if ours:
            self._raised, self._worst = True, _RAISED
        with outside(), contextlib.suppress(Exception) if ours else contextlib.nullcontext():
            if len(self._ended) < len(self._groups):
                self._compare([_UNKNOWN] * len(self._groups))
            if len(self._ended) < 2 * len(self._groups):
                with contextlib.suppress(_NotAllWell):
                    deque(self.after(), maxlen=0)
            message = self._what_happened()
        if not ours:
            raise RuntimeError(message) from None

    def _compare(self, digests: Sequence[Sequence[int]]) -> None:
        """Go to the groups that are left, with digests for each of all groups. `_worst` is then the worst of all."""
        kinds = _both(self._kind)
        seeds = _both(self.seed)  # drawn by every rank, so that generators stay in step
        if self._kind == _DRAWN and not self._is_first:
            seeds = _NONE, _NONE
        for group, own in list(zip(self._groups, digests, strict=True))[len(self._ended) :]:
            given = [
                *_both(self._worst),
                *kinds,
                *seeds,
                *(word for one in own for word in (_both(one) if one != _NONE else (_NONE, _NONE))),
            ]
            tensor = torch.tensor(given, dtype=torch.int64, device=group.device)
            deque(self._over(group, tensor), maxlen=0)
            words = tensor.tolist()
            self._worst = min(self._worst, words[0])
            kinds, seeds = (words[2], words[3]), (words[4], words[5])
            if any(low != ~high for low, high in zip(words[6::2], words[7::2], strict=True) if low != _NONE):
                self._worst = min(self._worst, _DIFFERENT)
        if kinds[0] != ~kinds[1] or seeds[0] != ~seeds[1]:
            self._worst = min(self._worst, _DIFFERENT)
        elif self._kind == _DRAWN:
            self._seed = seeds[0]

    def _over(self, group: _Group, tensor: torch.Tensor) -> Iterator[object]:
        """Reduce `tensor` over a group: an iterator that runs C alone."""
        works = map(group.handle.allreduce, [[tensor]], [torch.distributed.ReduceOp.MIN])
        return chain(map(self._begun.append, [None]), map(_wait, works), map(self._ended.append, [None]))

    def _over_all(self, words: Sequence[int]) -> tuple[torch.Tensor, Iterator[object]]:
        """A tensor that holds the minimum of `words` over all groups once the iterator has been run, and that."""
        tensors = {group.device: torch.tensor(words, dtype=torch.int64, device=group.device) for group in self._groups}
        steps: list[Iterator[object]] = []
        last = tensors[self._groups[0].device]
        for group in self._groups:
            tensor = tensors[group.device]
            if tensor is not last:
                steps.append(map(tensor.copy_, [last]))
            steps.append(self._over(group, tensor))
            last = tensor
        return last, chain(*steps)

    # --- messages -----------------------------------------------------------------------------------------------------

    def _what_happened(self) -> str:
        """What all ranks are told in the end, each by all others; nothing if they were well."""
        assert self._result is not None
        state, _, low, high = self._result.tolist()
        if state == _WELL and low == ~high:
            return ""
        own = [_RAISED if self._raised else _WELL, self._kind, self.seed, *self._digests]
        table = [_NONE] * (len(own) * torch.distributed.get_world_size())
        start = len(own) * torch.distributed.get_rank()
        table[start : start + len(own)] = own
        result, reduction = self._over_all(table)
        deque(reduction, maxlen=0)
        words = result.tolist()
        rows = {rank: words[i : i + len(own)] for rank, i in enumerate(range(0, len(words), len(own)))}
        return _message({rank: row for rank, row in rows.items() if row[0] != _NONE})


def _waits(target: Target) -> bool:
    return isinstance(target.tensor, Deferred) or is_plain_meta(target.tensor)


def _both(word: int) -> tuple[int, int]:
    """What the minimum and the maximum of `word` are found from."""
    return word, ~word


def _groups_of(sharded: Sequence[Target]) -> tuple[list[_Group], bool]:
    """The groups of all meshes that this rank is in, in the order to go to them, and whether it is the first of all."""
    found: dict[str, _Group] = {}
    firsts: list[bool] = []
    of_meshes: dict[int, list[_Group]] = {}  # by the `id`: to compare meshes is slow
    for target in sharded:
        mesh = target.spec.mesh
        groups = of_meshes.get(id(mesh))
        if groups is None:
            groups = of_meshes[id(mesh)] = []
            at = mesh.get_coordinate()
            if at is not None:
                firsts.append(not any(at))
                for dim in range(mesh.ndim):
                    if mesh.size(dim) > 1:
                        handle = mesh.get_group(dim)
                        name = mesh.mesh_dim_names[dim] if mesh.mesh_dim_names else f"{dim:3}"
                        group = found.get(handle.group_name)
                        if group is None:
                            group = found[handle.group_name] = _Group([], handle, mesh_device(target.spec))
                        group.names.append(name)
                        groups.append(group)
        for group in groups:
            group.shards.add(id(target.tensor))
    return sorted(found.values(), key=_order), bool(firsts) and all(firsts)


def _order(group: _Group) -> tuple[str, str, int, list[int]]:
    ranks = torch.distributed.get_process_group_ranks(group.handle)
    return group.device.type, min(group.names), len(ranks), ranks


def _message(rows: Mapping[int, Sequence[int]]) -> str:
    """What is wrong, given the state, the kind of seed, the seed and the digests of each rank."""
    seeds: dict[object, list[int]] = {}
    models: Counter[tuple[int, ...]] = Counter()
    for rank, (_, kind, seed, *digests) in rows.items():
        seeds.setdefault({_DRAWN: "none", _REPLAYED: "that of torch's generator"}.get(kind, seed), []).append(rank)
        if tuple(digests) != _UNKNOWN:
            models[tuple(digests)] += 1
    unchanged = "; no rank has changed its module"
    if len(seeds) > 1:
        said = "; ".join(f"{seed} on {_ranks(some)}" for seed, some in seeds.items())
        return f"the ranks of the module's mesh were given different seeds: {said}{unchanged}"
    if len(models) > 1:
        usual = models.most_common(1)[0][0]
        for i, what in enumerate(COMPARED):
            others = [rank for rank, row in rows.items() if row[3 + i] not in (usual[i], _NONE)]
            if others:
                like = _ranks([rank for rank, row in rows.items() if row[3 + i] == usual[i]])
                said = f"{_ranks(others)} with other {what} than {like}"
                return (
                    f"the ranks of the module's mesh hold different models: {said}. Build the same model everywhere, "
                    f"or pass check=False, and seed=, if that is meant{unchanged}"
                )
    raised = [rank for rank, row in rows.items() if row[0] == _RAISED]
    if raised:
        return f"materialize() failed on {_ranks(raised)} of the module's mesh, where the reason is raised{unchanged}"
    return f"no rank is the first of all meshes of the module, whose seed the others would take: pass seed={unchanged}"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:10]))
    return f"rank{'s' * (len(ranks) > 1)} {shown}" + (f" and {len(ranks) - 10} more" if len(ranks) > 10 else "")
