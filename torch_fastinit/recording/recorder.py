"""Operations on deferred tensors, written into the tape.

`dispatch` runs an operation on the shadows for the metadata and the aliasing of its results, and records what it
does to memory. Where a result's shape, or memory that NumPy sees too, depends on values, it is run at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torch_fastinit._torch import TorchDispatchMode, device_in_c, dispatch_depth, is_alias_of, push_dispatch_mode
from torch_fastinit.recording.active import active, outside
from torch_fastinit.recording.creations import CONTIGUOUS, CREATIONS, EMPTY_SHAPED, SHAPES, Creation, empty_like
from torch_fastinit.recording.generators import OwnGenerators, generator_by_name, is_default, same_state, states
from torch_fastinit.recording.memoryless import is_collective, no_memory
from torch_fastinit.recording.outsiders import REFUSED, mark, run_on_meta, set_storage, set_tensor
from torch_fastinit.recording.replay import evaluate, run_alone
from torch_fastinit.recording.schema import Signature, signature_of
from torch_fastinit.recording.tape import Entry, NotStridedError, Storage, Tape, Value, transform
from torch_fastinit.recording.tensor import (
    Deferred,
    adopt,
    become,
    capture,
    is_for_others,
    read,
    tape_of,
    value_of_tensor,
    wrap,
)

aten = torch.ops.aten
_CPU = torch.device("cpu")
_META = torch.device("meta")


#: Called before a tensor is detached or split, which is what torch's sharding code does to one first.
BEFORE_SHARDING: list[Callable[[], object]] = []


def _same(func: Any, args: Any, kwargs: Any) -> Any:
    if isinstance(args[0], Deferred):
        for call in BEFORE_SHARDING:
            call()
        return wrap(args[0]._value, device=_apparent(args[0]))
    return func(args[0])  # torch's own C++ code detaches a real tensor and goes for its memory


def _apparent(of: Any = None, cast: bool = False) -> torch.device | None:
    """Where a result seems to be for code in C++, if not in its own place.

    Outside a context that is meta, so that torch's sharding code takes it. But an alias of a tensor is where that is,
    unless it is a parameter's, which is what gets sharded; and so is a cast, which may take its place (`module.to`).
    """
    if active.tape is not None:
        return None
    if not isinstance(of, Deferred) or (not cast and of.__dict__.get("_is_param")):
        return _META
    return device_in_c(of)


def _lift(func: Any, args: Any, kwargs: Any) -> Any:
    if args[0].is_meta and not isinstance(args[0], Deferred):
        mark(args[0])
        return args[0]
    return wrap(value_of_tensor(args[0], tape_of(args)))


def _item(func: Any, args: Any, kwargs: Any) -> Any:
    with outside():
        return func(read(value_of_tensor(args[0], tape_of(args))))


def _as_strided(func: Any, args: Any, kwargs: Any) -> Any:
    result = _record_operation(func, args, kwargs)
    value = result._value if isinstance(result, Deferred) else None
    if value is not None and value.span[1] > value.storage.nbytes:
        raise RuntimeError(
            f"as_strided: sizes {list(result.shape)}, strides {list(result.stride())} and storage offset "
            f"{result.storage_offset()} need a storage of {value.span[1]} bytes, and it has {value.storage.nbytes}"
        )
    return result


def _split(func: Any, args: Any, kwargs: Any) -> Any:
    for call in BEFORE_SHARDING:
        call()
    if not isinstance(args[0], Deferred):
        return _record_operation(func, args, kwargs)
    value, apparent = args[0]._value, _apparent(args[0])
    return [
        wrap(Value(part, value.storage, value), device=apparent) for part in func(value.shadow, *args[1:], **kwargs)
    ]


def _overwrite(func: Any, args: Any, kwargs: Any) -> Any:
    """A shortcut for the commonest initialisers: only the tensor itself is involved."""
    tensor = args[0]
    if kwargs or not isinstance(tensor, Deferred) or tensor._value.storage.shared is not None:
        return _record_operation(func, args, kwargs)
    value = tensor._value
    tape = active.tape or value.storage.tape
    random = func in _RANDOM
    with tape.lock:
        entry = Entry(tape, func, (value, *args[1:]), {}, writes=(value,), overwrites=True, random=random)
        if random:
            tape.append(entry)
    return tensor


def _own_fill(func: Any, args: Any, kwargs: Any) -> None:
    _overwrite(func, args, kwargs)


#: `ops.py` defines it before anything is recorded.
_FILL = torch.ops.fastinit.fill_.default
_RANDOM = frozenset({aten.normal_.default, aten.uniform_.default, _FILL})

_SPECIAL: dict[Any, Callable[[Any, Any, Any], Any]] = {
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.lift_fresh.default: _lift,
    aten._local_scalar_dense.default: _item,
    aten.normal_.default: _overwrite,
    aten.uniform_.default: _overwrite,
    aten.zero_.default: _overwrite,
    aten.fill_.Scalar: _overwrite,
    _FILL: _own_fill,
    aten.set_.source_Tensor: set_tensor,
    aten.set_.source_Storage: set_storage,
    aten.set_.source_Storage_storage_offset: set_storage,
    aten.as_strided.default: _as_strided,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    **REFUSED,
}


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Every operation inside a context, and every operation on a deferred tensor outside."""
    try:
        return _SPECIAL.get(func, _record_operation)(func, args, kwargs)
    except NotStridedError as error:
        raise NotStridedError(error.kind, func) from None


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it imports all of it

    def __exit__(self, *error: Any) -> None:
        if dispatch_depth() == 0:  # an interrupt has ended `outside()` before that put it back
            push_dispatch_mode(self)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.tape.closed:  # a thread that outlives its context
            if active.tape is self.tape:
                active.tape = None
            return func(*args, **(kwargs or {}))
        if is_for_others(func, types):
            return NotImplemented
        return dispatch(func, args, kwargs or {})


