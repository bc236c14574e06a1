"""The deferred tensor: a wrapper subclass whose contents are a recording.

Autograd, parameters, hooks and modules see an ordinary tensor of the right shape, dtype, stride and device. Each
operation on one goes to its tape's recorder; what asks for contents, such as `tolist`, evaluates them on the spot.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parameter import UninitializedParameter, UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit._torch import (
    PYTHON_KEY,
    data_in_c,
    device_in_c,
    disabled_torch_function,
    leaves_out,
    local_of,
    make_wrapper_subclass,
    refuse_address,
    set_conj,
    set_neg,
    spec_of,
    storage_id,
)
from torch_fastinit.recording.active import active, outside
from torch_fastinit.recording.memory import allocate, as_real, span
from torch_fastinit.recording.memoryless import check_outside, makes_real, no_memory, storage_of
from torch_fastinit.recording.replay import closure, evaluate
from torch_fastinit.recording.tape import (
    Entry,
    NotStridedError,
    Storage,
    Tape,
    Value,
    check_strided,
    clock,
    need,
    transform,
)

aten = torch.ops.aten
_META = torch.device("meta")
_GRAD: Any = torch.Tensor.grad
_CUDA_ARRAY_INTERFACE: Any = torch.Tensor.__cuda_array_interface__
#: The attributes that deferred tensors have besides those of the tensor that they stand for.
_OURS = frozenset({"_value", "_is_param"})
#: What makes a nested tensor of layout `torch.jagged`.
_JAGGED = aten._nested_view_from_jagged.default
_NO_DISPATCH = torch.Tensor.__torch_dispatch__


def tape_of(args: Any) -> Tape:
    """The tape of this thread's context, or, outside, that of the tensors in `args`."""
    if active.tape is not None:
        return active.tape
    found: list[Tape] = []
    transform(args, Deferred, lambda tensor: found.append(tensor._value.storage.tape))
    return found[0]


