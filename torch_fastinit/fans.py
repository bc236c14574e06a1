"""How many inputs an output of a weight has, and how many outputs an input."""

from __future__ import annotations

import math
from collections.abc import Sequence

Axes = int | Sequence[int]
MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")


def fan_of(
    shape: Sequence[int],
    mode: str,
    modes: Sequence[str] = MODES,
    in_axis: Axes = 1,
    out_axis: Axes = 0,
    batch_axis: Axes = (),
    groups: int = 1,
) -> float:
    """A fan of a weight: of the layout (outputs, inputs, kernel), or of one whose axes are told."""
    if mode not in modes:
        raise ValueError(f"Mode {mode} not supported, please use one of {list(modes)}")
    if len(shape) < 2:
        raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
    inputs, outputs, batch = (
        _from_the_front(len(shape), axes, name)
        for axes, name in ((in_axis, "in_axis"), (out_axis, "out_axis"), (batch_axis, "batch_axis"))
    )
    named = [*inputs, *outputs, *batch]
    if any(named.count(axis) > 1 for axis in named):
        raise ValueError(
            "in_axis, out_axis and batch_axis must have no axis twice, but found "
            f"{in_axis}, {out_axis} and {batch_axis}"
        )
    ins, outs = math.prod([shape[axis] for axis in inputs]), math.prod([shape[axis] for axis in outputs])
    if groups < 1 or outs % groups:
        raise ValueError(f"groups must divide the number of outputs, {outs}, but found {groups}")
    kernel = math.prod([size for axis, size in enumerate(shape) if axis not in named])
    fan_in, fan_out = ins * kernel, outs // groups * kernel
    if mode == "fan_geo_avg":
        return math.sqrt(fan_in * fan_out)
    return fan_in if mode == "fan_in" else fan_out if mode == "fan_out" else (fan_in + fan_out) / 2


def _from_the_front(dims: int, axes: Axes, name: str) -> list[int]:
    several = [axes] if isinstance(axes, int) else list(axes)
    for axis in several:
        if not -dims <= axis < dims:
            raise ValueError(f"{name} is {axes}, but the tensor has {dims} dimensions")
    return [axis % dims for axis in several]