@contextlib.contextmanager
def recording(tape: Tape) -> Iterator[None]:
    """Let this thread record into `tape`, as long as that is open."""
    if tape.closed or (active.tape is not None and not active.tape.closed):
        yield
        return
    with _Recorder(tape):
        active.tape = tape
        try:
            yield
        finally:
            active.tape = None


def _record_operation(func: Any, args: Any, kwargs: Any) -> Any:
    """Record any operation: run it on shadows for metadata and aliasing, and note what it does to memory."""
    if is_collective(func):
        _refuse_collective(func, (args, kwargs))
    signature = signature_of(func)
    if signature.writes_if is not None and not (args[5:] or (kwargs.get("training"),))[0]:
        signature = signature.without_writes
    if signature.random:
        args, kwargs = generator_by_name(func, args, kwargs)
    tape = tape_of((args, kwargs))
    values: list[Value] = []
    meta = False

    def value_of(tensor: torch.Tensor) -> Value:
        nonlocal meta
        if isinstance(tensor, Deferred):
            value = tensor._value
        else:
            meta = meta or tensor.is_meta
            value = value_of_tensor(tensor, tape)
        values.append(value)
        return value

    vargs = transform(args, torch.Tensor, value_of)
    vkwargs = transform(kwargs, torch.Tensor, value_of) if kwargs else kwargs
    device = kwargs.get("device") if kwargs else None
    if device is None:
        device = _device_of(values)
    written_objects = [args[i] if i < len(args) else kwargs.get(name) for i, name in signature.writes]
    written = [vargs[i] if i < len(vargs) else vkwargs.get(name) for i, name in signature.writes]
    name = func._schema.name[6:]
    creation = None if values and (signature.writes or name == "normal") else CREATIONS.get(name)
    if device.type == "meta" or (meta and creation is None):
        return run_on_meta(func, args, kwargs, written_objects)
    if creation is not None:
        return _create(func, vargs, vkwargs, device, tape, creation, func.overloadpacket.__name__)
    if signature.reshapes:
        return _reshape_in_place(func, args, vargs, vkwargs)
    flat_written: list[Value] = []
    transform(written, Value, flat_written.append)
    if flat_written and len(values) > len(flat_written):
        vargs, vkwargs = _apart(signature, vargs, vkwargs, flat_written)
    reads_values = signature.reads_values
    if func is aten.index.Tensor:  # its shape depends on values only where a mask chooses
        reads_values = any(isinstance(i, Value) and i.shadow.dtype in (torch.bool, torch.uint8) for i in vargs[1])
    if reads_values or any(value.storage.shared is not None for value in flat_written):
        return _run_now(func, signature, vargs, vkwargs, written_objects, flat_written, tape)

    if signature.returns_written == (0,) and len(values) == 1 and not signature.out:
        results = written_objects[0]  # in place, alone: nothing that a meta function could find wrong
        outs: tuple[Value | None, ...] = ()
        aliases = True
    else:
        try:
            shape = None if values else SHAPES.get(func.overloadpacket)
            if shape is not None:
                shadows = shape(vargs, vkwargs)
            elif func in CONTIGUOUS:
                shadows = torch.empty(vargs[0].shadow.shape, dtype=vargs[0].shadow.dtype, device=_META)
            else:
                on_meta = _on_meta(signature, vkwargs, device, _shadow)
                shadows = func(*transform(vargs, Value, _shadow), **on_meta)
        except Exception:  # no metadata without values; or a mistake, which torch then finds in its own words
            return _run_now(func, signature, vargs, vkwargs, written_objects, flat_written, tape)
        sequence = shadows if isinstance(shadows, (list, tuple)) else (shadows,)
        if signature.returns_written and any(shadow is None for shadow in sequence):  # it is silent about one
            return _run_now(func, signature, vargs, vkwargs, written_objects, flat_written, tape)
        results, outs, aliases = _results(signature, shadows, written_objects, values, device, tape, func, args)
    if active.tape is None and len(outs) == 1 and outs[0] is not None and values:
        outs[0].storage.like = values[0]
    if flat_written or not aliases:
        record(tape, func, vargs, vkwargs, flat_written, outs, signature.overwrites, signature.random)
    return results


