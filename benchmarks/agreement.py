"""Holds a model to the same model as torch builds it, by the descriptions that ``observe.describe`` makes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Tensors = dict[str, dict[str, Any]]

#: How far two sample means may lie apart, in standard errors: by chance, one in 500 million pairs lies farther.
SIGMAS = 6.0

#: What must be equal between two builds, whatever the seed.
STRUCTURE = ("shape", "stride", "dtype", "device", "requires_grad", "is_parameter", "tied_to")


def differences(eager: Tensors, other_eager: Tensors, ours: Tensors) -> Iterator[str]:
    """What is wrong with ``ours``, one line each: nothing, if all is well.

    ``eager`` and ``other_eager`` were built with different seeds. The tensors on which they agree are not random, and
    ours must have the same bits; every other tensor must have the mean and the deviation of ``eager``'s.
    """
    if list(eager) != list(ours):
        for name in sorted(eager.keys() ^ ours.keys()):
            yield f"{name}: {'missing' if name in eager else 'not in the eager model'}"
        if eager.keys() == ours.keys():
            yield "the tensors come in another order"
    for name in eager.keys() & ours.keys():
        yield from (f"{name}: {line}" for line in _differences_of(eager[name], other_eager[name], ours[name]))


def _differences_of(eager: dict[str, Any], other: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    wrong = [key for key in STRUCTURE if eager[key] != ours[key]]
    yield from (f"{key} is {ours[key]}, eager has {eager[key]}" for key in wrong)
    if wrong or "mean" not in eager:  # a tied tensor is described under its first name
        return
    if not ours["finite"]:
        yield "has infinities or NaN"
    elif eager["digest"] == other["digest"]:
        if ours["digest"] != eager["digest"]:
            yield f"not the bits of eager (mean {ours['mean']:g}, eager {eager['mean']:g})"
    else:
        n = math.prod(eager["shape"])
        # Right for means; deviations of normal and uniform values lie closer together than that.
        limit = SIGMAS * eager["std"] * math.sqrt(2 / n)
        for key in ("mean", "std"):
            if not abs(ours[key] - eager[key]) <= limit:
                yield f"{key} is {ours[key]:.6g}, eager has {eager[key]:.6g}, and chance allows {limit:.2g}"
        if ours["constant"]:
            yield "is constant, eager is random"