class Deferred(torch.Tensor):
    """A tensor whose contents are a recording."""

    _value: Value
    _is_param: bool
    _spreads = False  # whether results of operations keep the subclass

    __torch_function__ = disabled_torch_function

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """What the eager class makes: `type(old)(data, requires_grad=...)` is how libraries replace a parameter.

        `kwargs` may hold the attributes of `old`, which this class adds to.
        """
        made = getattr(cls, "_eager_class", torch.nn.Parameter)
        return made(*args, **{name: item for name, item in kwargs.items() if name not in _OURS})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if is_for_others(func, types):
            return NotImplemented
        if active.tape is None:
            found: list[Deferred] = []
            transform((args, kwargs), Deferred, found.append)
            check_outside(func, kwargs or {}, found)
            if makes_real(func, kwargs):
                with outside():
                    return func(*transform(args, Deferred, lambda tensor: tensor._value.shadow), **kwargs)
        return tape_of((args, kwargs)).dispatch(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._value.storage.device if active.tape is not None else _META

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return active.tape is None and active.shows_meta

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return self.device.type == "cpu"

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.device.type == "cuda"

    @property
    def data(self) -> torch.Tensor:
        return wrap(self._value, type(self) if self._spreads else Deferred)

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        storage = self._value.storage
        with outside():
            if active.tape is None and other.is_meta and not isinstance(other, Deferred):
                if not isinstance(self, UninitializedTensorMixin):
                    raise RuntimeError(
                        f"a deferred tensor of shape {tuple(self.shape)} cannot take its contents from one on the meta "
                        "device, which has none: make that one inside fastinit.deferred()"
                    )
                other = uninitialized(other, storage.device, storage.tape)  # the first forward of a lazy module
            try:
                value = value_of_tensor(other, storage.tape)
            except NotStridedError as error:
                raise NotStridedError(error.kind, f"Tensor.data of a tensor of shape {tuple(self.shape)}") from None
            become(self, value)

    @property
    def grad(self) -> torch.Tensor | None:
        gradient: torch.Tensor | None = _GRAD.__get__(self)
        return gradient

    @grad.setter
    def grad(self, gradient: torch.Tensor | None) -> None:
        if gradient is not None and active.tape is None:
            raise no_memory(self.shape, "it takes no gradient")
        _GRAD.__set__(self, gradient)

    @grad.deleter
    def grad(self) -> None:
        _GRAD.__delete__(self)

    def backward(self, *args: Any, **kwargs: Any) -> None:
        if active.tape is None:
            raise no_memory(self.shape, "nothing can be differentiated")
        super().backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def numpy(self, *, force: bool = False) -> Any:
        if self.requires_grad and not force:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        real = expose(self._value)
        with outside():
            return real.numpy(force=force)

    def __dlpack__(self, **kwargs: Any) -> Any:
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        real = expose(self._value)
        with outside():
            return real.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        with outside():
            return read(self._value).__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> Any:
        if self._value.storage.device.type == "cuda":
            raise no_memory(self.shape, "it has no __cuda_array_interface__")
        return _CUDA_ARRAY_INTERFACE.__get__(self)

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def share_memory_(self) -> torch.Tensor:
        raise no_memory(self.shape, "there is none to share")

    def __array__(self, dtype: Any = None) -> Any:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def tolist(self) -> Any:
        with outside():
            return read(self._value).tolist()

    def data_ptr(self) -> int:
        """Inside a context, a number that identifies the memory, as an address would. Nothing is there."""
        if active.tape is None:
            if self._value.storage.shared is not None:
                return read(self._value).data_ptr()
            raise no_memory(self.shape, "it has no address")
        return storage_id(self._value.shadow.untyped_storage()) + int(self.storage_offset()) * self.element_size()

    def untyped_storage(self) -> torch.UntypedStorage:
        if active.tape is None and self._value.storage.shared is not None:
            return self._value.storage.shared
        return storage_of(self._value.shadow)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        prefix = "Parameter containing:\n" if isinstance(self, torch.nn.Parameter) else ""
        if active.tape is None:
            return f"{prefix}Deferred(..., size={tuple(self.shape)}, dtype={self.dtype})"
        with outside():
            real = evaluate(self._value)
            return prefix + repr(real.requires_grad_(self.requires_grad) if self.is_leaf else real)

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else object.__format__(self, spec)

    def __copy__(self) -> torch.Tensor:
        """As of a real tensor: a leaf of its own, with the same memory."""
        if isinstance(self, UninitializedTensorMixin):
            return _deepcopy_uninitialized(self, {})
        with outside():
            new = wrap(self._value, type(self)).requires_grad_(self.requires_grad)
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) in memo:
            known: torch.Tensor = memo[id(self)]
            return known
        if self.__dict__.get("_is_param"):  # as torch.nn.Parameter does: without attributes, in memory of its own
            parameter = memo[id(self)] = torch.nn.Parameter(self.data.clone(), self.requires_grad)
            return parameter
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user support the deepcopy protocol at the moment"
            )
        with outside():
            new = wrap(_deepcopy_value(self._value, memo), type(self))
        new.requires_grad_(self.requires_grad)
        memo[id(self)] = new
        for name, attribute in self.__dict__.items():
            if name != "_value":
                setattr(new, name, copy.deepcopy(attribute, memo))
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise no_memory(self.shape, "there is nothing to save")


def holds_deferred(tensor: torch.Tensor) -> bool:
    """Whether a tensor is deferred, or a DTensor whose shard is."""
    return isinstance(tensor, Deferred) or (spec_of(tensor) is not None and isinstance(local_of(tensor), Deferred))


def _conversion(name: str) -> Callable[..., Any]:
    """A method that C++ code calls on elements of a list, as `torch.tensor([t])` does, past the dispatcher."""
    original = getattr(torch.Tensor, name)

    def convert(self: Deferred, *args: Any) -> Any:
        if not leaves_out(PYTHON_KEY):
            return original(self, *args)
        with outside():
            return original(read(self._value), *args)

    return functools.update_wrapper(convert, original)