def _refuse_collective(func: Any, args: Any) -> None:
    found: list[Deferred] = []
    transform(args, Deferred, found.append)
    if found:
        raise no_memory(found[0].shape, f"{func} cannot send it")


def _apart(signature: Signature, args: Any, kwargs: Any, written: list[Value]) -> tuple[Any, Any]:
    """The arguments, with values of their own for those that are only read: `t.copy_(t)` reads what it overwrites."""
    ids = {id(value) for value in written}
    names = {name for _, name in signature.writes}
    places = {i for i, _ in signature.writes}

    def own(value: Value) -> Value:
        return Value(value.shadow, value.storage) if id(value) in ids else value

    args = tuple(arg if i in places else transform(arg, Value, own) for i, arg in enumerate(args))
    kwargs = {name: arg if name in names else transform(arg, Value, own) for name, arg in kwargs.items()}
    return args, kwargs


def record(
    tape: Tape,
    func: Callable[..., Any],
    args: Any,
    kwargs: dict[str, Any],
    written: list[Value],
    outs: tuple[Value | None, ...] = (),
    overwrites: bool = False,
    random: bool = False,
) -> Entry:
    """Write one operation into the tape. Shared memory that it reads is captured as it is now."""
    reads: list[Value] = []
    left = [id(value) for value in written]

    def read(value: Value) -> Value:
        if id(value) in left:  # once: `t.copy_(t)` and `torch.mul(t, 2, out=t)` read what they write, too
            left.remove(id(value))
            return value
        if value.storage.shared is not None:
            value = capture(value, written[0].shadow if func is aten.copy_.default else None)
        if value.storage.captured is None:
            reads.append(value)
        return value

    args = transform(args, Value, read)
    kwargs = transform(kwargs, Value, read)
    generator = kwargs.get("generator")
    if random and generator is not None and not is_default(generator):
        func, random = _with_generator(func, args, kwargs, overwrites, written)
        kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
    with tape.lock:
        entry = Entry(
            tape,
            func,
            tuple(args),
            kwargs,
            reads=tuple(reads),
            writes=tuple(written),
            outs=outs,
            overwrites=overwrites,
            random=random,
        )
        if random:
            tape.append(entry)
    return entry


def _with_generator(
    func: Callable[..., Any], args: Any, kwargs: dict[str, Any], overwrites: bool, written: list[Value]
) -> tuple[Callable[..., Any], bool]:
    """`func` bound to the present state of the caller's generator, and run once to advance that.

    Also says whether it draws from torch's default generator all the same, as `torch.nn.init.sparse_` does.
    """
    generator: torch.Generator = kwargs["generator"]
    state = generator.get_state()

    def replay(*args: Any, **kwargs: Any) -> Any:
        private = torch.Generator(generator.device)
        private.set_state(state)
        return func(*args, **kwargs, generator=private)

    scratch = {id(value) for value in written}

    def real(value: Value) -> torch.Tensor:
        if id(value) not in scratch:
            return evaluate(value)
        if overwrites:
            return torch.empty_like(value.shadow, device=value.storage.device)
        return evaluate(value).clone()

    before = states()
    generators = OwnGenerators(before)
    with outside():
        generators.run(func, transform(args, Value, real), transform(kwargs, Value, real))
    return replay, not same_state(before, generators.states())


def _shadow(value: Value) -> torch.Tensor:
    return value.shadow


def _device_of(values: list[Value]) -> torch.device:
    """The device of a result, by torch's rule: a CPU scalar follows the others."""
    device = _CPU
    for value in values:
        device = value.storage.device
        if device.type != "cpu" or value.shadow.dim() > 0:
            return device
    return device


def _on_meta(
    signature: Signature, kwargs: dict[str, Any], device: torch.device, shadow: Callable[[Value], torch.Tensor]
) -> dict[str, Any]:
    if not kwargs and not signature.takes_device:
        return kwargs
    kwargs = transform(kwargs, Value, shadow)
    kwargs.pop("pin_memory", None)
    if "generator" in kwargs:
        kwargs["generator"] = None
    if signature.takes_device:
        kwargs["device"] = _META
    return kwargs


