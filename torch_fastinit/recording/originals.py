"""Torch's own functions, as they are while patches stand in for them: what entries of the tape hold and replay."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

from torch_fastinit import orthogonal
from torch_fastinit._torch import no_grad_trunc_normal_


def clone(function: Callable[..., Any]) -> types.FunctionType:
    """A function with the code that `function` has now."""
    assert isinstance(function, types.FunctionType)
    same = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    same.__kwdefaults__ = function.__kwdefaults__
    return same


trunc_normal_ = clone(no_grad_trunc_normal_)
sparse_ = clone(torch.nn.init.sparse_)
dirac_ = clone(torch.nn.init.dirac_)
orthogonal_ = clone(torch.nn.init.orthogonal_)
own_orthogonal_ = clone(orthogonal.orthogonal_)
#: Both write the same matrix when their draw is one of the stream (docs/stream.md, section 12).
ORTHOGONAL = frozenset({orthogonal_, own_orthogonal_})
manual_seed = clone(torch.random.manual_seed)
