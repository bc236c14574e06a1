"""A write to a computed weight is lost, and says so; a write to a parameter or to a view of one does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from torch_fastinit import init

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform_": init.uniform_,
    "normal_": init.normal_,
    "trunc_normal_": init.trunc_normal_,
    "constant_": lambda t: init.constant_(t, 1.0),
    "ones_": init.ones_,
    "zeros_": init.zeros_,
    "eye_": init.eye_,
    "xavier_uniform_": init.xavier_uniform_,
    "kaiming_normal_": init.kaiming_normal_,
    "lecun_normal_": init.lecun_normal_,
    "orthogonal_": init.orthogonal_,
    "sparse_": lambda t: init.sparse_(t, 0.5),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@every_function
def test_a_parametrized_weight(function: Callable[[Tensor], Tensor]) -> None:
    module = parametrizations.weight_norm(nn.Linear(4, 4))
    before = module.weight.detach().clone()
    with pytest.warns(UserWarning, match="computed from others .*parametrizations.weight.original") as seen:
        function(module.weight)
    assert [warning.filename for warning in seen] == [__file__]  # one, that points at the caller
    assert torch.equal(module.weight, before)  # torch.nn.init loses it as well


def test_dirac_and_views_of_computed_weights() -> None:
    module = parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
    for write in (init.dirac_, lambda t: init.normal_(t[0]), lambda t: init.normal_(t.mT)):
        with pytest.warns(UserWarning, match="computed from others"):
            write(module.weight)


@every_function
def test_parameters_and_their_views(function: Callable[[Tensor], Tensor]) -> None:
    module = parametrizations.weight_norm(nn.Linear(4, 4))
    weight = nn.Parameter(torch.empty(3, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tensor in (weight[0], weight.mT[1], weight.data[2], module.parametrizations.weight.original1):
            function(tensor)
        with torch.no_grad():
            function(weight[0])


@pytest.mark.parametrize("function", [init.zeros_, init.normal_, init.orthogonal_])
def test_a_compiled_function_is_traced_whole(function: Callable[[Tensor], Tensor]) -> None:
    torch.compiler.reset()
    weight = nn.Parameter(torch.ones(4, 4))
    compiled = torch.compile(lambda p: function(p * 2) * 1, fullgraph=True, backend="eager")
    assert not torch.equal(compiled(weight), weight * 2)