def _results(
    signature: Signature,
    shadows: Any,
    written: list[Any],
    values: list[Value],
    device: torch.device,
    tape: Tape,
    func: Any,
    args: Any,
) -> tuple[Any, tuple[Value | None, ...], bool]:
    """Results as deferred tensors, the values among them in fresh storages, and whether there are none of these."""
    outs: list[Value | None] = []
    sequence = isinstance(shadows, (list, tuple))
    results: list[Any] = []
    for i, shadow in enumerate(shadows if sequence else (shadows,)):
        which = signature.returns_written[i] if i < len(signature.returns_written) else None
        out = None
        if which is not None:
            results.append(written[which])
        elif isinstance(shadow, torch.Tensor):
            parent = next((v for v in values if is_alias_of(v.shadow, shadow)), None)
            if parent is None:
                out = value = Value(shadow, Storage(shadow, device, tape))
            else:
                value = Value(shadow, parent.storage, parent)
            cast = func is aten._to_copy.default
            results.append(wrap(value, device=_apparent(args[0] if cast or parent else None, cast)))
        else:
            results.append(shadow)
        outs.append(out)
    aliases = all(out is None for out in outs)
    return (type(shadows)(results) if sequence else results[0]), (() if aliases else tuple(outs)), aliases


def _create(
    func: Any, args: Any, kwargs: dict[str, Any], device: torch.device, tape: Tape, creation: Creation, name: str
) -> Deferred:
    on_meta = _on_meta(signature_of(func), kwargs, device, _shadow)
    on_meta.pop("generator", None)
    if name in EMPTY_SHAPED:
        shadow = torch.empty(args[0], **on_meta)
    elif name.endswith("_like"):
        shadow = empty_like(args[0].shadow, on_meta)
    else:
        shadow = func(*transform(args, Value, _shadow), **on_meta)
    value = Value(shadow, Storage(shadow, device, tape))
    if active.tape is None:
        value.storage.like = next((arg for arg in args if isinstance(arg, Value)), None)
    write = creation(args, kwargs)
    if write is not None:
        inplace, arguments = write
        random = signature_of(inplace).random
        generator = kwargs.get("generator") or (args[1] if func._overloadname == "generator" else None)
        keywords = {"generator": generator} if generator is not None else {}
        record(tape, inplace, (value, *arguments), keywords, [value], overwrites=True, random=random)
    return wrap(value, device=_apparent())


def _reshape_in_place(func: Any, args: Any, vargs: Any, vkwargs: Any) -> Any:
    """`t_`, `unsqueeze_`, `resize_`: on a new shadow, since other tensors may share the old one."""
    value = vargs[0]
    view = value.shadow.detach()
    func(view, *transform(vargs[1:], Value, _shadow), **transform(vkwargs, Value, _shadow))
    become(args[0], Value(view, value.storage))
    return args[0]


def _run_now(
    func: Any, signature: Signature, vargs: Any, vkwargs: Any, objects: list[Any], written: list[Value], tape: Tape
) -> Any:
    """Run an operation at once: its result's shape or type, or shared memory, depends on values."""
    for value in written:  # its holders must see the change
        if value.storage.shared is None:
            value.storage.shared = read(value).untyped_storage()
    with outside():
        if signature.random:
            result = draw_now(func, vargs, vkwargs, written, tape)
        else:
            result = func(*transform(vargs, Value, read), **transform(vkwargs, Value, read))
    if signature.returns_written and signature.returns_written[0] is not None:
        return objects[0] if len(signature.returns_written) == 1 else tuple(objects)
    return transform(result, torch.Tensor, lambda real: wrap(adopt(real, tape)))


def draw_now(func: Any, vargs: Any, vkwargs: Any, written: list[Value], tape: Tape) -> Any:
    """A random operation on shared memory, or of unknown metadata: recorded in its place among the draws, and run."""
    copies = {id(value): _fresh_copy(value, tape) for value in written}
    args = transform(vargs, Value, lambda value: copies.get(id(value), value))
    kwargs = transform(vkwargs, Value, lambda value: copies.get(id(value), value))
    entry = record(tape, func, args, kwargs, list(copies.values()), random=True)
    try:
        for value in written:
            read(value).copy_(evaluate(copies[id(value)]))
        if not written:
            return run_alone(entry)
    except BaseException:  # it was no draw
        if entry in tape.draws:
            tape.draws.remove(entry)
        raise


def _fresh_copy(value: Value, tape: Tape) -> Value:
    source = capture(value)
    target = Value(source.shadow, Storage(source.shadow, source.storage.device, tape))
    Entry(tape, aten.copy_.default, (target, source), {}, writes=(target,), overwrites=True)
    return target
