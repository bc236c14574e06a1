"""The initialisers of Keras, JAX and MXNet: their names, arguments, defaults and formulas, on torch's layout.

One name has several meanings, hence the namespaces: `like.keras.HeNormal()` is truncated, `init.kaiming_normal_` is
not. Each call gives an initialiser, a function that fills a tensor in place and has a repr. docs/porting.md compares
them all.

    >>> import torch
    >>> from torch_fastinit import like
    >>> like.mxnet.Xavier(rnd_type="gaussian")
    like.mxnet.Xavier(rnd_type='gaussian', factor_type='avg', magnitude=3)
    >>> w = like.jax.normal()(torch.empty(1000))
    >>> 0.009 < w.std() < 0.011
    tensor(True)

Fans are those of a weight laid out (outputs, inputs, kernel), so a port needs no change. JAX's `in_axis`, `out_axis`
and `batch_axis` are there for other layouts, with torch's defaults. Values are computed in float32, rounded once, and
have the tensor's dtype: there is no `dtype`. A Keras initialiser with a `seed` gives equal values each time, as in
Keras.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_fastinit import eager, init
from torch_fastinit.arguments import integer, number
from torch_fastinit.ops import constant_words
from torch_fastinit.stream import to_signed

__all__ = ["jax", "keras", "mxnet"]


class Initialiser:
    """What a name of another framework gives: call it on a tensor."""

    def __init__(self, text: str, fill: Callable[..., object], reduced: Any, seed: int | None = None) -> None:
        self._text, self._fill, self._reduced, self._seed = text, fill, reduced, seed

    def __repr__(self) -> str:
        return self._text

    def __reduce__(self) -> Any:
        return self._reduced

    def __call__(self, tensor: Tensor) -> Tensor:
        seeded = {} if self._seed is None else {"generator": torch.Generator().manual_seed(self._seed)}
        self._fill(tensor, **seeded)
        return tensor


class _Name:
    """A name of another framework: called with the arguments that it has there, it gives an initialiser for tensors.

    docs/porting.md has each name's formula. `make` takes the arguments, but for `seed`, and gives what fills a tensor.

    Example:
        >>> import torch
        >>> from torch_fastinit import like
        >>> init = like.jax.lecun_normal()
        >>> init, init(torch.empty(2, 3)).shape
        (like.jax.lecun_normal(in_axis=1, out_axis=0, batch_axis=()), torch.Size([2, 3]))
    """

    def __init__(self, make: Callable[..., Callable[..., object]], seeded: bool = False) -> None:
        self._make, self._seeded = make, seeded
        self.__signature__ = inspect.signature(make)
        if seeded:
            seed = inspect.Parameter("seed", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
            self.__signature__ = self.__signature__.replace(parameters=[*self.__signature__.parameters.values(), seed])

    def __set_name__(self, owner: type, name: str) -> None:
        self._text = f"like.{owner.__name__}.{name}"

    def __repr__(self) -> str:
        return self._text

    def __reduce__(self) -> str:
        return self._text.removeprefix("like.")  # a global of this module

    def __call__(self, *args: Any, **kwargs: Any) -> Initialiser:
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._text}{self.__signature__}: {error}") from None
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        if arguments.get("seed", 0) is None:
            del arguments["seed"]
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        given = dict(arguments)
        for name, value in given.items():
            if isinstance(value, Tensor) and value.dim() > 0 and name != "value":
                raise TypeError(
                    f"{self._text}: {name} cannot be a tensor of shape {tuple(value.shape)}. {self._text}(...) makes "
                    f"an initialiser, which then fills a tensor: {self._text}(...)(tensor)"
                )
            if name in _NUMBERS:
                arguments[name] = self._number(name, value)
        seed = arguments.pop("seed", None)
        if seed is not None:
            seed = to_signed(integer(seed, f"{self._text}: seed"))
        return Initialiser(f"{self._text}({shown})", self._make(**arguments), (_again, (self, given)), seed)

    def _number(self, name: str, value: Any) -> float:
        real = number(value, f"{self._text}: {name}")
        if math.isnan(real):
            raise ValueError(f"{self._text}: {name} must not be nan")
        if (name == "magnitude" and not 0.0 < real < math.inf) or (name == "slope" and math.isinf(real)):
            range_ = "finite" if name == "slope" else "positive and finite"
            raise ValueError(f"{self._text}: {name} must be {range_}, not {value!r}")
        return real


def _again(name: _Name, arguments: dict[str, Any]) -> Initialiser:
    """What a copy of an initialiser is made by."""
    return name(**arguments)


#: Arguments that are one real number.
_NUMBERS = frozenset("forget_bias gain lower magnitude maxval mean minval scale sigma slope stddev upper".split())

_seeded = partial(_Name, seeded=True)


# --- formulas that torch_fastinit.init does not have by itself --------------------------------------------------------


def _cut(mean: float, std: float, lower: float, upper: float) -> Callable[..., Tensor]:
    """A normal cut at so many deviations; the deviation after the cut is smaller, which nothing corrects."""
    return partial(init.trunc_normal_, mean=mean, std=std, a=mean + lower * std, b=mean + upper * std)


def _keras(scale: float, mode: Any, distribution: Any) -> Callable[..., Tensor]:
    """Keras: `"normal"` is the truncated one, and of a vector both fans are its length."""
    ours: Any = {"normal": "truncated_normal", "untruncated_normal": "normal"}.get(str(distribution), distribution)
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise ValueError(f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out', 'fan_avg']")

    def fill(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if tensor.dim() < 2:
            init.variance_scaling_(tensor.view(1, -1), scale, "fan_in", ours, generator)
            return tensor
        return init.variance_scaling_(tensor, scale, mode, ours, generator)

    return fill


def _jax(scale: float, mode: Any, distribution: Any, in_axis: Any, out_axis: Any, batch_axis: Any) -> Any:
    axes = {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}
    return partial(init.variance_scaling_, scale=scale, mode=mode, distribution=distribution, **axes)


def _jax_name(scale: float, mode: str, distribution: str) -> _Name:
    law = partial(_jax, scale, mode, distribution)
    return _Name(lambda in_axis=1, out_axis=0, batch_axis=(): law(in_axis, out_axis, batch_axis))


def _identity(gain: float) -> Callable[[Tensor], object]:
    def write(tensor: Tensor) -> None:
        init.zeros_(tensor).diagonal().fill_(gain)

    def fill(tensor: Tensor) -> None:
        if tensor.dim() != 2:
            raise ValueError(f"Identity fills a matrix, not shape {tuple(tensor.shape)}")
        _write(write, tensor, "gain", [gain])

    return fill


def _xavier(rnd_type: str, factor_type: str, magnitude: float) -> Any:
    """MXNet: a factor, which is a fan, and a magnitude, which is not a variance where the distribution is uniform."""
    modes = {"avg": "fan_avg", "in": "fan_in", "out": "fan_out"}
    if factor_type not in list(modes) or rnd_type not in ("uniform", "gaussian"):
        raise ValueError(
            f"factor_type must be 'avg', 'in' or 'out', and rnd_type 'uniform' or 'gaussian', but they are "
            f"{factor_type!r} and {rnd_type!r}"
        )
    scale, law = (magnitude / 3.0, "uniform") if rnd_type == "uniform" else (magnitude, "normal")
    return _jax(scale, modes[factor_type], law, in_axis=1, out_axis=0, batch_axis=())


def _constant(value: Any) -> Callable[[Tensor], object]:
    if isinstance(value, (int, float, complex)):

        def fill(tensor: Tensor) -> None:
            _check_held(tensor.dtype, "value", [value])
            init.constant_(tensor, value)  # type: ignore[arg-type]  # fill_ takes complex numbers too

        return fill
    try:
        known = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"value must be a number or an array of numbers, not {value!r}") from None
    if known.is_complex() and not known.imag.any():
        known = known.real
    return lambda tensor: _write(lambda whole: whole.copy_(known), tensor, "value", _extremes(known))


def _extremes(known: Tensor) -> Iterator[Any]:
    """Elements that a dtype holds if it holds all: the least, the largest, what is not finite, what is not real."""
    with torch.no_grad():
        if known.is_complex():
            yield from known[known.imag != 0][:1].tolist()
            known = torch.view_as_real(known.resolve_conj())
        if known.is_floating_point() or not known.dtype.is_signed:
            known = known.double()
        for kind in (torch.isfinite, torch.isposinf, torch.isneginf, torch.isnan):
            if (some := known[kind(known)]).numel():
                yield from (end.item() for end in some.aminmax())


def _forget_gate(forget_bias: float) -> Callable[[Tensor], object]:
    def write(tensor: Tensor) -> None:
        init.zeros_(tensor).chunk(4)[1].fill_(forget_bias)

    def fill(tensor: Tensor) -> None:
        if tensor.dim() != 1 or tensor.numel() % 4:
            raise ValueError(f"LSTMBias fills the bias of four gates, a vector, not shape {tuple(tensor.shape)}")
        _write(write, tensor, "forget_bias", [forget_bias])

    return fill


def _write(write: Callable[[Tensor], object], tensor: Tensor, name: str, values: Iterable[Any]) -> None:
    """Write the whole tensor, or nothing where its dtype does not hold the values of an argument."""
    _check_held(tensor.dtype, name, values)
    with torch.no_grad():
        eager.write_whole(write, tensor)


def _check_held(dtype: torch.dtype, name: str, values: Iterable[Any]) -> None:
    if torch.compiler.is_compiling():  # bits cannot be looked at there, and torch's own error comes when it runs
        return
    for value in values:
        try:
            constant_words(value, dtype)
        except (RuntimeError, OverflowError):
            raise ValueError(f"{name} is {value!r}, which {dtype} cannot hold") from None


# --- a line a name ----------------------------------------------------------------------------------------------------


class keras:  # noqa: N801
    """`keras.initializers`."""

    RandomUniform = _seeded(lambda minval=-0.05, maxval=0.05: partial(init.uniform_, a=minval, b=maxval))
    RandomNormal = _seeded(lambda mean=0.0, stddev=0.05: partial(init.normal_, mean=mean, std=stddev))
    TruncatedNormal = _seeded(lambda mean=0.0, stddev=0.05: _cut(mean, stddev, -2.0, 2.0))
    Constant = _Name(lambda value=0.0: _constant(value))
    Zeros = _Name(lambda: init.zeros_)
    Ones = _Name(lambda: init.ones_)
    Identity = _Name(lambda gain=1.0: _identity(gain))
    VarianceScaling = _seeded(
        lambda scale=1.0, mode="fan_in", distribution="truncated_normal": _keras(scale, mode, distribution)
    )
    GlorotUniform = _seeded(lambda: _keras(1.0, "fan_avg", "uniform"))
    GlorotNormal = _seeded(lambda: _keras(1.0, "fan_avg", "truncated_normal"))
    HeUniform = _seeded(lambda: _keras(2.0, "fan_in", "uniform"))
    HeNormal = _seeded(lambda: _keras(2.0, "fan_in", "truncated_normal"))
    LecunUniform = _seeded(lambda: _keras(1.0, "fan_in", "uniform"))
    LecunNormal = _seeded(lambda: _keras(1.0, "fan_in", "truncated_normal"))
    Orthogonal = _seeded(lambda gain=1.0: partial(init.orthogonal_, gain=gain))


class jax:  # noqa: N801
    """`jax.nn.initializers`, and so `flax.linen.initializers`. `zeros` and `ones` are initialisers themselves there."""

    uniform = _Name(lambda scale=0.01: partial(init.uniform_, a=0.0, b=scale))
    normal = _Name(lambda stddev=0.01: partial(init.normal_, mean=0.0, std=stddev))
    truncated_normal = _Name(lambda stddev=0.01, lower=-2.0, upper=2.0: _cut(0.0, stddev, lower, upper))
    constant = _Name(lambda value: _constant(value))
    zeros = Initialiser("like.jax.zeros", init.zeros_, "jax.zeros")
    ones = Initialiser("like.jax.ones", init.ones_, "jax.ones")
    variance_scaling = _Name(
        lambda scale, mode, distribution, in_axis=1, out_axis=0, batch_axis=(): _jax(
            scale, mode, distribution, in_axis, out_axis, batch_axis
        )
    )
    glorot_uniform = _jax_name(1.0, "fan_avg", "uniform")
    glorot_normal = _jax_name(1.0, "fan_avg", "truncated_normal")
    he_uniform = _jax_name(2.0, "fan_in", "uniform")
    he_normal = _jax_name(2.0, "fan_in", "truncated_normal")
    lecun_uniform = _jax_name(1.0, "fan_in", "uniform")
    lecun_normal = _jax_name(1.0, "fan_in", "truncated_normal")
    xavier_uniform = _jax_name(1.0, "fan_avg", "uniform")
    xavier_normal = _jax_name(1.0, "fan_avg", "truncated_normal")
    kaiming_uniform = _jax_name(2.0, "fan_in", "uniform")
    kaiming_normal = _jax_name(2.0, "fan_in", "truncated_normal")
    orthogonal = _Name(lambda scale=1.0: partial(init.orthogonal_, gain=scale))
    delta_orthogonal = _Name(lambda scale=1.0: partial(init.delta_orthogonal_, gain=scale))


class mxnet:  # noqa: N801
    """`mxnet.initializer`."""

    Uniform = _Name(lambda scale=0.07: partial(init.uniform_, a=-scale, b=scale))
    Normal = _Name(lambda sigma=0.01: partial(init.normal_, mean=0.0, std=sigma))
    Constant = _Name(lambda value: _constant(value))
    Zero = _Name(lambda: init.zeros_)
    One = _Name(lambda: init.ones_)
    Xavier = _Name(lambda rnd_type="uniform", factor_type="avg", magnitude=3: _xavier(rnd_type, factor_type, magnitude))
    MSRAPrelu = _Name(lambda factor_type="avg", slope=0.25: _xavier("gaussian", factor_type, 2.0 / (1 + slope * slope)))
    LSTMBias = _Name(lambda forget_bias=1.0: _forget_gate(forget_bias))
