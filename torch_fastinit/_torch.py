"""Every private name of torch that is used here, as of torch 2.10 to 2.13. If one is missing, this import says so."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import profiler

# --- the dispatcher ---------------------------------------------------------------------------------------------------

#: The dispatch keys of a tensor, and those that a thread adds to every tensor's.
keys_of_tensor = torch._C._dispatch_keys
keys_of_thread = torch._C._dispatch_tls_local_include_set
#: The dispatch modes that a thread is in: how many, the n-th, and the last one taken away (of any kind: None) or added.
dispatch_depth = torch._C._len_torch_dispatch_stack
dispatch_mode_at = torch._C._get_dispatch_stack_at
pop_dispatch_mode = torch._C._pop_torch_dispatch_stack
push_dispatch_mode = torch._C._push_on_torch_dispatch_stack
#: Whether a thread runs `__torch_function__`, and of what; a context without that of subclasses.
TorchFunctionState = torch._C._TorchFunctionState  # type: ignore[attr-defined]
torch_function_state = torch._C._get_torch_function_state  # type: ignore[attr-defined]
set_torch_function_state = torch._C._set_torch_function_state  # type: ignore[attr-defined]
DisableTorchFunctionSubclass = torch._C.DisableTorchFunctionSubclass
disabled_torch_function = torch._C._disabled_torch_function_impl
set_grad_enabled = torch._C._set_grad_enabled
set_default_dtype = torch._C._set_default_dtype
CPU_KERNELS = DispatchKeySet(DispatchKey.CPU)


def _key_set(*names: str) -> int:
    keys = DispatchKeySet(DispatchKey.Undefined)
    for name in names:
        keys = keys | DispatchKeySet(getattr(DispatchKey, name))
    return keys.raw_repr()


#: An ordinary tensor in CPU memory, and a thread in which nothing is on.
PLAIN_TENSOR = _key_set("CPU", "AutogradCPU", "ADInplaceOrView", "AutocastCPU")
PLAIN_THREAD = _key_set("BackendSelect", "ADInplaceOrView")


def watched() -> bool:
    """Whether torch would show the ops of this thread to anybody: modes, function transforms, tracers, profilers."""
    return keys_of_thread().raw_repr() != PLAIN_THREAD or profiler._is_profiler_enabled


# --- tensors ----------------------------------------------------------------------------------------------------------

increment_version = torch._C._increment_version
is_alias_of = torch._C._is_alias_of  # type: ignore[attr-defined]
make_wrapper_subclass = torch.Tensor._make_wrapper_subclass
swap_tensor_impl = torch._C._swap_tensor_impl
conj, neg_view = torch._conj, torch._neg_view

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
    return tensor._spec if kind is not None and isinstance(tensor, kind) else None


def is_partial(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor that waits for a reduction."""
    spec = spec_of(tensor)
    return spec is not None and any(placement.is_partial() for placement in spec.placements)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The local tensor of a DTensor itself, where `to_local()` is an operation that autograd sees."""
    local: torch.Tensor = tensor._local_tensor  # type: ignore[attr-defined]
    return local


def split_of(placement: Any) -> tuple[int, int] | None:
    """The dimension that a placement shards and its split factor, 1 for a `Shard`; None if it is no shard."""
    from torch.distributed.tensor.placement_types import Shard, _StridedShard

    if isinstance(placement, _StridedShard):  # asked first: it may be a subclass of Shard
        return placement.dim, int(placement.split_factor)
    return (placement.dim, 1) if isinstance(placement, Shard) else None


def shard_order_of(spec: Any) -> list[int] | None:
    """The order in which the dimensions of the mesh cut a DTensor, where it is another than theirs; else None."""
    from torch.distributed.tensor.placement_types import _StridedShard

    if any(isinstance(placement, _StridedShard) for placement in spec.placements):
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
            state: Any = child._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None)  # torch 2.10 has one of them
            if groups is None:
                groups = [group for group in (state._fsdp_param_group,) if group is not None]
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
