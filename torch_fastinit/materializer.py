"""Allocate, run the plan, put the tensors in place: nothing is changed until everything has been computed."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from torch_fastinit.arguments import check_first, function_or_none, integer, is_function, truth
from torch_fastinit.execution.agreement import Agreement
from torch_fastinit.execution.executor import Executor, unwritten_elements
from torch_fastinit.execution.inplace import initialize_in_place
from torch_fastinit.execution.meta import listed
from torch_fastinit.execution.parity import ParityExecutor
from torch_fastinit.execution.progress import Progress
from torch_fastinit.execution.rules import Preparation
from torch_fastinit.execution.swap import put_in_place, refuse_held
from torch_fastinit.ops import Region
from torch_fastinit.planning.devices import DeviceOf, DeviceRule, devices_of
from torch_fastinit.planning.draws import assign_draws, pin, repeated, taking
from torch_fastinit.planning.planner import Assignment, DtypeRule, Planner, Unwritten, check_dtype
from torch_fastinit.planning.promises import note
from torch_fastinit.planning.report import Plan, rows
from torch_fastinit.planning.rules import RuleSet, match
from torch_fastinit.planning.tensors import Target, is_plain_meta, targets_of
from torch_fastinit.recording.active import outside, surroundings
from torch_fastinit.recording.memory import poison, poisoned_with
from torch_fastinit.recording.tensor import Deferred
from torch_fastinit.stream import to_signed

#: Of which part of a larger tensor the tensor of a name is.
Shards = Mapping[str, Region] | Callable[[str], "Region | None"] | None


def materialize(
    module: torch.nn.Module,
    *,
    device: DeviceRule = None,
    dtype: DtypeRule = None,
    seed: int | None = None,
    names: Callable[[str], str] | None = None,
    init: RuleSet | None = None,
    replay: Literal["torch"] | None = None,
    verify: bool = False,
    reset: bool = False,
    unwritten: Literal["zeros"] | None = None,
    shards: Shards = None,
    check: bool = True,
    progress: bool | None = None,
) -> torch.nn.Module:
    """Give every deferred tensor of `module` its memory and its value, in place.

    The value of a random tensor is a function of the seed, its name under `module` and the index of the element.
    Parameters keep their identity, attributes and hooks, so an optimizer that was built before still holds them.
    Tensors that are real already are left alone.

    Args:
        module: a module built inside `torch_fastinit.deferred` or by `torch_fastinit.skip_init`. What such a
            constructor itself puts on the meta device stays there; any other tensor there is an error without `reset`.
        device: where the tensors go: one device for all; a mapping from names of modules and tensors to devices, as
            accelerate's `device_map` (the longest name that a tensor's begins with counts, and `""` is the whole); or a
            function of a tensor's name and the deferred tensor that returns its device, or None. Default, and what None
            means: the device that the constructor asked for. In a sharded module it is the mesh's instead of the CPU,
            but for shards that `CPUOffloadPolicy` keeps there.
        dtype: a dtype, for floating-point and complex tensors, as in `module.to(dtype)`; or a function of a tensor's
            name and the deferred tensor that returns its dtype, or None for the dtype that it has.
        seed: the key of the random stream: an integer, or an array or tensor of one, taken modulo `2**64`. Default:
            drawn from torch's default generator, so `torch.manual_seed` governs. Of a sharded module, every rank draws,
            and all take what the mesh's first drew.
        names: a function from a tensor's name under `module` to its name in the random stream, for parts of a model.
        init: rules, for parameters whose initial values are to be others than those recorded: a mapping from names,
            patterns (`"*.bias"`; `*` crosses dots) and module classes to functions that fill a tensor in place
            (`fastinit.init.zeros_`, a `functools.partial`, your own), numbers, or tensors. A class is for what its
            instances own themselves, and may have a mapping by the parameters' own names. The first rule that matches
            wins; what none matches, and what matches None, keeps what is recorded. See docs/rules.md.
        replay: `"torch"` runs the recorded operations with torch's own generator, in the order recorded: the result
            is bit-identical to eager construction under the same `torch.manual_seed`, and the generator ends in the
            same state. It takes the time of eager construction.
        verify: first run the whole plan on memory that holds one thing and then on memory that holds another, and raise
            if an element differs: nothing wrote it. It takes twice the time and memory.
        reset: for modules built on `torch.device("meta")`, where what the constructor did to its tensors is lost: run
            the modules' own `reset_parameters`, `init_weights` and the like instead, children first. Their values may
            not be those of the constructor: `plan(module, reset=True)` says which method fills what.
        unwritten: `"zeros"` for parameters that nothing writes, which are an error otherwise. In a module that still
            holds lazy parameters they become zeros by themselves: the first forward initialises it.
        shards: for tensors that were built as parts of larger ones without DTensors, as Megatron's layers are: a
            mapping from names to `torch_fastinit.Region(shape, offsets)`, or a function from a name to one or None.
            What was recorded is then written as that part of a tensor of `shape`. Bounds that an initialiser took from
            the shape of the part, such as a fan, stay what they are.
        check: of a module with deferred DTensors, whether the ranks of their meshes compare seeds, names, logical
            shapes and initial values before any work, and tell one another after it that none has failed: then all
            materialise their modules, or none. Every rank of the meshes has to call. Other modules communicate nothing.
        progress: whether a bar on the standard error counts the bytes, by tqdm (the extra `progress`). Default: where
            that is a terminal, and after two seconds; of several ranks, the first has it.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is not a module, `seed` not an integer, `device`, `dtype`, `names` or `shards` is or returns
            something of another type, or `dtype` one that is neither floating-point nor complex; a key or a value of
            `init` is of a kind that means nothing.
        ImportError: `progress=True`, and there is no tqdm.
        RuntimeError: a tensor is on the plain meta device and `reset` is False, or no method resets it, or two do so
            differently, or one needs arguments; nothing writes a parameter; torch holds a tensor as it is; the device
            is not there, or tensors that share memory are sent to several; memory ran out (a `torch.OutOfMemoryError`
            stays one); a recorded operation or a rule failed.
            The message names the tensors, and the module is as it was. So it is after an interrupt, or it is
            materialised, whenever that came.
            A rank of a sharded module raises, too, if seeds or models differ, or if another rank has failed.
        ValueError: `replay` is neither None nor `"torch"`, or `seed`, `init` or `shards` is given with it; a key of
            `init` matches no parameter, or none that is left to it, or real ones alone; `unwritten` is neither None nor
            `"zeros"`; a sharded module has `check=False` and neither `seed` nor `replay`; `shards` has
            a name that no deferred tensor has, a region that its tensor is no part of, or one of a tensor whose parts
            cannot be told: a DTensor, or one that is replayed or written in parts; `device` has a name that is none of
            a tensor or a module, or none for some tensor, or gives something that is no device.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> with fastinit.deferred():
        ...     model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
        >>> _ = fastinit.materialize(model, seed=0)
        >>> model[1].weight.sum().item()
        8.0
    """
    check_first(module, torch.nn.Module, "materialize")
    _check(dtype, names, shards, unwritten)
    verify, reset, check = truth(verify, "verify"), truth(reset, "reset"), truth(check, "check")
    if replay not in (None, "torch"):
        raise ValueError(f'replay must be None or "torch", not {replay!r}')
    if replay is not None and seed is not None:
        raise ValueError(
            'replay="torch" takes its random numbers from torch\'s generator: use torch.manual_seed(), not seed='
        )
    if replay is not None and init is not None:
        raise ValueError(
            'replay="torch" gives the values of eager construction, which knows no rules: write to the parameters '
            "inside fastinit.deferred() instead of passing init="
        )
    if replay is not None and shards is not None:
        raise ValueError('replay="torch" gives the values of eager construction, which knows no shards')
    seed = _key(seed)
    shown = Progress(progress)
    options = _Options(device, dtype, names, init, replay, verify, reset, unwritten, shards, check, shown)
    back = _surroundings()
    try:
        gc.disable()  # what is made here is no garbage, and looking for some would take as long as all the rest
        done = _all_or_nothing(module, seed, options)
        note(module, *done, of_stream=replay is None)
    finally:
        try:  # twice, so that an interrupt of the one leaves the other
            back()
        finally:
            back()
    return module


def plan(
    module: torch.nn.Module,
    *,
    device: DeviceRule = None,
    dtype: DtypeRule = None,
    init: RuleSet | None = None,
    reset: bool = False,
    unwritten: Literal["zeros"] | None = None,
    shards: Shards = None,
) -> Plan:
    """What `torch_fastinit.materialize` would do with `module`, tensor by tensor.

    Args:
        module: any module.
        device, dtype, init, reset, unwritten, shards: as for `torch_fastinit.materialize`.

    Returns:
        A `Plan`: one row a tensor, in root order (parameters, buffers, other attributes). It prints as a table. With
        `init=`, it has a column that names each tensor's rule, or says "recorded".

    Raises:
        RuntimeError, TypeError, ValueError: what `torch_fastinit.materialize` raises of these arguments.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> layer = fastinit.skip_init(torch.nn.Linear, 3, 2)
        >>> print(fastinit.plan(layer))  # doctest: +NORMALIZE_WHITESPACE
        name    shape  dtype    what                            bytes  how
        ------  -----  -------  ------------------------------  -----  --------
        weight  2x3    float32  Uniform(a=-0.57735, b=0.57735)  24     one pass
        bias    2      float32  Uniform(a=-0.57735, b=0.57735)  8      one pass
        2 tensors, 32 bytes; 100.0% in one pass
    """
    check_first(module, torch.nn.Module, "plan")
    _check(dtype, None, shards, unwritten)
    reset = truth(reset, "reset")
    back, prepared = _surroundings(), None
    try:
        gc.disable()  # as in `materialize`
        targets = targets_of(module)
        where = devices_of(device, module, targets)
        prepared = Preparation(module, targets, reset, init) if reset or init is not None else None
        if prepared:
            targets = list(prepared.run(_one_device(where)))
        with outside():
            targets = [target for target in targets if target.role != "padding"]
            draws = assign_draws([target for target in targets if isinstance(target.tensor, Deferred)])
            _set_regions(targets, shards)
            plan = Planner(draws, zeros=unwritten == "zeros").plan(targets, where, dtype)
            if prepared:
                rules = None if init is None else prepared.rules
                return Plan(tuple(rows(targets, plan, prepared.writers, rules)))
            return Plan(tuple(rows(targets, plan)))
    finally:
        try:  # each twice, so that an interrupt of the one leaves the other
            if prepared:
                try:
                    prepared.settle()
                finally:
                    prepared.settle()
        finally:
            try:
                back()
            finally:
                back()


def initialize(
    module: torch.nn.Module, rules: RuleSet, *, seed: int | None = None, names: Callable[[str], str] | None = None
) -> torch.nn.Module:
    """Give real parameters of `module` new initial values, in place.

    A rule says which parameters it is for and how to fill them. The values are those that a deferred module would get
    from `materialize(module, seed=seed, init=rules)`. Every parameter stays the same object, with its `requires_grad`
    and its hooks; parameters that no rule matches are left alone. A rule may use the values that are there:
    `lambda p: p.mul_(0.5)` halves them.

    Args:
        module: the module. Every parameter that a rule matches must be real; others may be deferred.
        rules: as `init=` of `torch_fastinit.materialize`.
        seed, names: as for `torch_fastinit.materialize`.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is not a module, `seed` not an integer, `names` not a function that returns a string, or a
            key or value of `rules` is of a kind that means nothing.
        ValueError: a key of `rules` matches no parameter, or none that is left to it.
        RuntimeError: a rule failed, or matches a parameter that is not real yet. The message names the parameter and
            the rule, and nothing has been written.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> layer = torch.nn.Linear(8, 8)
        >>> _ = fastinit.initialize(layer, {"weight": fastinit.init.orthogonal_, "bias": 0}, seed=0)
        >>> layer.bias.abs().sum().item()
        0.0
    """
    check_first(module, torch.nn.Module, "initialize")
    _check(names=names)
    seed = _key(seed)
    targets = targets_of(module)
    note(module, *initialize_in_place(targets, match(rules, module, targets), seed, names))
    return module


def pin_names(module: torch.nn.Module, *, names: Callable[[str], str] | None = None) -> torch.nn.Module:
    """Let every part of a deferred module have the values that it has in the whole, however it is materialised.

    A random tensor's values depend on its name, which depends on what you materialise: the weight of block 1 is
    `1.weight` in the whole model, but just `weight` if you materialise that block alone, with other values. After
    `pin_names(model)` it is `1.weight` for good. So call this before you materialise a model piece by piece: block
    after block, one stage of a pipeline, or a tied head without its embedding.

    Random operations that are recorded after this call are not pinned.

    Args:
        module: the whole module, deferred.
        names: a function from a tensor's name under `module` to the name to pin, as for `torch_fastinit.materialize`,
            whose own `names` changes no pinned name.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is not a module, or `names` is not a function that returns a string.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> with fastinit.deferred():
        ...     model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> last = fastinit.pin_names(model)[1]
        >>> _ = fastinit.materialize(last, seed=0)  # as "1.weight" and "1.bias"
        >>> torch.equal(last.weight, fastinit.materialize(model, seed=0)[1].weight)
        True
    """
    check_first(module, torch.nn.Module, "pin_names")
    _check(names=names)
    with outside():
        pin(assign_draws([target for target in targets_of(module) if isinstance(target.tensor, Deferred)], names))
    return module


#: Tensors, and where the values of each came from.
_Done = tuple[Sequence[Target], Sequence[Assignment]]


@dataclass(slots=True)
class _Options:
    """The arguments of `materialize`, but for the module and the seed."""

    device: DeviceRule
    dtype: DtypeRule
    names: Callable[[str], str] | None
    init: RuleSet | None
    replay: Literal["torch"] | None
    verify: bool
    reset: bool
    unwritten: Literal["zeros"] | None
    shards: Shards
    check: bool
    progress: Progress


def _all_or_nothing(module: torch.nn.Module, seed: int | None, options: _Options) -> _Done:
    """What was materialised, and from what."""
    targets = targets_of(module)
    agreement = Agreement(targets, seed, replay=options.replay is not None, check=options.check)
    try:
        where = devices_of(options.device, module, targets)
        if not options.reset and options.init is None:
            _refuse_plain_meta(targets)
            return _materialize(targets, where, agreement, options)
        prepared = Preparation(module, targets, options.reset, options.init)
        try:
            targets = list(prepared.run(_one_device(where)))
            _refuse_plain_meta(targets)
            done = _materialize(targets, where, agreement, options, prepared.keep)
            for call in prepared.keep:
                call()
            return done
        finally:
            try:  # twice, so that an interrupt of the one leaves the other
                prepared.settle()
            finally:
                prepared.settle()
    except BaseException as error:
        agreement.give_up(error)
        raise


def _materialize(
    targets: Sequence[Target],
    where: torch.device | DeviceOf | None,
    agreement: Agreement,
    options: _Options,
    kept: Sequence[Callable[[], object]] = (),
) -> _Done:
    """`kept` is called, without an interrupt in between, when the tensors are put in place."""
    targets = [target for target in targets if isinstance(target.tensor, Deferred)]
    if not targets:
        return [], []
    deferred: list[Any] = [target.tensor for target in targets]
    with outside():
        draws = assign_draws(targets, options.names)
        _set_regions(targets, options.shards)
        planner = Planner(draws, zeros=options.unwritten == "zeros")
        plan = planner.plan(targets, where, options.dtype)
        _refuse_unwritten(plan)
        holders = [None if target.spec is None else target.holder for target in targets]
        outer = [(one.name, holder) for one, holder in zip(plan, holders, strict=True) if holder is not None]
        refuse_held([one.name for one in plan] + [name for name, _ in outer], deferred + [held for _, held in outer])
        agreement.before(targets, plan, planner, draws)
        executor: Executor
        if options.replay == "torch":
            executor = ParityExecutor(plan, deferred, 0, draws)
        else:
            executor = Executor(plan, deferred, agreement.seed, draws)
            _warn_of_equal_names(executor)
        if options.verify:
            _verify(executor)
        with options.progress as executor.progress:
            reals = executor.run()
        then = [*executor.final_memory(reals), *executor.moved(), *kept]
        if options.replay is None:
            then += taking(draws, executor.seed)
        put_in_place([one.name for one in plan], deferred, reals, then, holders, agreement.after())
    return targets, plan


def _set_regions(targets: Sequence[Target], shards: Shards) -> None:
    """Note of which part of a larger tensor each target is, by any of its names."""
    if shards is None:
        return
    named = [
        (name, target)
        for target in targets
        if isinstance(target.tensor, Deferred)
        for name in (target.name, *target.others)
    ]
    if not callable(shards):
        unknown = list(shards.keys() - {name for name, _ in named})
        if unknown:
            raise ValueError(f"shards: no deferred tensor of the module has the name {listed(sorted(unknown))}")
        shards = shards.get
    for name, target in named:
        region = shards(name)
        if region is not None and not isinstance(region, Region):
            raise TypeError(f"shards: the part for {name!r} must be a fastinit.Region, or None, not {region!r}")
        if region is not None:
            target.region = region


def _one_device(device: torch.device | DeviceOf | None) -> torch.device | None:
    """What is known of devices before there is a plan: the one that all tensors go to, if there is one."""
    return device if isinstance(device, torch.device) else None


def _check(dtype: Any = None, names: Any = None, shards: Any = None, unwritten: Any = None) -> None:
    """Raise for arguments of kinds that mean nothing."""
    if dtype is not None and not isinstance(dtype, torch.dtype) and not is_function(dtype):
        raise TypeError(f"dtype must be a torch.dtype such as torch.bfloat16, or a function, not {dtype!r}")
    if isinstance(dtype, torch.dtype):
        check_dtype(dtype, "dtype")
    function_or_none(names, "names", "a function from a tensor's name to its name in the random stream")
    if not isinstance(shards, Mapping):
        function_or_none(shards, "shards", "a mapping from names to fastinit.Region, or a function of a name")
    if unwritten not in (None, "zeros"):
        raise ValueError(f'unwritten must be None or "zeros", not {unwritten!r}')


def _key(seed: Any) -> int | None:
    """A seed, as ops take one."""
    return None if seed is None else to_signed(integer(seed, "seed"))


def _warn_of_equal_names(executor: Executor) -> None:
    """Warn, once a recording, of tensors that repeat the numbers of others, as equal blocks do one by one."""
    equal = repeated(executor.draws, executor.seed)
    tapes = {entry.tape for entry in executor.draws}
    if equal and not any(tape.warned for tape in tapes):
        for tape in tapes:
            tape.warned = True
        warnings.warn(
            f"{listed(equal)}: other tensors have these names in the random stream under this seed, too, so they get "
            "the same random numbers. Of parts that are materialised one by one, call fastinit.pin_names(model) on the "
            "whole model first, or pass names=, which gives a tensor its name in the whole model, as in names=lambda "
            'name: f"blocks.1.{name}", or another seed',
            stacklevel=5,
        )


def _refuse_plain_meta(targets: Sequence[Target]) -> None:
    lost = [target.name for target in targets if is_plain_meta(target.tensor) and target.role != "padding"]
    if lost:
        raise RuntimeError(
            f"{listed(lost)}: on the meta device, but not from fastinit.deferred(), so what the constructor did to "
            "them is lost; build the module inside fastinit.deferred(), or pass reset=True to run the modules' own "
            "reset_parameters(), init_weights() and the like, which may give other values"
        )


def _refuse_unwritten(plan: Sequence[Assignment]) -> None:
    """Raise if a parameter has no initial value."""
    unwritten = [one.name for one in plan if isinstance(one.source, Unwritten)]
    if unwritten:
        raise RuntimeError(
            f"{listed(unwritten)}: nothing ever writes to these parameters, so they have no initial value; initialise "
            'them in the constructor, or inside fastinit.deferred() afterwards, or pass unwritten="zeros"'
        )


def _surroundings() -> Callable[[], None]:
    """`surroundings`, and what else of this process or thread `materialize` changes for a while."""
    collects, byte, back = gc.isenabled(), poisoned_with(), surroundings()

    def all_back() -> None:
        back()
        poison(byte)
        if collects:
            gc.enable()

    return all_back


def _verify(executor: Executor) -> None:
    counts = unwritten_elements(executor)
    if counts:
        found = ", ".join(f"{name!r} ({count:,} elements)" for name, count in list(counts.items())[:10])
        more = f" and {len(counts) - 10} more tensors" if len(counts) > 10 else ""
        raise RuntimeError(f"{found}{more}: nothing writes these elements, so their values would be what memory held")
