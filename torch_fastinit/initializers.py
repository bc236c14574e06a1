"""What to write into a tensor: one dataclass a distribution, named as in torch and in csrc/distributions.h.

An initializer says nothing of where (that is `torch_fastinit.ops.Fill`) nor of how (that is a backend). Its fields are
unrounded Python floats, which csrc/bindings.cpp reads by their names: every derived constant is computed once, on the
host, in csrc/lower.cpp. Treat as immutable: `frozen` would more than double construction time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from torch_fastinit.codes import Kind, Op


class Initializer:
    """Base class: `kind` is the distribution's code, `params` its parameters as the ops receive them."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]  # each initializer is a dataclass

    kind: ClassVar[Kind]
    #: How many draws (streams) one fill takes: 0 for values that are not random.
    draws: ClassVar[int] = 0
    #: What is done to a value after its draw. (With an annotation it would be the first field of `Program`.)
    steps = ()  # type: tuple[Step, ...]

    @property
    def params(self) -> tuple[float, ...]:
        return tuple(float(getattr(self, field.name)) for field in fields(self))

    @staticmethod
    def of(kind: int, params: Sequence[float]) -> Initializer:
        """The initializer with this code and these parameters: the inverse of `kind` and `params`."""
        if kind == Kind.MIXTURE:
            return Mixture.of_params(params)
        if kind not in _PARAMETRIC:
            raise ValueError(f"{kind} is no kind of initializer that has parameters alone")
        cls = _PARAMETRIC[kind]
        if len(params) != len(fields(cls)):
            raise ValueError(f"{cls.__name__} takes {len(fields(cls))} parameters, not {len(params)}")
        return cls(*params)


@dataclass(slots=True, unsafe_hash=True)
class Bits(Initializer):
    """Raw words of the stream, from word `offset` on, into int32."""

    kind = Kind.BITS
    params = ()
    draws = 1
    offset: int = 0


@dataclass(slots=True, unsafe_hash=True)
class Constant(Initializer):
    """The same value everywhere, converted to the tensor's dtype as `Tensor.fill_` does."""

    kind = Kind.CONSTANT
    params = ()
    value: complex | float | int | bool


@dataclass(slots=True, unsafe_hash=True)
class Pattern(Initializer):
    """What a `Constant` is in a dtype: the bytes of an element, padded to two words of 64 bits, low first."""

    kind = Kind.CONSTANT
    params = ()
    words: tuple[int, int]


@dataclass(slots=True, unsafe_hash=True)
class Uniform(Initializer):
    """U(a, b) on [a, b)."""

    kind = Kind.UNIFORM
    draws = 1
    a: float = 0.0
    b: float = 1.0


@dataclass(slots=True, unsafe_hash=True)
class Normal(Initializer):
    """N(mean, std^2)."""

    kind = Kind.NORMAL
    draws = 1
    mean: float = 0.0
    std: float = 1.0

    def component(self) -> Normal:
        """The distribution of the real and of the imaginary part of a complex tensor filled with this one."""
        return Normal(self.mean, self.std / math.sqrt(2.0))


@dataclass(slots=True, unsafe_hash=True)
class TruncatedNormal(Initializer):
    """N(mean, std^2) conditioned on [a, b]; `a` and `b` may be infinite."""

    kind = Kind.TRUNCATED_NORMAL
    draws = 1
    mean: float = 0.0
    std: float = 1.0
    a: float = -2.0
    b: float = 2.0


@dataclass(slots=True, unsafe_hash=True)
class Sparse(Initializer):
    """N(0, std^2) in a matrix, with exactly `ceil(sparsity * rows)` zeros in every column (Martens, ICML 2010)."""

    kind = Kind.SPARSE
    draws = 2
    sparsity: float
    std: float = 0.01


@dataclass(slots=True, unsafe_hash=True)
class Mixture(Initializer):
    """One of `components`, each a probability with a `Uniform`, a `Normal` or a real `Constant`."""

    kind = Kind.MIXTURE
    draws = 1
    components: tuple[tuple[float, Initializer], ...]

    @property
    def params(self) -> tuple[float, ...]:
        """Four numbers a component: kind, probability, and its parameters, of which a constant has one."""
        flat: list[float] = []
        for probability, law in self.components:
            own = (float(law.value), 0.0) if isinstance(law, Constant) else law.params  # type: ignore[arg-type]
            flat += (float(law.kind.value), probability, *own)
        return tuple(flat)

    @staticmethod
    def of_params(params: Sequence[float]) -> Mixture:
        """The inverse of `params`."""
        laws: dict[float, Callable[[float, float], Initializer]] = {
            Kind.CONSTANT: lambda value, _: Constant(value),
            Kind.UNIFORM: Uniform,
            Kind.NORMAL: Normal,
        }
        rows = [params[i : i + 4] for i in range(0, len(params), 4)]
        if not rows or len(rows[-1]) < 4 or not laws.keys() >= {row[0] for row in rows}:
            raise ValueError("a mixture takes four numbers a component: a kind, a probability and two parameters")
        return Mixture(tuple([(probability, laws[kind](*own)) for kind, probability, *own in rows]))


@dataclass(slots=True, unsafe_hash=True)
class Eye(Initializer):
    """The identity matrix."""

    kind = Kind.EYE


@dataclass(slots=True, unsafe_hash=True)
class Dirac(Initializer):
    """The Dirac delta of a 3, 4 or 5-dimensional convolution weight, group by group."""

    kind = Kind.DIRAC
    groups: int = 1


@dataclass(slots=True, unsafe_hash=True)
class Step:
    """`value op operand`, rounded to `dtype`; the arithmetic is float64 for float64 and float32 for all others."""

    op: Op
    operand: float
    dtype: torch.dtype


@dataclass(slots=True, unsafe_hash=True)
class Program(Initializer):
    """`draw` in `dtype`, then `steps` in order, each with its own rounding: what the operations one by one give.

    `draw` is a `Uniform`, a `Normal` or a `TruncatedNormal`. Its bounds hold in `dtype`; the last step's dtype is the
    tensor's. Either all dtypes are float64 or none is.
    """

    draws = 1
    draw: Initializer
    dtype: torch.dtype
    steps: tuple[Step, ...]

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return self.draw.kind

    @property
    def params(self) -> tuple[float, ...]:
        return self.draw.params


#: Draws that steps may follow.
PROGRAMMABLE = (Uniform, Normal, TruncatedNormal)
#: The initializers that are nothing but their parameters.
_PARAMETRIC: dict[int, type[Initializer]] = {cls.kind: cls for cls in (*PROGRAMMABLE, Sparse, Eye, Dirac)}
