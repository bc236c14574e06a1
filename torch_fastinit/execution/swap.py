"""Making one tensor object another, so that whoever holds it goes on holding the right one."""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, starmap
from typing import Any

import torch

from torch_fastinit.recording.generators import set_state
from torch_fastinit.recording.memory import failure
from torch_fastinit.recording.tensor import set_class


def put_in_place(
    names: Sequence[str],
    deferred: Sequence[torch.Tensor],
    reals: Sequence[torch.Tensor],
    moved: Iterable[tuple[torch.Generator, torch.Tensor]] = (),
) -> None:
    """Make each deferred tensor object the real tensor, and set the generators that `moved`: all, or none."""
    leaf = [tensor.is_leaf for tensor in deferred]
    order = sorted(range(len(deferred)), key=leaf.__getitem__)  # results of autograd hold leaves
    news: list[torch.Tensor] = []
    for i in order:
        try:
            news.append(finished(deferred[i], reals[i]))
        except Exception as error:
            raise _refused(names[i], error) from error
    exchange([names[i] for i in order], [deferred[i] for i in order], news, moved)


def finished(old: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """`real` with the class, the attributes and `requires_grad` of the deferred tensor `old`."""
    attributes = dict(old.__dict__)
    del attributes["_value"]
    attributes.pop("_was_meta", None)
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


#: Take all that an iterator gives. This is one call of C, and so is all of it if the iterator runs C alone.
_consume: Callable[[Iterable[Any]], Any] = functools.partial(deque, maxlen=0)
_set_dict = torch.Tensor.__dict__["__dict__"].__set__


def exchange(
    names: Sequence[str],
    olds: Sequence[torch.Tensor],
    news: Sequence[torch.Tensor],
    moved: Iterable[tuple[torch.Generator, torch.Tensor]] = (),
) -> None:
    """Exchange what the two tensor objects of each pair are; hooks stay with the object that they are registered on.

    When one refuses, none is exchanged. No interrupt comes in between: Python runs signal handlers, and raises what
    other threads send, between two of its own instructions, and here is but one from the first change to the last.
    """
    pairs = list(zip(olds, news, strict=True))
    old_classes, new_classes = list(map(type, olds)), list(map(type, news))
    old_dicts, new_dicts = [t.__dict__ for t in olds], [t.__dict__ for t in news]
    hooks: list[tuple[torch.Tensor, str, Any]] = []
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        hooks += [(t, name, hook) for t in olds if (hook := getattr(t, name, None)) is not None]
    done: list[None] = []
    there = chain(
        map(done.append, starmap(torch._C._swap_tensor_impl, pairs)),
        map(done.append, map(set_class, olds, new_classes)),
        map(set_class, news, old_classes),
        map(_set_dict, olds, new_dicts),
        map(_set_dict, news, old_dicts),
        starmap(object.__setattr__, hooks),
        starmap(set_state, moved),
    )
    back = chain(
        starmap(torch._C._swap_tensor_impl, map(operator.itemgetter(1), zip(done, pairs, strict=False))),
        map(set_class, olds, old_classes),
        map(set_class, news, new_classes),
        map(_set_dict, olds, old_dicts),
        map(_set_dict, news, new_dicts),
        starmap(object.__setattr__, hooks),
    )
    try:
        _consume(there)
    except Exception as error:
        _consume(back)
        raise _refused(names[len(done) % len(names)], error) from error


def _refused(name: str, error: Exception) -> Exception:
    return failure(f"{name!r} could not be put in place: {error}", error)
