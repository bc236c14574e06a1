"""Every private name of torch that is used here, all of them seen in torch 2.10 to 2.14 (docs/versions.md).

What torch itself should have is looked for when this module is imported, what its other packages should have when it is
needed: either way an error says what is missing, instead of an AttributeError in the middle of a constructor.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
from torch._C import DispatchKey, DispatchKeySet
from torch._ops import OpOverload as OpOverload
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode


def _missing(name: str) -> str:
    return (
        f"torch {torch.__version__} has no {name}, which torch_fastinit needs; torch 2.10 to 2.14 have it: install one "
        "of these, or a newer torch_fastinit"
    )


def _private(name: str) -> Any:
    """What has this name in torch, given as "module:attribute.attribute"."""
    try:
        return resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise ImportError(_missing(name.replace(":", "."))) from error


def attribute(owner: Any, name: str) -> Any:
    """A private attribute of an object of torch's."""
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise RuntimeError(_missing(f"{getattr(owner, '__name__', type(owner).__name__)}.{name}")) from error


# --- the dispatcher ---------------------------------------------------------------------------------------------------

#: The dispatch keys of a tensor, those that a thread adds to every tensor's, and whether it leaves one out.
keys_of_tensor = _private("torch:_C._dispatch_keys")
keys_of_thread = _private("torch:_C._dispatch_tls_local_include_set")
leaves_out = _private("torch:_C._dispatch_tls_is_dispatch_key_excluded")
#: The dispatch modes that a thread is in: how many, the n-th, and the last one taken away (of any kind: None) or added.
dispatch_depth = _private("torch:_C._len_torch_dispatch_stack")
dispatch_mode_at = _private("torch:_C._get_dispatch_stack_at")
pop_dispatch_mode = _private("torch:_C._pop_torch_dispatch_stack")
push_dispatch_mode = _private("torch:_C._push_on_torch_dispatch_stack")
#: Whether a thread runs `__torch_function__`, and of what; a context without that of subclasses.
TorchFunctionState = _private("torch:_C._TorchFunctionState")
torch_function_state = _private("torch:_C._get_torch_function_state")
set_torch_function_state = _private("torch:_C._set_torch_function_state")
DisableTorchFunctionSubclass = _private("torch:_C.DisableTorchFunctionSubclass")
disabled_torch_function = _private("torch:_C._disabled_torch_function_impl")
set_grad_enabled = _private("torch:_C._set_grad_enabled")
set_default_dtype = _private("torch:_C._set_default_dtype")
CPU_KERNELS = DispatchKeySet(DispatchKey.CPU)
PYTHON_KEY = DispatchKey.Python


def _key_set(*names: str) -> int:
    keys = DispatchKeySet(DispatchKey.Undefined)
    for name in names:
        keys = keys | DispatchKeySet(getattr(DispatchKey, name))
    return keys.raw_repr()


#: An ordinary tensor in CPU memory, and a thread in which nothing is on.
PLAIN_TENSOR = _key_set("CPU", "AutogradCPU", "ADInplaceOrView", "AutocastCPU")
PLAIN_THREAD = _key_set("BackendSelect", "ADInplaceOrView")


#: A module, whose `_is_profiler_enabled` changes.
_profiler = _private("torch.autograd:profiler")
_private("torch.autograd:profiler._is_profiler_enabled")


def watched() -> bool:
    """Whether torch would show the ops of this thread to anybody: modes, function transforms, tracers, profilers."""
    return bool(keys_of_thread().raw_repr() != PLAIN_THREAD or _profiler._is_profiler_enabled)


def graph_break(why: str) -> None:
    """In code that torch.compile traces: run what follows outside of the graph; `why` is what fullgraph=True says."""
    attribute(torch, "_dynamo").graph_break(msg=why)


# --- tensors and their memory -----------------------------------------------------------------------------------------

increment_version = _private("torch:_C._increment_version")
is_alias_of = _private("torch:_C._is_alias_of")
make_wrapper_subclass = _private("torch:Tensor._make_wrapper_subclass")
make_subclass = _private("torch:Tensor._make_subclass")
swap_tensor_impl = _private("torch:_C._swap_tensor_impl")
conj, neg_view = _private("torch:_conj"), _private("torch:_neg_view")
#: Let a tensor conjugate or negate what its memory holds, or not.
set_conj, set_neg = _private("torch:_C._set_conj"), _private("torch:_C._set_neg")
#: Of a tensor: its base, if it is a view (or what autograd has of it), whether it is one, and who else holds it.
base_of: Callable[[torch.Tensor], torch.Tensor | None] = _private("torch:Tensor._base").__get__
is_view: Callable[[torch.Tensor], bool] = _private("torch:Tensor._is_view")
use_count: Callable[[torch.Tensor], int] = _private("torch:Tensor._use_count")
#: As code in C++ sees them, whatever a subclass says: `.data`, and where a tensor is.
data_in_c = _private("torch:_C.TensorBase.data")
device_in_c: Callable[[torch.Tensor], torch.device] = _private("torch:_C.TensorBase.device").__get__
#: Makes code in C++ that asks for a tensor's address raise.
refuse_address = _private("torch:_C._set_throw_on_mutable_data_ptr")
#: Where a storage is noted in C++, which tells it from others; pointers to one that do not keep it alive.
storage_id: Callable[[torch.UntypedStorage], int] = _private("torch:UntypedStorage._cdata").__get__
weak_pointer = _private("torch:UntypedStorage._weak_ref")
storage_at = _private("torch:UntypedStorage._new_with_weak_ptr")
free_weak_pointer = _private("torch:UntypedStorage._free_weak_ref")

