"""A mixture of distributions in one pass: which component an element is of, and its value there, from one word."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from torch_fastinit import eager
from torch_fastinit._torch import TorchDispatchMode, graph_break, is_alias_of
from torch_fastinit.arguments import check_first, number
from torch_fastinit.codes import MAX_COMPONENTS
from torch_fastinit.initializers import Constant, Initializer, Mixture, Normal, Uniform
from torch_fastinit.ops import Fill, constant_words, ready
from torch_fastinit.recording.active import outside
from torch_fastinit.recording.memory import failure
from torch_fastinit.recording.schema import signature_of

#: A number, or what fills a tensor in place.
Law = float | Callable[[Tensor], object]

aten = torch.ops.aten


def mixture_(
    tensor: Tensor, components: Iterable[tuple[float, Law]], generator: torch.Generator | None = None
) -> Tensor:
    r"""Fill `tensor` from several distributions: each element is drawn from one of them, picked at random.

    Component i, a distribution $D_i$, is picked with probability $p_i$, independently for each element, so elements
    have the distribution $\sum_i p_i D_i$.

    This is one pass over the tensor. With few components, none of them normal, it takes hardly longer than
    `init.uniform_`. Probabilities are rounded to multiples of 2**-31. The tails of a normal component of probability p
    reach as far out as those of 2**31 p samples, and no further.

    Args:
        tensor: any shape; a real floating-point dtype.
        components: pairs `(probability, value)`, at most 256, whose probabilities are 0 or more and sum to 1. The value
            is a number, or a function that fills a tensor of this shape with one uniform, one normal or one constant,
            such as `partial(init.uniform_, a=-1)`, `init.xavier_normal_` or `init.zeros_`.
        generator: where the seed is drawn from (default: torch's default CPU generator).

    Returns:
        `tensor`.

    Raises:
        ValueError: there is no component, or more than 256; a probability is negative or not finite, or they do not
            sum to 1 within 1e-6.
        TypeError: `components` is no iterable of pairs, or a value is neither a number nor a function.
        RuntimeError: a function raises, or writes anything else; a mean, bound or number that `init` refuses, or that
            is not finite in the dtype. The message names the component.
        NotImplementedError: the tensor is complex, sparse or nested, or not of a floating-point dtype.
        torch._dynamo.exc.Unsupported: called under `torch.compile(fullgraph=True)`. Without it, the graph breaks here.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> from functools import partial
        >>> from torch_fastinit import init
        >>> slab = partial(init.uniform_, a=5, b=10)
        >>> w = fastinit.mixture_(torch.empty(300, 300), [(0.75, 0), (0.25, slab)])
        >>> bool(((w == 0) | ((w >= 5) & (w < 10))).all()), 0.7 < (w == 0).float().mean() < 0.8
        (True, tensor(True))
    """
    if has_torch_function_variadic(tensor):
        return handle_torch_function(mixture_, (tensor,), tensor, components, generator=generator)
    asked = _mixture
    if is_dynamo_compiling():  # no graph has what it does
        graph_break(_NO_GRAPH)
        asked = torch.compiler.disable(_mixture)
    return eager.fill(tensor, asked(tensor, components), generator)


_NO_GRAPH = "fastinit.mixture_ runs its initialisers, which no graph can hold: compile without fullgraph=True"


def _mixture(tensor: Tensor, components: Iterable[Any]) -> Mixture:
    check_first(tensor, Tensor, "mixture_")
    if not isinstance(components, Iterable) or isinstance(components, Tensor):
        raise TypeError(f"mixture_: components must be pairs of a probability and what is drawn, not {components!r}")
    components = list(components)
    ready(Fill(tensor, Mixture(())))  # raises for the dtypes that no mixture can be written into
    if not 1 <= len(components) <= MAX_COMPONENTS:
        raise ValueError(f"mixture_ takes 1 to {MAX_COMPONENTS} components, but found {len(components)}")
    laws: list[tuple[float, Initializer]] = []
    with outside():
        for i, component in enumerate(components):
            name = f"mixture_: components[{i}]"
            if not isinstance(component, (tuple, list)) or len(component) != 2:
                raise TypeError(f"{name} is {component!r}, but a component is a pair: a probability, and what is drawn")
            probability = number(component[0], f"{name}: a probability")
            if not 0.0 <= probability < math.inf:
                raise ValueError(f"{name} has the probability {probability}, but one is 0 or more")
            laws.append((probability, _law(name, tensor, component[1])))
    total = math.fsum(probability for probability, _ in laws)
    if not abs(total - 1.0) <= 1e-6:
        raise ValueError(f"mixture_: the probabilities of its components sum to {total:.9g}, but they are to sum to 1")
    return Mixture(tuple(laws))


def _law(name: str, tensor: Tensor, value: Any) -> Initializer:
    """What a component draws."""
    if isinstance(value, numbers.Number):
        law: Initializer = Constant(value)  # type: ignore[arg-type]
    elif callable(value) and not isinstance(value, Tensor):
        law = _asked_of(name, tensor, value)
    else:
        raise TypeError(f"{name} draws {value!r}, but it can be a number, or an initialiser")
    try:
        return _checked(law, tensor.dtype)
    except Exception as error:
        raise failure(f"{name}: {error}", error) from error


def _checked(law: Initializer, dtype: torch.dtype) -> Initializer:
    if isinstance(law, Constant):
        value = number(law.value, "a constant")
        if math.isnan(value):
            raise RuntimeError("a constant is nan, which no mixture can have")
        constant_words(value, dtype)  # raises for what the dtype cannot hold
        return Constant(value)
    assert isinstance(law, (Uniform, Normal))
    eager.check_parameters(law, dtype)
    largest = eager.LARGEST[dtype]
    if isinstance(law, Normal) and not (abs(law.mean) <= largest and law.std <= largest):
        raise RuntimeError(f"normal takes a mean and a std that are finite in {dtype}, but found {law.mean}, {law.std}")
    return law


#: What initialisers whose answer depends on the shape, the dtype and their arguments alone have written (`_key`).
_known: dict[Any, Initializer] = {}


def _key(tensor: Tensor, initialiser: Callable[[Tensor], object]) -> Any:
    """What the answer of a function of our `init` depends on; arguments as text, where 0.0 is not -0.0, nor 1 True."""
    function, args, named = initialiser, (), {}
    if type(initialiser) is partial:
        function, args, named = initialiser.func, initialiser.args, initialiser.keywords
    # By its globals: `functools.wraps` copies `__module__`. Sizes can be symbols.
    plain = getattr(function, "__globals__", {}).get("__name__") == "torch_fastinit.init" and all(
        type(value) in (bool, int, float, str) for value in (*args, *named.values(), *tensor.shape)
    )
    return (function, repr(args), repr(named), tensor.shape, tensor.dtype) if plain else None


def _asked_of(name: str, tensor: Tensor, initialiser: Callable[[Tensor], object]) -> Initializer:
    """The one distribution that an initialiser writes to a tensor of this shape and dtype."""
    key = _key(tensor, initialiser)
    known = _known.get(key)  # in one step: another thread may clear it
    if known is not None:
        return known
    stand_in = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    asked = _Asked(stand_in)
    try:
        with asked:
            initialiser(stand_in)
    except Exception as error:
        raise failure(f"{name}, {initialiser!r}: {error}", error) from error
    if len(asked.writes) != 1 or asked.writes[0] is None:
        raise RuntimeError(
            f"{name}, {initialiser!r}, is not one uniform, normal or constant fill of the whole tensor, without a "
            "generator of its own: a mixture can be of nothing else"
        )
    if key is not None:
        if len(_known) >= 1024:
            _known.clear()
        _known[key] = asked.writes[0]
    return asked.writes[0]


class _Asked(TorchDispatchMode):
    """Notes what is written to a tensor, and writes nothing there."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensor = tensor
        #: What each write is; None for one that a mixture cannot have.
        self.writes: list[Initializer | None] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it imports all of it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = [args[i] if i < len(args) else kwargs.get(name) for i, name in signature_of(func).writes]
        tensors = [t for one in written for t in (one if isinstance(one, (list, tuple)) else [one])]
        ours = [t for t in tensors if isinstance(t, Tensor) and is_alias_of(t, self._tensor)]
        if not ours:
            return func(*args, **kwargs)
        whole = _is_whole(ours[0], self._tensor) and kwargs.get("generator") is None
        self.writes.append(_LAWS[func](*args[1:], **kwargs) if whole and func in _LAWS else None)
        return args[0] if func._schema.returns else None


def _is_whole(view: Tensor, tensor: Tensor) -> bool:
    """Whether a view of a contiguous tensor has each of its elements once."""
    steps = sorted((step, size) for step, size in zip(view.stride(), view.shape, strict=True) if size != 1)
    reach = 1
    for step, size in steps:
        if step != reach:
            return False
        reach *= size
    return view.dtype is tensor.dtype and view.numel() == tensor.numel()


def _filled(kind: int, params: list[float], generator: None = None) -> Initializer | None:
    law = Initializer.of(kind, params)
    return law if isinstance(law, (Uniform, Normal)) else None


def _uniform(a: float = 0.0, b: float = 1.0, **given: Any) -> Initializer:
    return Uniform(float(given.get("from", a)), float(given.get("to", b)))


def _normal(mean: float = 0.0, std: float = 1.0, generator: None = None) -> Initializer:
    return Normal(float(mean), float(std))


#: What each operator writes, by its arguments after the tensor.
_LAWS: dict[Any, Callable[..., Initializer | None]] = {
    torch.ops.fastinit.fill_.default: _filled,
    aten.uniform_.default: _uniform,
    aten.normal_.default: _normal,
    aten.fill_.Scalar: Constant,
    aten.zero_.default: lambda: Constant(0),
}
