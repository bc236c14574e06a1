"""Arguments that several functions take: what each has to be, and one error that names it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor


def integer(value: Any, name: str) -> int:
    """`value` as an int, exactly: an int, or what stands for one, as NumPy's integers and integer tensors of one do."""
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # a tensor without values raises the latter
        raise TypeError(f"{name} must be an integer, not {_said(value)}") from None


def number(value: Any, name: str) -> float:
    """`value` as torch converts an argument of type float."""
    wrong = isinstance(value, (str, bytes, bytearray, complex)) or (
        isinstance(value, Tensor) and (value.dim() != 0 or value.requires_grad)
    )
    try:
        if not wrong:
            return float(value)
    except TypeError:
        pass
    except OverflowError:
        raise OverflowError(f"{name} is an integer that is too large for a float") from None
    raise TypeError(f"{name} must be a float, not {type(value).__name__}")


def function_or_none(value: Any, name: str, what: str) -> None:
    """Raise unless `value` is a function, of which `what` says what it does, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be {what}, not {_said(value)}")


_CALLED = {torch.nn.Module: "a torch.nn.Module", Tensor: "a tensor", str: "a string"}


def check_first(value: Any, kind: type, function: str) -> None:
    """Raise unless the first argument of a function is a module, a tensor or a string."""
    if not isinstance(value, kind):
        raise TypeError(f"{function}() takes {_CALLED[kind]}, not {type(value).__name__}")


def _said(value: Any) -> str:
    """A value in an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else type(value).__name__