for _name in ("__bool__", "__complex__", "__float__", "__index__", "__int__"):
    setattr(Deferred, _name, _conversion(_name))


def is_for_others(func: Any, types: Any) -> bool:
    """Whether any type has its own `__torch_dispatch__`, which is to run the operation."""
    for cls in types:  # asked for each operation: no generator
        if cls is not Deferred and not issubclass(cls, Deferred) and cls.__torch_dispatch__ is not _NO_DISPATCH:
            if func is _JAGGED and any(issubclass(one, Deferred) for one in types):
                raise NotStridedError("nested", func)  # torch keeps its parts where they cannot be replaced
            return True
    return False


@functools.cache
def deferred_class(cls: type[torch.Tensor]) -> Any:
    """The deferred counterpart of a tensor subclass made by `torch.Tensor._make_subclass`."""

    def get(self: torch.Tensor) -> type:
        return type(self)

    def change(self: torch.Tensor, new: type[torch.Tensor]) -> None:
        """Assigning to `__class__`: `UninitializedParameter.materialize` makes itself a parameter in this way."""
        if not issubclass(new, Deferred):
            if new is torch.nn.Parameter:
                self._is_param = True
            new = Deferred if new in (torch.nn.Parameter, torch.Tensor) else deferred_class(new)
        set_class(self, new)

    if cls.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise NotImplementedError(
            f"{cls.__name__} has a __torch_dispatch__, and _make_subclass or as_subclass makes it from a deferred "
            "tensor: what it does with its contents cannot be recorded. Make it by _make_wrapper_subclass around "
            "deferred tensors, or outside of fastinit.deferred()"
        )
    namespace = {
        "_eager_class": cls,
        "__new__": Deferred.__new__,
        "_spreads": cls.__torch_function__ is not disabled_torch_function
        and not issubclass(cls, UninitializedTensorMixin),
        "__class__": property(get, change),
    }
    if issubclass(cls, UninitializedParameter):
        namespace["__deepcopy__"] = _deepcopy_uninitialized
    metaclass: Any = type(cls)
    made: Any = metaclass(cls.__name__, (cls, Deferred), namespace)
    # Set afterwards: torch replaces __torch_function__ in the namespace of a class with __torch_dispatch__.
    made.__torch_function__ = inspect.getattr_static(cls, "__torch_function__")
    return made


def _deepcopy_uninitialized(self: Deferred, memo: dict[int, Any]) -> torch.Tensor:
    """Parameters without a shape yet can be copied inside a context and outside."""
    known: torch.Tensor | None = memo.get(id(self))
    if known is None:
        storage = self._value.storage
        shadow = torch.empty(0, dtype=self._value.shadow.dtype, device=_META)
        value = Value(shadow, Storage(shadow, storage.device, storage.tape))
        known = memo[id(self)] = as_subclass(wrap(value), type(self), self.requires_grad)
    return known


#: Assigns to a tensor's `__class__`, bypassing any property of that name.
set_class: Callable[[torch.Tensor, type[torch.Tensor]], None] = object.__dict__["__class__"].__set__


def as_subclass(data: Deferred, cls: type[torch.Tensor], requires_grad: bool) -> Deferred:
    """What `torch.Tensor._make_subclass(cls, data, requires_grad)` makes of a real tensor."""
    with outside():
        if cls is torch.nn.Parameter:
            tensor = wrap(data._value)
            tensor._is_param = True
        else:
            tensor = wrap(data._value, cls if issubclass(cls, Deferred) else deferred_class(cls))
        tensor.requires_grad_(requires_grad)
    return tensor


