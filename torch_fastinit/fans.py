"""Fans: how many inputs and outputs an element of a weight connects, from the weight's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_fastinit.arguments import integer

Axes = int | Sequence[int]

MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")


def fan(shape: Sequence[int], mode: str, modes: Sequence[str] = MODES) -> float:
    """The fan of a weight laid out (outputs, inputs, kernel)."""
    if mode not in modes:
        raise ValueError(f"Mode {mode} not supported, please use one of {list(modes)}")
    if len(shape) < 2:
        raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
    outputs, inputs, *kernel = shape
    size = math.prod(kernel)
    return _one_of(mode, inputs * size, outputs * size)


def fan_of_axes(shape: Sequence[int], mode: str, in_axis: Axes, out_axis: Axes, batch_axis: Axes, groups: int) -> float:
    """The fan of a weight of any layout: axes that are neither inputs nor outputs nor batches are the kernel's.

    Dimension 0 counts the channels of all groups, the other one those of each, as in torch's convolutions.
    """
    layout = (in_axis, out_axis, batch_axis, groups)
    if tuple(map(type, layout)) == (int, int, tuple, int) and layout == (1, 0, (), 1):
        return fan(shape, mode)
    fan([1, 1], mode)  # checks it
    inputs, outputs = _axes(in_axis, shape, "in_axis"), _axes(out_axis, shape, "out_axis")
    batches = _axes(batch_axis, shape, "batch_axis")
    if batches & (inputs | outputs):
        raise ValueError(
            f"batch_axis={batch_axis} is also in in_axis={in_axis} or out_axis={out_axis}: a batch is of whole weights"
        )
    groups = integer(groups, "groups")
    if groups != 1 and (groups < 1 or 0 not in inputs ^ outputs or shape[0] % groups):
        raise ValueError(
            f"groups={groups} must divide dimension 0, of {shape[0]} channels, which must be in in_axis or in out_axis"
        )
    each = math.prod(shape) // _size(shape, batches)
    fan_in, fan_out = each / _size(shape, outputs), each / _size(shape, inputs)
    if 0 in inputs:
        fan_in /= groups
    else:
        fan_out /= groups
    return _one_of(mode, fan_in, fan_out)


def _one_of(mode: str, fan_in: float, fan_out: float) -> float:
    if mode == "fan_geo_avg":
        return math.sqrt(fan_in * fan_out)
    return fan_in if mode == "fan_in" else fan_out if mode == "fan_out" else (fan_in + fan_out) / 2


def _size(shape: Sequence[int], axes: set[int]) -> int:
    return math.prod([shape[axis] for axis in axes])


def _axes(axis: Axes, shape: Sequence[int], name: str) -> set[int]:
    axes = [integer(one, name) for one in (list(axis) if isinstance(axis, Sequence) else [axis])]
    for one in axes:
        if not -len(shape) <= one < len(shape):
            raise ValueError(f"{name}={axis} is out of range for a tensor of shape {tuple(shape)}")
    return {one % len(shape) for one in axes}
