"""The fans of weights that are not laid out (outputs, inputs, kernel), and what fills by them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit import init

#: Shape, layout, fan_in, fan_out.
LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, Any], float, float]] = {
    "torch's": ((6, 4, 3, 3), {}, 36, 54),
    "GPT-2's Conv1D": ((4, 6), {"in_axis": 0, "out_axis": 1}, 4, 6),
    "Flax's convolution": ((3, 3, 4, 6), {"in_axis": -2, "out_axis": -1}, 36, 54),
    "experts (E, out, in)": ((5, 6, 4), {"in_axis": 2, "out_axis": 1, "batch_axis": 0}, 4, 6),
    "experts (E, in, out)": ((5, 4, 6), {"in_axis": 1, "out_axis": 2, "batch_axis": (0,)}, 4, 6),
    "several axes": ((2, 3, 4, 5), {"in_axis": (0, 1), "out_axis": (2, 3)}, 6, 20),
    "Flax's Embedding": ((10, 4), {"in_axis": 0, "out_axis": 0}, 4, 4),
    "grouped, transposed": ((8, 4, 3), {"in_axis": 0, "out_axis": 1, "groups": 2}, 12, 12),
    "depthwise": ((6, 1, 3, 3), {"groups": 6}, 9, 9),
    "grouped": ((6, 2, 3, 3), {"groups": 3}, 18, 18),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_fans(name: str) -> None:
    shape, layout, fan_in, fan_out = LAYOUTS[name]
    fans = {"fan_in": fan_in, "fan_out": fan_out}
    fans |= {"fan_avg": (fan_in + fan_out) / 2, "fan_geo_avg": math.sqrt(fan_in * fan_out)}
    for mode, fan in fans.items():
        torch.manual_seed(0)
        w = init.variance_scaling_(torch.empty(shape), 2.0, mode, "uniform", **layout)
        bound = math.sqrt(6 / fan)
        torch.manual_seed(0)
        assert torch.equal(w, init.uniform_(torch.empty(shape), -bound, bound)), mode
    for function, distribution in ((init.lecun_uniform_, "uniform"), (init.lecun_normal_, "truncated_normal")):
        torch.manual_seed(0)
        w = function(torch.empty(shape), **layout)
        torch.manual_seed(0)
        std = math.sqrt(1 / fan_in)
        if distribution == "uniform":
            expected = init.uniform_(torch.empty(shape), -math.sqrt(3) * std, math.sqrt(3) * std)
        else:
            std /= 0.87962566103423978
            expected = init.trunc_normal_(torch.empty(shape), 0.0, std, -2 * std, 2 * std)
        assert torch.allclose(w, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"in_axis": 3}, r"in_axis=3 is out of range for a tensor of shape \(6, 4, 3\)"),
        ({"batch_axis": 0}, "batch_axis=0 is also in in_axis=1 or out_axis=0"),
        ({"groups": 4}, "groups=4 must divide dimension 0, of 6 channels"),
        ({"groups": 0}, "groups=0 must divide"),
        (
            {"groups": 2, "in_axis": 2, "out_axis": 1, "batch_axis": 0},
            "groups=2 must divide .* in in_axis or in out_axis",
        ),
        ({"mode": "fan_mean", "groups": 2}, "Mode fan_mean not supported"),
    ],
)
def test_wrong_axes(axes: dict[str, Any], message: str) -> None:
    tensor = torch.full((6, 4, 3), 7.0)
    with pytest.raises(ValueError, match=message):
        init.variance_scaling_(tensor, **axes)
    assert tensor.eq(7).all()


@pytest.mark.parametrize("axis", ["in_axis", "out_axis", "batch_axis", "groups"])
def test_axes_that_are_no_integers(axis: str) -> None:
    for wrong in (torch.ones(2), torch.tensor(1.0), 1.0, np.zeros(2), np.float32(1), "x", None):
        with pytest.raises(TypeError, match=f"^{axis} must be an integer, not "):
            init.lecun_normal_(torch.empty(6, 4, 3), **{axis: wrong})


@pytest.mark.parametrize("layout", [{}, {"in_axis": (0,), "out_axis": -2, "batch_axis": 2}, {"groups": 2}], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("initialiser", [init.lecun_normal_, init.lecun_uniform_, init.variance_scaling_])
def test_compiled(initialiser: Any, dynamic: bool, layout: dict[str, Any]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: initialiser(t, **layout), fullgraph=True, backend="eager", dynamic=dynamic)
    values = []
    for call in (compiled, partial(initialiser, **layout)):
        torch.manual_seed(0)
        values.append(call(torch.empty(6, 4, 3)))
    assert torch.equal(*values)


@pytest.mark.parametrize("shape", [(5, 3, 4), (4, 4, 3, 3), (6, 2, 1, 2, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_delta_orthogonal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = init.delta_orthogonal_(torch.full(shape, 7.0, dtype=dtype), gain=2.0)
    middle = w[(slice(None), slice(None), *[(size - 1) // 2 for size in shape[2:]])]
    q = middle.to(torch.complex128) / 2
    assert (q.mH @ q - torch.eye(shape[1])).abs().max() < (0.02 if dtype is torch.bfloat16 else 1e-6)
    assert w.count_nonzero() == middle.count_nonzero() == shape[0] * shape[1]


def test_a_convolution_with_it_keeps_norms() -> None:
    layer = nn.Conv2d(8, 16, 3, padding="same", bias=False)
    init.delta_orthogonal_(layer.weight)
    x = torch.randn(2, 8, 5, 7)
    assert torch.allclose(layer(x).square().sum((1, 2, 3)), x.square().sum((1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (torch.full((3, 3), 7.0), ValueError, "3, 4, or 5 dimensions"),
        (torch.full((3, 4, 3), 7.0), ValueError, "as many outputs as inputs or more, but found 3 and 4"),
        (torch.full((3, 3, 3), 7), NotImplementedError, "not implemented for torch.int64"),
    ],
)
def test_delta_orthogonal_refuses(tensor: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        init.delta_orthogonal_(tensor)
    assert bool((tensor == 7).all())


def test_deferred() -> None:
    """Inside a context and between it and `materialize`: the values are one draw of the parameter's name."""
    weights = []
    for inside in (True, False):
        with fastinit.deferred():
            layer = nn.Conv2d(100, 100, 3)
            if inside:
                init.delta_orthogonal_(layer.weight)
        if not inside:
            init.delta_orthogonal_(layer.weight)
        weights.append(fastinit.materialize(layer, seed=0).weight.detach())
    assert torch.equal(*weights)
    middle = weights[0][:, :, 1, 1].double()
    assert (middle.T @ middle - torch.eye(100)).abs().max() < 1.5e-6
    assert weights[0].count_nonzero() == 10_000


def test_delta_orthogonal_in_a_recording_and_in_parity() -> None:
    def build() -> torch.nn.Module:
        layer = torch.nn.Conv2d(2, 4, 3)
        init.delta_orthogonal_(layer.weight)
        return layer

    torch.manual_seed(3)
    eager = build()
    torch.manual_seed(3)
    with fastinit.deferred():
        layer = build()
    fastinit.materialize(layer, replay="torch")
    assert torch.equal(layer.weight, eager.weight) and torch.equal(layer.bias, eager.bias)