def wrap(value: Value, cls: type[Deferred] = Deferred, device: torch.device | None = None) -> Deferred:
    """A deferred tensor that shows `value`. Code in C++ sees it on `device`, by default where its storage will be."""
    shadow = value.shadow
    tensor: Deferred = make_wrapper_subclass(
        cls,
        shadow.shape,
        strides=shadow.stride(),
        storage_offset=shadow.storage_offset(),
        dtype=shadow.dtype,
        device=device or value.storage.device,
    )
    refuse_address(tensor)  # code in C++ gets no address either
    if value.lazy:  # which code in C++ asks the tensor itself, as `imag` and `resolve_conj` do
        set_conj(tensor, shadow.is_conj())
        set_neg(tensor, shadow.is_neg())
    tensor._value = value
    return tensor


def uninitialized(like: torch.Tensor, device: torch.device, tape: Tape) -> Deferred:
    """A deferred tensor with the metadata of `like` that nothing has written yet."""
    shadow = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=_META)
    return wrap(Value(shadow, Storage(shadow, device, tape)))


def become(tensor: Deferred, value: Value) -> None:
    """Let `tensor` show another value, as assigning to `.data` does."""
    data_in_c.__set__(tensor, wrap(value, device=device_in_c(tensor)))
    tensor._value = value


def read(value: Value) -> torch.Tensor:
    """The contents of a value, for code that asks for them."""
    if active.tape is None and value.storage.shared is None:
        entries = closure([need(value, next(clock))])
        if not all(entry.determined for entry in entries):
            raise RuntimeError(
                f"a deferred tensor of shape {tuple(value.shadow.shape)} has random contents that are not drawn yet: "
                "read it inside fastinit.deferred(), or call fastinit.materialize(module) first"
            )
    return evaluate(value)


def expose(value: Value) -> torch.Tensor:
    """The contents of `value` as a real tensor. From here on its memory is shared: others may write to it."""
    storage = value.storage
    with outside():
        real = read(value)
        if storage.shared is None:
            storage.shared = real.untyped_storage()
        return real


def _deepcopy_value(value: Value, memo: dict[int, Any]) -> Value:
    """Copy the storage whole, once for all tensors that share it."""
    old = value.storage
    key = id(old)
    new: Storage
    if key in memo:
        new = memo[key]
    else:
        base = torch.empty(old.nbytes, dtype=torch.uint8, device=_META)
        new = memo[key] = Storage(base, old.device, old.tape)
        if old.shared is not None:
            new.shared = old.shared.clone()
        elif old.writes:
            everything = torch.empty(0, dtype=torch.uint8, device=_META).set_(old.base.untyped_storage())
            source, target = Value(everything, old), Value(base, new)
            Entry(
                old.tape, aten.copy_.default, (target, source), {}, reads=(source,), writes=(target,), overwrites=True
            )
    return Value(_reseat(value.shadow, new.base), new)


def _reseat(shadow: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """`shadow`'s view of another storage."""
    return as_real(shadow, base.untyped_storage())


# --- real tensors that come in ----------------------------------------------------------------------------------------


def adopt(real: torch.Tensor, tape: Tape) -> Value:
    """A real tensor as a value that shares its memory."""
    check_strided(real)
    storage = real.untyped_storage()
    base = torch.empty(storage.nbytes(), dtype=torch.uint8, device=_META)
    value = Value(_reseat(real, base), Storage(base, real.device, tape))
    value.storage.shared = storage
    return value


def capture(value: Value, target: torch.Tensor | None = None) -> Value:
    """A copy of shared memory as it is now, for entries to read later; as `target` will hold it, if that is given."""
    shared = value.storage.shared
    assert shared is not None
    real = as_real(value.shadow, shared)
    if target is not None and target.shape == real.shape and span(target)[2] and not target.is_conj():
        real = allocate(target.shape, target.stride(), target.dtype, real.device).copy_(real)
    else:
        real = real.clone()
    shadow = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=_META)
    storage = Storage(shadow, value.storage.device, value.storage.tape)
    storage.captured = real.untyped_storage()
    return Value(shadow, storage)


def value_of_tensor(tensor: torch.Tensor, tape: Tape) -> Value:
    return tensor._value if isinstance(tensor, Deferred) else adopt(tensor.detach(), tape)
