"""Operators that create tensors: what each writes into memory that it allocates, and metadata that is quickly known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten
_META = torch.device("meta")

#: What a creation writes into the memory that it allocates: an in-place operator and its arguments, or nothing.
Creation = Callable[[Any, Any], "tuple[Any, tuple[Any, ...]] | None"]

#: A creation is an allocation and an in-place write: the same bits, and one form less for the planner.
CREATIONS: dict[str, Creation] = {
    **dict.fromkeys(
        ("empty", "empty_strided", "empty_like", "empty_permuted", "new_empty", "new_empty_strided"),
        lambda args, kwargs: None,
    ),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), lambda args, kwargs: (aten.zero_.default, ())),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), lambda args, kwargs: (aten.fill_.Scalar, (1,))),
    **dict.fromkeys(("full", "full_like"), lambda args, kwargs: (aten.fill_.Scalar, (args[1],))),
    "new_full": lambda args, kwargs: (aten.fill_.Scalar, (args[2],)),
    "scalar_tensor": lambda args, kwargs: (aten.fill_.Scalar, (args[0],)),
    **dict.fromkeys(("rand", "rand_like"), lambda args, kwargs: (aten.uniform_.default, (0.0, 1.0))),
    **dict.fromkeys(("randn", "randn_like"), lambda args, kwargs: (aten.normal_.default, (0.0, 1.0))),
    "normal": lambda args, kwargs: (aten.normal_.default, (args[0], args[1])),  # of numbers: see _record_operation
}
EMPTY_SHAPED = frozenset({"zeros", "ones", "rand", "randn", "empty"})


def _arange(args: Any, kwargs: Any) -> torch.Tensor:
    start, end, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    dtype = kwargs.get("dtype")
    if dtype is None:
        dtype = torch.int64 if all(isinstance(n, int) for n in args) else torch.get_default_dtype()
    return torch.empty(max(0, math.ceil((end - start) / step)), dtype=dtype, device=_META)


def _linspace(args: Any, kwargs: Any) -> torch.Tensor:
    return torch.empty(args[2], dtype=kwargs.get("dtype") or torch.get_default_dtype(), device=_META)


def _eye(args: Any, kwargs: Any) -> torch.Tensor:
    return torch.empty(args[0], args[-1], dtype=kwargs.get("dtype"), device=_META)


#: Common operators whose meta functions are written in Python: the first call would import all of torch._dynamo.
SHAPES: dict[Any, Callable[[Any, Any], torch.Tensor]] = {aten.arange: _arange, aten.linspace: _linspace, aten.eye: _eye}


#: Operators whose result is contiguous, while their meta functions keep the argument's strides.
CONTIGUOUS = frozenset({aten.poisson.default, aten._standard_gamma.default})


def empty_like(shadow: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
    """`torch.empty_like` as its kernel has it: the meta function has other strides where a dimension has size 1."""
    keywords = dict(keywords)
    keep = keywords.get("memory_format") in (None, torch.preserve_format)
    if keep and torch.ops.aten.is_non_overlapping_and_dense(shadow):
        keywords.pop("memory_format", None)
        keywords["dtype"] = keywords.get("dtype") or shadow.dtype
        return torch.empty_strided(shadow.shape, shadow.stride(), **keywords)
    return torch.empty_like(shadow, **keywords)
