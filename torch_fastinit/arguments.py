"""Arguments that several functions take: what each has to be, and one error that names it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor


def integer(given: Any, name: str) -> int:
    """`given` as an int, exactly: an integer or a truth value, or a NumPy array or a tensor of one."""
    value = given
    try:
        if not isinstance(value, int) and hasattr(value, "item"):
            value = value.item()
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # arrays of several, tensors without values
        raise TypeError(f"{name} must be an integer, not {_said(given)}") from None


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


def truth(value: Any, name: str) -> bool:
    """`value` as a bool: `"no"` and `"false"` would be true."""
    try:
        if integer(value, name) in (0, 1):
            return bool(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be True or False, not {_said(value)}")


def is_function(value: Any) -> TypeGuard[Callable[..., Any]]:
    """Whether `value` can be called for an answer. A class such as `float` is taken for a mistake."""
    return callable(value) and not isinstance(value, type)


def function_or_none(value: Any, name: str, what: str) -> None:
    """Raise unless `value` is a function, of which `what` says what it does, or None."""
    if value is not None and not is_function(value):
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
