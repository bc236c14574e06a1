r"""Drop-in for `torch.nn.init`: the same names, signatures, defaults, return values, errors and warnings.

Every random function validates its arguments, says what to write as one initializer
(`torch_fastinit.initializers`) and hands that to one fill: one pass over memory on every thread, with
bits that depend on the seed and on an element's row-major index alone - not on strides, threads or instruction set. The
seed is drawn from `generator=`, or from torch's default CPU generator, so `torch.manual_seed` governs:

    >>> import torch
    >>> from torch_fastinit import init
    >>> _ = torch.manual_seed(0)
    >>> w = init.kaiming_uniform_(torch.empty(64, 32), nonlinearity="relu")
    >>> bool(w.abs().max() <= (6 / 32) ** 0.5)
    True

Tensors may have any shape and strides. Random fills write float16, bfloat16, float32, float64, float8_e4m3fn,
float8_e5m2 and complex tensors; another dtype raises `NotImplementedError`, a tensor whose elements share memory (an
expanded one) `RuntimeError`, and a function that raises leaves its tensor untouched. As in torch, every function
returns its tensor, works on leaves that require gradients, and bumps the tensor's version counter. A write to what
autograd computed, such as the weight of a parametrized module, is lost there, and warns; torch writes silently.

Of a DTensor each rank writes its part of the unsharded fill, with the logical shape's fans. No collective runs: each
rank draws the seed from its own generator, and equal generators give parts of one tensor (docs/sharding.md).

For the scaled functions, `fan_in` is `shape[1] * prod(shape[2:])`, `fan_out` is `shape[0] * prod(shape[2:])`.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

# Bound here, once: code that puts this module's functions into torch.nn.init must not send these back to this module.
from torch.nn.init import _calculate_correct_fan, _calculate_fan_in_and_fan_out, calculate_gain  # noqa: F401
from torch.nn.init import dirac_ as _torch_dirac_
from torch.nn.init import eye_ as _torch_eye_
from torch.nn.parameter import Parameter
from torch.overrides import handle_torch_function, has_torch_function_variadic

from torch_fastinit import eager
from torch_fastinit import orthogonal as _orthogonal
from torch_fastinit.arguments import number
from torch_fastinit.fans import Axes, fan, fan_of_axes
from torch_fastinit.initializers import Dirac, Eye, Sparse, TruncatedNormal
from torch_fastinit.ops import RANDOM_DTYPES

__all__ = [
    "calculate_gain",
    "constant_",
    "delta_orthogonal_",
    "dirac_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "variance_scaling_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

# ---- What several functions need ------------------------------------------------------------------------------------


def _xavier(tensor: Tensor, gain: float, distribution: str, generator: torch.Generator | None) -> Tensor:
    std = math.sqrt(1.0 / fan(tensor.shape, "fan_avg"))
    return eager.scaled(tensor, number(gain, "gain") * std, distribution, generator)


def _kaiming(tensor: Tensor, a: float, mode: str, nonlinearity: Any, distribution: str, generator: Any) -> Tensor:
    if _has_no_elements(tensor):
        return tensor
    std = calculate_gain(nonlinearity, a) / math.sqrt(fan(tensor.shape, mode.lower(), ("fan_in", "fan_out")))
    return eager.scaled(tensor, std, distribution, generator)


def _variance_scaled(
    tensor: Tensor, scale: float, mode: str, distribution: str, generator: torch.Generator | None, *layout: Any
) -> Tensor:
    """A distribution of mean 0 with E|w|^2 = scale / fan."""
    if _has_no_elements(tensor):
        return tensor
    if not (scale := number(scale, "scale")) > 0.0:
        raise ValueError(f"scale must be positive, but found {scale}")
    variance = scale / fan_of_axes(tensor.shape, mode, *layout)
    if distribution != "normal" and tensor.is_complex():  # of each part; a normal halves its own
        variance /= 2.0
    return eager.scaled(tensor, math.sqrt(variance), distribution, generator)


def _has_no_elements(tensor: Tensor) -> bool:
    """Whether there is nothing to scale (a fan may be 0), with a warning."""
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=eager.level_of_user())
        return True
    return False


# ---- Plain distributions --------------------------------------------------------------------------------------------


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    r"""Fill `tensor` with $\mathcal{U}(a, b)$, on [a, b).

    Values are a + (b - a) u, u one of `2**24` (float64: `2**53`) equidistant values in [0, 1), rounded once to the
    dtype; none is b or more unless a == b. A complex tensor has independent real and imaginary parts.

    Args:
        tensor: any shape; a floating-point or complex dtype.
        a: the lower bound.
        b: the upper bound.
        generator: where the seed is drawn from (default: torch's default CPU generator).

    Raises:
        RuntimeError: `a > b`; a bound, or `b - a`, is not finite in the tensor's dtype.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.uniform_(torch.empty(3, 5), -1.0, 1.0)
        >>> bool((w >= -1).all() and (w < 1).all())
        True
    """
    if has_torch_function_variadic(tensor):
        return handle_torch_function(uniform_, (tensor,), tensor=tensor, a=a, b=b, generator=generator)
    return eager.uniform(tensor, a, b, generator)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    r"""Fill `tensor` with $\mathcal{N}(\text{mean}, \text{std}^2)$.

    Float32 values reach 6.5 standard deviations or more. As in torch, the real and the imaginary part of a complex
    tensor are independent, each with half the variance.

    Args:
        tensor: any shape; a floating-point or complex dtype.
        mean: the mean.
        std: the standard deviation, 0 or more.
        generator: where the seed is drawn from (default: torch's default CPU generator).

    Raises:
        RuntimeError: `std` is negative or nan.

    Reference:
        Box and Muller, "A note on the generation of random normal deviates" (1958),
        https://doi.org/10.1214/aoms/1177706645

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = torch.empty(3, 5)
        >>> init.normal_(w, std=0.02) is w
        True
    """
    if has_torch_function_variadic(tensor):
        return handle_torch_function(normal_, (tensor,), tensor=tensor, mean=mean, std=std, generator=generator)
    return eager.normal(tensor, mean, std, generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fill `tensor` with $\mathcal{N}(\text{mean}, \text{std}^2)$ conditioned on $[a, b]$.

    The bounds are values, not deviations: `trunc_normal_(w, std=0.02)` cuts at 100 deviations. The quantile function
    is evaluated once per element, in one pass, and is right in the far tail too; no value is outside the bounds, in the
    tensor's own dtype.

    Args:
        tensor: any shape; a real floating-point dtype.
        mean: the mean before truncation.
        std: the standard deviation before truncation.
        a: the least value; may be `-inf`.
        b: the greatest value; may be `inf`.
        generator: where the seed is drawn from (default: torch's default CPU generator).

    Raises:
        RuntimeError: `a > b`; `std` is negative; an argument is nan; nothing in [a, b] is finite in the dtype.
        ZeroDivisionError: `std` is 0.

    Warns:
        UserWarning: `mean` is more than two deviations outside [a, b].

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.trunc_normal_(torch.empty(1000), std=0.02, a=-0.04, b=0.04)
        >>> bool(w.abs().max() <= 0.04)
        True
    """
    if eager.is_left_alone(tensor):
        return tensor
    if tensor.is_complex():
        raise NotImplementedError(f"trunc_normal_ is not implemented for {tensor.dtype}: [a, b] is of real numbers")
    mean, std, a, b = number(mean, "mean"), number(std, "std"), number(a, "a"), number(b, "b")
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The values follow the distribution's tail, which is nearly always a mistake in the arguments.",
            stacklevel=2,
        )
    if std == 0.0:
        raise ZeroDivisionError("trunc_normal_ expects std > 0.0, but found std=0.0")
    if not (std > 0.0 and math.isfinite(std) and math.isfinite(mean)):
        raise RuntimeError(f"trunc_normal_ expects a finite mean and std > 0.0, but found mean={mean}, std={std}")
    if not a <= b:
        raise RuntimeError(f"trunc_normal_ expects to return a [a, b] range, but found a={a}, b={b}")
    largest = eager.LARGEST.get(tensor.dtype, math.inf)
    if a > largest or b < -largest:
        raise RuntimeError(f"trunc_normal_: [a, b] is out of bounds for {tensor.dtype}, but found a={a}, b={b}")
    return eager.fill(tensor, TruncatedNormal(mean, std, a, b), generator)


# ---- Fixed values ---------------------------------------------------------------------------------------------------


def constant_(tensor: Tensor, val: float) -> Tensor:
    r"""Fill `tensor`, of any shape and dtype, with `val`, converted as `Tensor.fill_` converts it.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> init.constant_(torch.empty(2), 0.5)
        tensor([0.5000, 0.5000])
    """
    if has_torch_function_variadic(tensor):
        return handle_torch_function(constant_, (tensor,), tensor=tensor, val=val)
    return eager.fill_constant(tensor, val)


def ones_(tensor: Tensor) -> Tensor:
    r"""Fill `tensor`, of any shape and dtype, with 1.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> init.ones_(torch.empty(2))
        tensor([1., 1.])
    """
    return eager.fill_constant(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    r"""Fill `tensor`, of any shape and dtype, with 0.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> init.zeros_(torch.empty(2))
        tensor([0., 0.])
    """
    if type(tensor) is not Parameter and not is_dynamo_compiling() and tensor.grad_fn is not None:
        eager.warn_if_computed(tensor)
    with torch.no_grad():
        return tensor.zero_()


def eye_(tensor: Tensor) -> Tensor:
    r"""Fill a matrix with the identity: 1 where row == column, 0 elsewhere.

    A linear layer keeps as many of its inputs as it can.

    Args:
        tensor: 2 dimensions; any dtype that `torch.eye` has.

    Raises:
        ValueError: `tensor` has not 2 dimensions.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> init.eye_(torch.empty(2, 3))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    if tensor.ndimension() != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    if tensor.dtype not in RANDOM_DTYPES:
        return eager.write_whole(_torch_eye_, tensor)
    return eager.fill(tensor, Eye())


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    r"""Fill a convolution's weight with the Dirac delta: 1 at the kernel's centre where input and output channel agree.

    A convolution keeps as many of its input channels as it can, in each of `groups` groups of output channels.

    Args:
        tensor: 3, 4 or 5 dimensions (output channels, input channels, kernel); any dtype.
        groups: a divisor of the number of output channels.

    Raises:
        ValueError: `tensor` has another number of dimensions, or `groups` does not divide its first.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> init.dirac_(torch.empty(2, 2, 3))
        tensor([[[0., 1., 0.],
                 [0., 0., 0.]],
        <BLANKLINE>
                [[0., 0., 0.],
                 [0., 1., 0.]]])
    """
    if tensor.ndimension() not in (3, 4, 5):
        raise ValueError("Only tensors with 3, 4, or 5 dimensions are supported")
    if tensor.shape[0] % groups != 0:
        raise ValueError("dim 0 must be divisible by groups")
    if eager.is_left_alone(tensor):
        return tensor
    if tensor.dtype not in RANDOM_DTYPES or groups < 1 or 0 in tensor.shape:
        return eager.write_whole(_torch_dirac_, tensor, groups)
    return eager.fill(tensor, Dirac(operator.index(groups)))


# ---- Scaled by the fans ---------------------------------------------------------------------------------------------


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    r"""Fill `tensor` with a uniform distribution scaled by both fans, also known as Glorot initialization.

    It is $\mathcal{U}(-a, a)$ with $a = \text{gain} \sqrt{6 / (\text{fan\_in} + \text{fan\_out})}$.

    Args:
        tensor: 2 dimensions or more; a floating-point or complex dtype.
        gain: a factor on the bound; see `calculate_gain`.
        generator: where the seed is drawn from (default: torch's default CPU generator).

    Raises:
        ValueError: `tensor` has fewer than 2 dimensions.
        RuntimeError: `gain` is negative.

    Reference:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (AISTATS 2010),
        https://proceedings.mlr.press/v9/glorot10a.html

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.xavier_uniform_(torch.empty(3, 3), gain=init.calculate_gain("tanh"))
        >>> bool(w.abs().max() <= 5 / 3)
        True
    """
    return _xavier(tensor, gain, "uniform", generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    r"""Fill `tensor` with a normal distribution scaled by both fans, also known as Glorot initialization.

    It is $\mathcal{N}(0, \text{std}^2)$ with
    $\text{std} = \text{gain} \sqrt{2 / (\text{fan\_in} + \text{fan\_out})}$. Arguments, errors and
    reference as for `xavier_uniform_`.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.xavier_normal_(torch.empty(200, 200))
        >>> 0.06 < w.std() < 0.08
        tensor(True)
    """
    return _xavier(tensor, gain, "normal", generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fill `tensor` with a uniform distribution scaled by one fan, also known as He initialization.

    It is $\mathcal{U}(-\text{bound}, \text{bound})$ with $\text{bound} = \text{gain} \sqrt{3 / \text{fan}}$
    and `gain = calculate_gain(nonlinearity, a)`.

    Args:
        tensor: 2 dimensions or more; a floating-point or complex dtype. A weight that is used transposed (`x @ w`) is
            passed transposed: `kaiming_uniform_(w.T)`.
        a: the negative slope of the leaky ReLU after this layer.
        mode: `"fan_in"` keeps the variance in the forward pass, `"fan_out"` in the backward pass.
        nonlinearity: the function after this layer, as `calculate_gain` names it.
        generator: where the seed is drawn from (default: torch's default CPU generator).

    Raises:
        ValueError: `tensor` has fewer than 2 dimensions; unknown `mode` or `nonlinearity`.

    Warns:
        UserWarning: `tensor` has no elements; nothing is done.

    Reference:
        He, Zhang, Ren and Sun, "Delving deep into rectifiers: surpassing human-level performance on ImageNet
        classification" (ICCV 2015), https://arxiv.org/abs/1502.01852

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.kaiming_uniform_(torch.empty(8, 6), nonlinearity="relu")
        >>> bool(w.abs().max() <= 1)
        True
    """
    if has_torch_function_variadic(tensor):
        return handle_torch_function(
            kaiming_uniform_, (tensor,), tensor=tensor, a=a, mode=mode, nonlinearity=nonlinearity, generator=generator
        )
    return _kaiming(tensor, a, mode, nonlinearity, "uniform", generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fill `tensor` with a normal distribution scaled by one fan, also known as He initialization.

    It is $\mathcal{N}(0, \text{std}^2)$ with $\text{std} = \text{gain} / \sqrt{\text{fan}}$. Arguments,
    errors, warning and reference as for `kaiming_uniform_`.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.kaiming_normal_(torch.empty(300, 200), mode="fan_in", nonlinearity="relu")
        >>> 0.09 < w.std() < 0.11
        tensor(True)
    """
    return _kaiming(tensor, a, mode, nonlinearity, "normal", generator)


def variance_scaling_(
    tensor: Tensor,
    scale: float = 1.0,
    mode: Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"] = "fan_in",
    distribution: Literal["truncated_normal", "normal", "uniform"] = "truncated_normal",
    generator: torch.Generator | None = None,
    *,
    in_axis: Axes = 1,
    out_axis: Axes = 0,
    batch_axis: Axes = (),
    groups: int = 1,
) -> Tensor:
    r"""Fill `tensor` with a distribution of mean 0 and variance `scale / fan`, as JAX's and Keras's initialiser.

    `"truncated_normal"` is cut at two deviations and widened so that the variance after the cut is as asked;
    `"normal"` is not cut; `"uniform"` is on $[-\sqrt{3 v}, \sqrt{3 v})$ for the variance v. The parts of a complex
    tensor are independent, each with half the variance: $E|w|^2$ is `scale / fan` too.

    The fans are torch's (see above) of a weight laid out (outputs, inputs, kernel); others tell their axes. A
    transposed one, as GPT-2's `Conv1D` has: `in_axis=0, out_axis=1`; stacked experts (expert, outputs, inputs):
    `in_axis=2, out_axis=1, batch_axis=0`. A grouped convolution has torch's `fan_in` as it is; `groups` divides
    `fan_out`, which torch lets count outputs that an input does not reach.

    Args:
        tensor: 2 dimensions or more; a floating-point or complex dtype.
        scale: the variance times the fan; positive.
        mode: which fan: `"fan_in"`, `"fan_out"`, `"fan_avg"`, their mean, or `"fan_geo_avg"`, their geometric mean.
        distribution: `"truncated_normal"`, `"normal"` or `"uniform"`.
        generator: where the seed is drawn from (default: torch's default CPU generator).
        in_axis, out_axis: the axis of the inputs and of the outputs, or several.
        batch_axis: axes over which there are weights of their own. All others are the kernel's.
        groups: of a grouped convolution, transposed or not; a divisor of dimension 0, which has the channels of all.

    Raises:
        ValueError: `tensor` has fewer than 2 dimensions; `scale` is not positive; unknown `mode` or `distribution`; an
            axis that `tensor` has not; a batch axis that is also another; `groups` does not divide dimension 0.

    Warns:
        UserWarning: `tensor` has no elements; nothing is done.

    Reference:
        He, Zhang, Ren and Sun (2015), https://arxiv.org/abs/1502.01852; named and parametrised as in
        https://docs.jax.dev/en/latest/_autosummary/jax.nn.initializers.variance_scaling.html

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.variance_scaling_(torch.empty(300, 200), 2.0, "fan_avg", "normal")
        >>> 0.08 < w.std() < 0.1
        tensor(True)
        >>> experts = init.variance_scaling_(torch.empty(8, 64, 32), in_axis=2, out_axis=1, batch_axis=0)
        >>> bool(experts.abs().max() <= 2 / 0.8796 / 32**0.5)
        True
    """
    layout = (in_axis, out_axis, batch_axis, groups)
    return _variance_scaled(tensor, scale, mode, distribution, generator, *layout)


def lecun_normal_(
    tensor: Tensor,
    generator: torch.Generator | None = None,
    *,
    in_axis: Axes = 1,
    out_axis: Axes = 0,
    batch_axis: Axes = (),
    groups: int = 1,
) -> Tensor:
    r"""Fill `tensor` with a truncated normal distribution of variance $1 / \text{fan\_in}$.

    It is `variance_scaling_(tensor, 1.0, "fan_in", "truncated_normal")`, as in JAX and Keras: cut at two deviations.
    Arguments, errors and warning as for `variance_scaling_`.

    Reference:
        LeCun, Bottou, Orr and Müller, "Efficient BackProp" (1998), https://doi.org/10.1007/3-540-49430-8_2; Klambauer,
        Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks" (2017), https://arxiv.org/abs/1706.02515

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.lecun_normal_(torch.empty(300, 100))
        >>> 0.09 < w.std() < 0.11
        tensor(True)
    """
    layout = (in_axis, out_axis, batch_axis, groups)
    return _variance_scaled(tensor, 1.0, "fan_in", "truncated_normal", generator, *layout)


def lecun_uniform_(
    tensor: Tensor,
    generator: torch.Generator | None = None,
    *,
    in_axis: Axes = 1,
    out_axis: Axes = 0,
    batch_axis: Axes = (),
    groups: int = 1,
) -> Tensor:
    r"""Fill `tensor` with $\mathcal{U}(-a, a)$, $a = \sqrt{3 / \text{fan\_in}}$.

    It is `variance_scaling_(tensor, 1.0, "fan_in", "uniform")`. Arguments, errors and warning as for
    `variance_scaling_`, reference as for `lecun_normal_`.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.lecun_uniform_(torch.empty(5, 3))
        >>> bool(w.abs().max() <= 1)
        True
    """
    layout = (in_axis, out_axis, batch_axis, groups)
    return _variance_scaled(tensor, 1.0, "fan_in", "uniform", generator, *layout)


# ---- Structured -----------------------------------------------------------------------------------------------------


def orthogonal_(tensor: Tensor, gain: float = 1, generator: torch.Generator | None = None) -> Tensor:
    r"""Fill `tensor` with `gain` times a (semi-)orthogonal matrix, uniform among them (Haar measure).

    The trailing dimensions are flattened into the columns. With more columns than rows the rows are orthonormal,
    otherwise the columns. A dtype of less than 32 bits is computed in float32 and rounded once. The values depend on
    torch's matrix products and so, unlike those of the other functions, differ in the last bits between machines.

    Args:
        tensor: 2 dimensions or more; a floating-point or complex dtype.
        gain: a factor on the result.
        generator: where the seed is drawn from (default: torch's default CPU generator).

    Raises:
        ValueError: `tensor` has fewer than 2 dimensions.

    Reference:
        Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
        networks" (2013), https://arxiv.org/abs/1312.6120; Mezzadri, "How to generate random matrices from the classical
        compact groups" (2006), https://arxiv.org/abs/math-ph/0609050; Stewart, "The efficient generation of random
        orthogonal matrices" (1980), https://doi.org/10.1137/0717034

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.orthogonal_(torch.empty(3, 5))
        >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-6)
        True
    """
    if type(tensor) is not Parameter and not is_dynamo_compiling() and tensor.grad_fn is not None:
        eager.warn_if_computed(tensor)
    gain = _orthogonal.check(tensor, gain, generator)
    return eager.write_whole(_orthogonal.orthogonal_, tensor, gain, generator)


def delta_orthogonal_(tensor: Tensor, gain: float = 1, generator: torch.Generator | None = None) -> Tensor:
    r"""Fill a convolution's weight with zeros, and `gain` times orthonormal columns at the middle of its kernel.

    A convolution with it keeps the norm of its input. The middle is `(k - 1) // 2` of a kernel dimension of size k, as
    in JAX (`dirac_`'s is `k // 2`).

    Args:
        tensor: 3, 4 or 5 dimensions (outputs, inputs, kernel), at least as many outputs as inputs; a floating-point or
            complex dtype.
        gain: a factor on the result.
        generator: where the seed is drawn from (default: torch's default CPU generator).

    Raises:
        ValueError: `tensor` has another number of dimensions, or fewer outputs than inputs.

    Reference:
        Xiao, Bahri, Sohl-Dickstein, Schoenholz and Pennington, "Dynamical isometry and a mean field theory of CNNs"
        (2018), https://arxiv.org/abs/1806.05393

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.delta_orthogonal_(torch.empty(5, 3, 3, 3))
        >>> torch.allclose(w[:, :, 1, 1].T @ w[:, :, 1, 1], torch.eye(3), atol=1e-6), int(w.count_nonzero())
        (True, 15)
    """
    if type(tensor) is not Parameter and not is_dynamo_compiling() and tensor.grad_fn is not None:
        eager.warn_if_computed(tensor)
    gain = _orthogonal.check(tensor, gain, generator)
    return eager.write_whole(_orthogonal.delta_orthogonal_, tensor, gain, generator)


def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: torch.Generator | None = None) -> Tensor:
    r"""Fill a matrix with $\mathcal{N}(0, \text{std}^2)$ and exactly `ceil(sparsity * rows)` zeros a column.

    The rows that are zero are chosen uniformly, independently in each column, under the same seed as the values.

    Args:
        tensor: 2 dimensions; a floating-point or complex dtype.
        sparsity: the fraction of each column to set to zero; 0 or more, and from 1 on everything is zero.
        std: the standard deviation of the other elements.
        generator: where the seed is drawn from (default: torch's default CPU generator).

    Raises:
        ValueError: `tensor` has not 2 dimensions; `sparsity` is negative or nan.
        OverflowError: `sparsity` is infinite.
        RuntimeError: `std` is negative or nan.

    Reference:
        Martens, "Deep learning via Hessian-free optimization" (ICML 2010); rows by Knuth, "The Art of Computer
        Programming", volume 2, 3.4.2, Algorithm S.

    Example:
        >>> import torch
        >>> from torch_fastinit import init
        >>> w = init.sparse_(torch.empty(10, 3), sparsity=0.25)
        >>> (w == 0).sum(0)
        tensor([3, 3, 3])
    """
    if tensor.ndimension() != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    if eager.is_left_alone(tensor):
        return tensor
    sparsity, std = number(sparsity, "sparsity"), number(std, "std")
    if math.ceil(sparsity * tensor.size(0)) < 0:  # ceil raises for what is no number
        raise ValueError(f"sparsity must be 0 or more, but found {sparsity}")
    if not std >= 0.0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std={std}")
    if tensor.is_complex():
        return eager.write_whole(_complex_sparse, tensor, sparsity, std, generator)
    return eager.fill(tensor, Sparse(min(sparsity, 1.0), std), generator)


def _complex_sparse(tensor: Tensor, sparsity: float, std: float, generator: torch.Generator | None) -> Tensor:
    """The real parts as a sparse fill; the imaginary parts as a normal fill, zero where the real ones are."""
    part = std / math.sqrt(2.0)
    with torch.no_grad():
        real, imag = tensor.real, tensor.imag
        sparse_(real, sparsity, part, generator)
        eager.normal(imag, 0.0, part, generator)
        imag.masked_fill_(real == 0, 0.0)
    return tensor


# ---- Deprecated names -----------------------------------------------------------------------------------------------

_DEPRECATED = frozenset(
    "uniform normal constant eye dirac xavier_uniform xavier_normal kaiming_uniform kaiming_normal orthogonal "
    "sparse".split()
)


def __getattr__(name: str) -> Callable[..., Tensor]:
    """torch.nn.init's deprecated names, without the underscore: they warn, as torch's do."""
    if name not in _DEPRECATED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function: Callable[..., Tensor] = globals()[name + "_"]

    def deprecated_init(*args: Any, **kwargs: Any) -> Tensor:
        warnings.warn(f"`nn.init.{name}` is now deprecated in favor of `nn.init.{name}_`.", FutureWarning, stacklevel=2)
        return function(*args, **kwargs)

    deprecated_init.__name__ = name
    return deprecated_init