# --- functions of torch.nn that are replaced while a tape lives -------------------------------------------------------

no_grad_trunc_normal_ = _private("torch.nn:init._no_grad_trunc_normal_")
load_from_state_dict = _private("torch.nn:Module._load_from_state_dict")
apply_to_all = _private("torch.nn:Module._apply")

#: The types of tensors that are certainly no DTensor, and as such go without being looked at.
ORDINARY = frozenset({torch.Tensor, torch.nn.Parameter})


@functools.cache
def float8_saturates() -> bool:
    """Whether a cast to float8_e4m3fn gives 448 past that as here and from torch 2.12 on, not NaN."""
    return not torch.tensor(1e4, device="cpu").to(torch.float8_e4m3fn).isnan().item()


# --- torch.distributed.tensor: looked for, not imported, since it is slow to import -----------------------------------


def spec_of(tensor: torch.Tensor) -> Any:
    """The spec of a DTensor (its mesh, placements, logical shape); None for another tensor."""
    # Until the module has been imported there is no DTensor; while it is being imported, there may be no name for it.
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return attribute(tensor, "_spec") if kind is not None and isinstance(tensor, kind) else None


def is_partial(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor that waits for a reduction."""
    spec = spec_of(tensor)
    return spec is not None and any(placement.is_partial() for placement in spec.placements)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The local tensor of a DTensor itself, where `to_local()` is an operation that autograd sees."""
    local: torch.Tensor = attribute(tensor, "_local_tensor")
    return local


def _strided_shard() -> Any:
    return _private("torch.distributed.tensor.placement_types:_StridedShard")


def split_of(placement: Any) -> tuple[int, int] | None:
    """The dimension that a placement shards and its split factor, 1 for a `Shard`; None if it is no shard."""
    from torch.distributed.tensor.placement_types import Shard

    if isinstance(placement, _strided_shard()):  # asked first: it may be a subclass of Shard
        return placement.dim, int(placement.split_factor)
    return (placement.dim, 1) if isinstance(placement, Shard) else None


def shard_order_of(spec: Any) -> list[int] | None:
    """The order in which the dimensions of the mesh cut a DTensor, where it is another than theirs; else None."""
    if any(isinstance(placement, _strided_shard()) for placement in spec.placements):
        return None  # these say it themselves; torch 2.10 has it in both places
    order = getattr(spec, "shard_order", None) or ()
    cuts = [mesh_dim for entry in order for mesh_dim in entry.mesh_dims]
    return cuts if any(a > b for entry in order for a, b in zip(entry.mesh_dims, entry.mesh_dims[1:])) else None


def spec_with_dtype(spec: Any, dtype: torch.dtype) -> Any:
    if spec.tensor_meta.dtype is dtype:
        return spec
    return replace(spec, tensor_meta=spec.tensor_meta._replace(dtype=dtype))


def set_spec(dtensor: Any, spec: Any) -> Callable[[], object]:
    """A call, in C, that gives a DTensor another spec."""
    return partial(object.__setattr__, dtensor, "_spec", spec)


def dtensor_around(like: torch.Tensor, local: torch.Tensor, spec: Any) -> torch.Tensor:
    """A DTensor like another one, around other memory."""
    cls: Any = type(like)
    made: torch.Tensor = cls(local, spec, requires_grad=like.requires_grad)
    return made


def mesh_device(spec: Any) -> torch.device:
    """The device of this rank in the mesh of a spec."""
    kind: str = spec.mesh.device_type
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device(kind, torch.get_device_module(kind).current_device())


def fsdp_parameters(module: torch.nn.Module) -> Iterator[Any]:
    """What `fully_shard` keeps of each parameter under `module` that it shards."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    for child in module.modules() if kind is not None else ():
        if isinstance(child, kind):  # type: ignore[arg-type]
            state: Any = attribute(child, "_get_fsdp_state")()
            groups = getattr(state, "_fsdp_param_groups", None)
            if groups is None:  # torch 2.10 has one of them
                groups = [group for group in (attribute(state, "_fsdp_param_group"),) if group is not None]
            for group in groups:
                yield from group.fsdp_params


def is_plain_partial(placement: Any) -> bool:
    """Whether a placement is a `Partial` itself: subclasses are those of some operators' results."""
    from torch.distributed.tensor.placement_types import Partial

    return type(placement) is Partial


def has_no_contents(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a meta tensor, by itself or within a `FakeTensorMode`."""
    kind = getattr(sys.modules.get("torch._subclasses.fake_tensor"), "FakeTensor", None)
    return tensor.is_meta or (kind is not None and isinstance(tensor, kind))
