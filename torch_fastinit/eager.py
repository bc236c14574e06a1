"""Fill in place, as a torch in-place op would: version counter, inference tensors, lazy views, torch.compile."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.parameter import Parameter
from torch.overrides import has_torch_function_unary

from torch_fastinit._torch import (
    ORDINARY,
    PLAIN_TENSOR,
    base_of,
    increment_version,
    is_partial,
    is_view,
    keys_of_tensor,
    spec_of,
    watched,
)
from torch_fastinit.arguments import check_first, integer, number
from torch_fastinit.backend import provider_for, serving
from torch_fastinit.initializers import Bits, Initializer, Normal, TruncatedNormal, Uniform
from torch_fastinit.ops import (
    EAGER_SECOND,
    RANDOM_DTYPES,
    Fill,
    check_generator,
    check_layout,
    fill_one,
    refuse_inference_update,
)
from torch_fastinit.ops import fill as fill_batch
from torch_fastinit.stream import draw_seed

#: Standard deviation of N(0, 1) conditioned on [-2, 2]: sqrt(1 - 4 phi(2) / erf(sqrt(2))), phi the normal density.
_TRUNCATED_STD = 0.87962566103423978

#: The largest finite value of a component, for every dtype that a random fill writes.
LARGEST = {dtype: torch.finfo(dtype).max for dtype in RANDOM_DTYPES} | {
    dtype: torch.finfo(dtype.to_real()).max for dtype in (torch.complex32, torch.complex64, torch.complex128)
}


def fill(
    tensor: Tensor,
    initializer: Initializer,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    stream: int = 0,
) -> Tensor:
    """Fill `tensor` with one pass over its memory, and return it.

    Args:
        tensor: what to fill.
        initializer: what with.
        generator: where the seed of random values is drawn from (default: torch's CPU generator).
        seed: the seed, which is then not drawn.
        stream: the stream under that seed.
    """
    if generator is not None:
        check_generator(generator)
    compiling = is_dynamo_compiling()
    if type(tensor) is not Parameter and not compiling and tensor.grad_fn is not None:  # a parameter is never computed
        warn_if_computed(tensor)
    if (
        not compiling
        and tensor.dtype in RANDOM_DTYPES
        and not has_torch_function_unary(tensor)
        and keys_of_tensor(tensor).raw_repr() == PLAIN_TENSOR
        and not watched()
    ):
        # The dispatcher would do nothing more than call the op's CPU kernel, and take longer than all the rest of a
        # small fill. (It does more for a subclass, another device, a lazy view, an inference tensor.)
        if seed is None:
            seed = draw_seed(generator) if initializer.draws else 0
        provider = serving.get("cpu") or provider_for(torch.device("cpu"))
        provider.run((Fill(tensor, initializer, seed, stream, None, EAGER_SECOND),), False)
        increment_version((tensor,))
        return tensor
    if torch.compiler.is_compiling():  # the compiled graph bumps the version itself, if it sees no_grad
        with torch.no_grad():
            _dispatch(tensor, initializer, generator, seed, stream)
        return tensor
    if type(tensor) not in ORDINARY and spec_of(tensor) is not None:
        from torch_fastinit import dtensors

        return dtensors.fill(tensor, initializer, generator, seed, stream)
    refuse_inference_update(tensor)
    check_layout(tensor, f"{initializer.kind.name.lower()} fill")
    if tensor.is_neg() or tensor.is_conj():
        # A view that negates or conjugates lazily: its memory holds other values, so by way of new memory.
        new = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        with torch.no_grad():
            return tensor.copy_(fill(new, initializer, generator, seed, stream))
    _dispatch(tensor, initializer, generator, seed, stream)
    increment_version((tensor,))
    return tensor


def uniform(tensor: Tensor, a: Any, b: Any, generator: torch.Generator | None) -> Tensor:
    """U(a, b), checked as `Tensor.uniform_` checks it."""
    a = a if type(a) is float else number(a, "a")
    b = b if type(b) is float else number(b, "b")
    law, largest = Uniform(a, b), LARGEST.get(tensor.dtype, math.inf)
    if not (-largest <= a <= b <= largest and b - a <= largest) and not is_left_alone(tensor):
        check_parameters(law, tensor.dtype)
    return fill(tensor, law, generator)


def normal(tensor: Tensor, mean: Any, std: Any, generator: torch.Generator | None) -> Tensor:
    """N(mean, std^2), checked as `Tensor.normal_` checks it."""
    mean = mean if type(mean) is float else number(mean, "mean")
    std = std if type(std) is float else number(std, "std")
    law = Normal(mean, std)
    if not std >= 0.0:
        check_parameters(law, tensor.dtype)
    return fill(tensor, law, generator)


def check_parameters(law: Uniform | Normal, dtype: torch.dtype) -> None:
    """Raise what torch raises for parameters that a distribution cannot have in a dtype."""
    if isinstance(law, Normal):
        if not law.std >= 0.0:
            raise RuntimeError(f"normal expects std >= 0.0, but found std={law.std}")
        return
    a, b, largest = law.a, law.b, LARGEST.get(dtype, math.inf)
    if not -largest <= a <= largest:
        raise RuntimeError(f"uniform_: a is out of bounds for {dtype}, but found a={a}")
    if not -largest <= b <= largest:
        raise RuntimeError(f"uniform_: b is out of bounds for {dtype}, but found b={b}")
    if a > b:
        raise RuntimeError(f"uniform_ expects to return a [a, b) range, but found a={a} > b={b}")
    if not b - a <= largest:
        raise RuntimeError(f"uniform_ expects b - a <= {largest}, the largest {dtype}, but found a={a}, b={b}")


def scaled(tensor: Tensor, std: float, distribution: str, generator: torch.Generator | None) -> Tensor:
    """A distribution of mean 0 and this standard deviation."""
    if distribution == "uniform":
        bound = math.sqrt(3.0) * std
        return uniform(tensor, -bound, bound, generator)
    if distribution == "normal":
        return normal(tensor, 0.0, std, generator)
    if distribution == "truncated_normal":
        std /= _TRUNCATED_STD
        return fill(tensor, TruncatedNormal(0.0, std, -2.0 * std, 2.0 * std), generator)
    raise ValueError(
        f"Distribution {distribution} not supported, please use one of ['truncated_normal', 'normal', 'uniform']"
    )


def is_left_alone(tensor: Tensor) -> bool:
    """Whether a function does nothing, as torch's do, since there are no contents: but a deferred tensor records it."""
    recorder = sys.modules.get("torch_fastinit.recording.tensor")
    return tensor.is_meta and not (recorder is not None and isinstance(tensor, recorder.Deferred))


def fill_constant(tensor: Tensor, value: float) -> Tensor:
    """`tensor.fill_(value)`, with what fills here do besides."""
    if type(tensor) is not Parameter and not is_dynamo_compiling() and tensor.grad_fn is not None:
        warn_if_computed(tensor)
    if type(tensor) not in ORDINARY and is_partial(tensor):  # the value is what the terms reduce to, not each term
        from torch_fastinit import dtensors

        return dtensors.update(tensor, lambda local, _: local.fill_(value))
    with torch.no_grad():
        return tensor.fill_(value)


def write_whole(write: Callable[..., object], tensor: Tensor, *args: Any) -> Tensor:
    """`write(tensor, *args)`, of a DTensor the logical tensor as a whole, of which the local part is kept."""
    if type(tensor) in ORDINARY or spec_of(tensor) is None:
        write(tensor, *args)
        return tensor
    from torch_fastinit import dtensors

    return dtensors.write_whole(tensor, lambda logical: write(logical, *args))


def warn_if_computed(tensor: Tensor) -> None:
    """Warn of a write to what autograd computed, but for views of what it did not. (Under no_grad nothing tells.)"""
    origin = base_of(tensor) if is_view(tensor) else tensor
    if origin is None or origin.grad_fn is None or torch.compiler.is_compiling():
        return
    warnings.warn(
        f"The tensor to initialize is computed from others ({origin.grad_fn.name()}): the write changes this copy "
        "alone, and is lost where a module computes its weight anew. Initialize what it is computed from, such as "
        "module.parametrizations.weight.original (original0, weight_g, ...).",
        stacklevel=level_of_user(),
    )


def level_of_user() -> int:
    """The `stacklevel` with which a warning of the caller's points to a line outside of this library."""
    if is_dynamo_compiling():
        return 1  # which has no frames to look at
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torch_fastinit"):
        level, frame = level + 1, frame.f_back
    return level


def _dispatch(
    tensor: Tensor, initializer: Initializer, generator: torch.Generator | None, seed: int | None, stream: int
) -> None:
    """Through torch's dispatcher, as one op."""
    if seed is None and initializer.draws:
        fill_one(tensor, initializer, generator)
    else:
        fill_batch([Fill(tensor, initializer, seed or 0, stream)])


def random_bits_(tensor: Tensor, *, seed: int, stream: int, offset: int = 0) -> Tensor:
    """Fill an int32 tensor with raw words of the random stream.

    Element `i` (row-major, whatever the memory layout) is word `offset + i` of stream `stream` under `seed`: word `n`
    is word `n % 4` of Philox4x32-10 with the key `seed` and the counter `(n // 4, stream)`, each 64 bits, low word
    first. Words are uniform on `[-2**31, 2**31)`. The result depends on nothing but the arguments.

    Args:
        tensor: an int32 tensor of any shape and strides.
        seed: the key; taken modulo `2**64`.
        stream: the upper half of the counter; taken modulo `2**64`. See `torch_fastinit.stream_id`.
        offset: the word that the first element receives, in `[0, 2**66)`. Words past `2**66` wrap to word 0.

    Returns:
        `tensor`.

    Raises:
        TypeError: `tensor` is not int32, or `seed`, `stream` or `offset` is not an integer.
        ValueError: `offset` is outside `[0, 2**66)`.
        RuntimeError: elements of `tensor` share memory.

    Reference:
        Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
        https://doi.org/10.1145/2063384.2063405

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> words = fastinit.random_bits_(torch.empty(4, dtype=torch.int32), seed=0, stream=0)
        >>> [hex(word % 2**32) for word in words.tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    check_first(tensor, Tensor, "random_bits_")
    if tensor.dtype is not torch.int32:
        raise TypeError(f"random_bits_ fills an int32 tensor, but tensor has dtype {tensor.dtype}")
    seed, stream, offset = integer(seed, "seed"), integer(stream, "stream"), integer(offset, "offset")
    if not 0 <= offset < 1 << 66:
        raise ValueError(f"random_bits_ needs 0 <= offset < 2**66, but offset is {offset}")
    return fill(tensor, Bits(offset), None, seed, stream)
