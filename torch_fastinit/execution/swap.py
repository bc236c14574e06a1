"""Making one tensor object another, so that whoever holds it goes on holding the right one."""

from __future__ import annotations

import functools
import gc
import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, starmap
from typing import Any

import torch

from torch_fastinit._torch import (
    base_of,
    dtensor_around,
    is_view,
    make_subclass,
    set_spec,
    spec_of,
    spec_with_dtype,
    swap_tensor_impl,
    use_count,
)
from torch_fastinit.recording.memory import failure
from torch_fastinit.recording.tensor import set_class


def put_in_place(
    names: Sequence[str],
    deferred: Sequence[torch.Tensor],
    reals: Sequence[torch.Tensor],
    then: Iterable[Callable[[], object]] = (),
    holders: Sequence[torch.Tensor | None] = (),
    first: Iterable[object] = (),
) -> None:
    """Make each deferred tensor object the real tensor, and make the calls of `then` (see `exchange`): all, or none.

    `holders` are the DTensors around the deferred tensors, or None: these become like DTensors around the real ones.
    """
    leaf = [tensor.is_leaf for tensor in deferred]
    order = sorted(range(len(deferred)), key=leaf.__getitem__)  # results of autograd hold leaves
    gradients = [
        (names[i], deferred[i], deferred[i].grad) for i in order if leaf[i] and deferred[i].grad is not None
    ]  # they are put in place, too, and are real when their tensors get them back
    news: list[torch.Tensor] = []
    for i in order:
        try:
            news.append(finished(deferred[i], reals[i]))
        except Exception as error:
            raise _refused(names[i], error) from error
    olds, calls = [deferred[i] for i in order], list(then)
    order_names = [names[i] for i in order]
    for name, holder, real in zip(names, holders, reals, strict=False):
        if holder is not None:
            spec = spec_with_dtype(spec_of(holder), real.dtype)
            outer = dtensor_around(holder, real, spec)
            outer.__dict__.update(holder.__dict__)
            olds.append(holder)
            news.append(outer)
            order_names.append(name)
            calls.append(set_spec(holder, spec))
    exchange(order_names, olds, news, calls, gradients, first)


def refuse_held(names: Sequence[str], deferred: Sequence[torch.Tensor]) -> None:
    """Raise if something in C++ holds a tensor itself: it would go on holding what the tensor was.

    Gradients are held by their tensors, leaves by results of autograd, bases and views by views of them: these may be,
    if all are among the tensors.
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
    found = [(name, tensor) for name, tensor in zip(names, deferred, strict=True) if use_count(tensor) > 1]
    if not found:
        return []
    let_go = {id(tensor.grad) for tensor in deferred if tensor.is_leaf}
    for tensor in deferred:
        base = base_of(tensor)
        if base is not None and not base.requires_grad:  # so there is no accumulator
            let_go |= {id(base), id(tensor)}
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
    if cls is torch.nn.Parameter and not is_view(real):  # nobody else has this object: no need for another one
        set_class(real, cls)
        real.requires_grad = old.requires_grad
    elif cls is not None:
        real = make_subclass(cls, real, old.requires_grad)
    elif old.requires_grad:
        real = real.detach().requires_grad_()
    elif is_view(real):
        real = real.detach()
    if attributes:
        real.__dict__.update(attributes)
    return real


#: Take all that an iterator gives. This is one call of C, and so is all of it if the iterator runs C alone.
_consume: Callable[[Iterable[Any]], Any] = functools.partial(deque, maxlen=0)
_set_dict = torch.Tensor.__dict__["__dict__"].__set__


_call = operator.methodcaller("__call__")


def exchange(
    names: Sequence[str],
    olds: Sequence[torch.Tensor],
    news: Sequence[torch.Tensor],
    then: Iterable[Callable[[], object]] = (),
    gradients: Sequence[tuple[str, torch.Tensor, torch.Tensor | None]] = (),
    first: Iterable[object] = (),
) -> None:
    """Exchange what the two tensor objects of each pair are; hooks stay with the object that they are registered on.

    Before the first change, `first` is iterated over, and if it raises, that is raised, and nothing is changed.
    Afterwards the tensors in `gradients` get their gradients, and the calls of `then` are made: functions written in C
    that raise nothing. When one of the tensors refuses, none is exchanged. No interrupt comes in between: Python runs
    signal handlers, and raises what other threads send, between two of its own instructions, and here is but one from
    the first change to the last.
    """
    pairs = list(zip(olds, news, strict=True))
    old_classes, new_classes = list(map(type, olds)), list(map(type, news))
    old_dicts, new_dicts = [t.__dict__ for t in olds], [t.__dict__ for t in news]
    hooks: list[tuple[torch.Tensor, str, Any]] = []
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        hooks += [(t, name, hook) for t in olds if (hook := getattr(t, name, None)) is not None]
    assigned = [(t, "grad", gradient) for _, t, gradient in gradients]
    steps = [*names, *names, *(name for name, _, _ in gradients), *names]
    begun: list[None] = []
    done: list[None] = []
    there = chain(
        first,
        map(begun.append, [None]),
        map(done.append, starmap(swap_tensor_impl, pairs)),
        map(done.append, map(set_class, olds, new_classes)),
        map(set_class, news, old_classes),
        map(_set_dict, olds, new_dicts),
        map(_set_dict, news, old_dicts),
        starmap(object.__setattr__, hooks),
        map(done.append, starmap(object.__setattr__, assigned)),
        map(_call, list(then)),
    )
    back = chain(
        starmap(swap_tensor_impl, map(operator.itemgetter(1), zip(done, pairs, strict=False))),
        map(set_class, olds, old_classes),
        map(set_class, news, new_classes),
        map(_set_dict, olds, old_dicts),
        map(_set_dict, news, new_dicts),
        starmap(object.__setattr__, hooks),
    )
    try:
        _consume(there)
    except Exception as error:
        if not begun:
            raise
        _consume(back)
        raise _refused(steps[len(done)], error) from error


def _refused(name: str, error: Exception) -> Exception:
    return failure(f"{name!r} could not be put in place: {error}", error)
