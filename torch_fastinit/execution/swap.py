"""Making one tensor object another, so that whoever holds it goes on holding the right one."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch

from torch_fastinit._torch import swap_tensor_impl
from torch_fastinit.recording.tensor import set_class


def put_in_place(names: Sequence[str], deferred: Sequence[torch.Tensor], reals: Sequence[torch.Tensor]) -> None:
    """Make each deferred tensor object the real tensor. When one cannot be, all are as they were."""
    leaf = [tensor.is_leaf for tensor in deferred]
    order = sorted(range(len(deferred)), key=leaf.__getitem__)  # results of autograd hold leaves
    undo: list[tuple[torch.Tensor, torch.Tensor]] = []
    gradients = [(tensor, tensor.grad) for tensor in deferred if tensor.is_leaf and tensor.grad is not None]
    try:
        for i in order:
            old = deferred[i]
            new = finished(old, reals[i])
            swap(old, new)
            undo.append((old, new))
        for old, gradient in gradients:  # an object that is real by now
            old.grad = gradient
    except Exception as error:
        for old, new in reversed(undo):
            swap(old, new)
        raise RuntimeError(f"{names[i]!r} could not be put in place: {error}") from error


def refuse_held(names: Sequence[str], deferred: Sequence[torch.Tensor]) -> None:
    """Raise if something in C++ holds a tensor itself: it would go on holding what the tensor was.

    Gradients are held by their tensors, bases by views, and leaves by results of autograd: these may be, if all are
    among the tensors.
    """
    held = _held(names, deferred)
    if held:  # by garbage, perhaps
        gc.collect()
        held = _held(names, deferred)
    if held:
        raise RuntimeError(
            f"{', '.join(map(repr, held[:10]))}: something in torch holds these tensors as they are, and would not see "
            "them change: hooks on their gradient accumulators (DistributedDataParallel and other reducers register "
            "some), a view or a result that autograd recorded, or a script module. Call fastinit.materialize(module) "
            "before wrapping the module, and drop such results first"
        )


def _held(names: Sequence[str], deferred: Sequence[torch.Tensor]) -> list[str]:
    found = [(name, tensor) for name, tensor in zip(names, deferred, strict=True) if tensor._use_count() > 1]  # type: ignore[attr-defined]
    if not found:
        return []
    let_go = {id(tensor.grad) for tensor in deferred if tensor.is_leaf}
    # Of a base that needs gradients, a hook on the accumulator would go unseen.
    bases = [tensor._base for tensor in deferred if tensor._is_view()]
    let_go |= {id(base) for base in bases if base is not None and not base.requires_grad}
    nodes = [tensor.grad_fn for tensor in deferred if tensor.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            let_go.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return [name for name, tensor in found if tensor.is_leaf and id(tensor) not in let_go]


def finished(old: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """`real` with the class, the attributes and `requires_grad` of the deferred tensor `old`."""
    attributes = dict(old.__dict__)
    del attributes["_value"]
    cls = torch.nn.Parameter if attributes.pop("_is_param", False) else getattr(old, "_eager_class", None)
    if cls is torch.nn.Parameter and not real._is_view():  # nobody else has this object: no need for another one
        set_class(real, cls)
        real.requires_grad = old.requires_grad
    elif cls is not None:
        real = torch.Tensor._make_subclass(cls, real, old.requires_grad)
    elif old.requires_grad:
        real = real.detach().requires_grad_()
    elif real._is_view():
        real = real.detach()
    if attributes:
        real.__dict__.update(attributes)
    return real


def swap(old: torch.Tensor, new: torch.Tensor) -> None:
    """Exchange what two tensor objects are; hooks stay with the object that they were registered on."""
    hooks, later = old._backward_hooks, getattr(old, "_post_accumulate_grad_hooks", None)
    old_class, new_class = type(old), type(new)
    old_dict, new_dict = old.__dict__, new.__dict__
    swap_tensor_impl(old, new)
    set_class(old, new_class)
    set_class(new, old_class)
    old.__dict__, new.__dict__ = new_dict, old_dict
    if hooks is not None:
        old._backward_hooks = hooks
    if later is not None:
        old._post_accumulate_grad_hooks = later
