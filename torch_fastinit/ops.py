"""A fill, and the two custom ops through which torch sees one.

`Fill` is the one description of a fill: an eager call makes one, `materialize` many thousands, and the backends read
them. Where somebody watches (torch.compile, a mode, a profiler, a recorder), fills go through torch's dispatcher:
`fastinit::fill_batch_` writes many tensors with explicit seeds; `fastinit::fill_` writes one and draws its own seed.
Neither bumps a version counter: their callers do. Neither refuses a leaf that requires gradients: a fill is an
initialisation, outside of the history that autograd keeps.

A batch travels through the dispatcher as two flat lists (`encode`, `decode`). `recipe` holds, for each tensor::

    kind, word0, word1, number of params, dimensions of the region, number of steps,
    [stream of the second draw | low and high part of an offset], [logical shape ...], [offsets ...],
    [dtype of the draw, (op, dtype) of each step ...]

`word0, word1` are the seed and the stream of the first draw; for a constant they are its bit pattern. A sparse fill has
the stream of its second draw after these, raw bits their offset (64 bits of it and the rest). A region of dimension 0
is the whole tensor. `params` has the parameters and then one operand for each step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch

from torch_fastinit._torch import watched
from torch_fastinit.arguments import integer
from torch_fastinit.backend import DEVICES, provider_for
from torch_fastinit.codes import DTYPE_CODES, Kind, Op
from torch_fastinit.initializers import (
    Bits,
    Constant,
    Initializer,
    Normal,
    Pattern,
    Program,
    Step,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.stream import draw_seed, draw_stream, to_signed

#: dtypes that a random fill can write (complex ones as pairs of reals).
RANDOM_DTYPES = frozenset(DTYPE_CODES) - {torch.int32}

_library = torch.library.Library("fastinit", "DEF")
_library.define("fill_batch_(Tensor(a!)[] tensors, int[] recipe, float[] params) -> ()")
_library.define(
    "fill_(Tensor(a!) tensor, int kind, float[] params, *, Generator? generator=None) -> ()",
    # Its seed is drawn on the host: a captured graph would write the same values each time.
    tags=(torch.Tag.nondeterministic_seeded, torch.Tag.cudagraph_unsafe),
)


# ---- What a fill is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Region:
    """Which part of a larger tensor a tensor is: a box in it that has the tensor's own shape.

    Args:
        shape: the larger tensor's shape.
        offsets: where in it the part begins: an index for each dimension.

    Raises:
        TypeError: `shape` or `offsets` is not a sequence of integers.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> with fastinit.deferred():
        ...     rows = torch.nn.Linear(4, 3)  # rows 3 to 5 of a layer with 6 outputs
        >>> part = {"weight": fastinit.Region((6, 4), (3, 0)), "bias": fastinit.Region((6,), (3,))}
        >>> whole = fastinit.materialize(fastinit.skip_init(torch.nn.Linear, 4, 6), seed=0)
        >>> torch.equal(fastinit.materialize(rows, seed=0, shards=part).weight, whole.weight[3:])
        True
    """

    shape: tuple[int, ...]
    offsets: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("shape", "offsets"):
            object.__setattr__(self, name, _integers(getattr(self, name), name))


def _integers(values: Any, name: str) -> tuple[int, ...]:
    if not isinstance(values, Iterable) or isinstance(values, (Set, Mapping)) or getattr(values, "shape", True) == ():
        raise TypeError(f"Region: {name} must be integers, one a dimension, not {values!r}")
    return tuple([integer(value, f"Region: one of {name}") for value in values])


@dataclass(slots=True)
class Fill:
    """Where an initializer's values go: a tensor, the stream that they come from, and the part of it that this is.

    `second` is the stream of the second draw, for an initializer that takes two. By default it is that of draw 1 of a
    tensor whose draw 0 is `stream`; a fill that is not a tensor's first draw must say. Seeds and streams count modulo
    `2**64`.
    """

    tensor: torch.Tensor
    initializer: Initializer
    seed: int = 0
    stream: int = 0
    region: Region | None = None
    second: int | None = None


#: The second stream of an eager fill, which takes draws 0, 1, ... of stream 0 of its own seed.
EAGER_SECOND = draw_stream(0, 1)


def constant_of(constant: Constant, tensor: torch.Tensor, region: Region | None) -> Pattern:
    """The bit pattern of an element of `tensor`, which is that part of another one."""
    shape = tensor.shape if region is None else region.shape
    return Pattern(constant_words(constant.value, tensor.dtype, alone=math.prod(shape) == 1))


def ready(fill: Fill) -> Fill:
    """`fill` as the backends take it: a constant as its bit pattern, a complex tensor as pairs of reals.

    Raises `NotImplementedError`, as torch does, for a dtype that the initializer cannot be written into.
    """
    tensor, initializer, region = fill.tensor, fill.initializer, fill.region
    if isinstance(initializer, Constant):
        return replace(fill, initializer=constant_of(initializer, tensor, region))
    if initializer.draws == 2 and fill.second is None:
        fill = replace(fill, second=draw_stream(fill.stream, 1))
    if tensor.dtype in RANDOM_DTYPES or initializer.kind is Kind.CONSTANT:
        return fill
    if initializer.kind is Kind.BITS and tensor.dtype is torch.int32:
        return fill
    if tensor.is_complex() and isinstance(initializer, (Normal, Uniform, TruncatedNormal)):
        if isinstance(initializer, Normal):
            initializer = initializer.component()
        if region is not None:
            region = Region((*region.shape, 2), (*region.offsets, 0))
        return ready(replace(fill, tensor=torch.view_as_real(tensor), initializer=initializer, region=region))
    known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in RANDOM_DTYPES))
    raise NotImplementedError(
        f"{initializer.kind.name.lower()} fill is not implemented for {tensor.dtype}; it writes {known}"
    )


@functools.lru_cache(maxsize=4096)
def _constant_words(value: complex | float | int | bool, dtype: torch.dtype, count: int, _key: str) -> tuple[int, int]:
    item = torch.empty(count, dtype=dtype, device="cpu").fill_(value)[0]
    raw = bytes(item.reshape(1).view(torch.uint8).tolist()).ljust(16, b"\0")
    return int.from_bytes(raw[:8], "little", signed=True), int.from_bytes(raw[8:], "little", signed=True)


def constant_words(value: complex | float | int | bool, dtype: torch.dtype, *, alone: bool = False) -> tuple[int, int]:
    """The bit pattern of `value` in `dtype`, as `Tensor.fill_` converts it, padded to 16 bytes.

    What is too large for a narrow dtype is infinite in a tensor of one element, which is `alone`, and else an error.
    """
    return _constant_words(value, dtype, 1 if alone else 2, repr(value))  # repr: 0.0 == -0.0 == False, and nan != nan


# ---- A batch as the op carries it -----------------------------------------------------------------------------------


def encode(fills: Iterable[Fill]) -> tuple[list[torch.Tensor], list[int], list[float]]:
    """Fills as the arguments of `fastinit::fill_batch_`."""
    tensors: list[torch.Tensor] = []
    recipe: list[int] = []
    params: list[float] = []
    for fill in map(ready, fills):
        initializer, region = fill.initializer, fill.region
        words = initializer.words if isinstance(initializer, Pattern) else (fill.seed, fill.stream)
        own, box = initializer.params, () if region is None else (*region.shape, *region.offsets)
        recipe += (initializer.kind, *map(to_signed, words), len(own), len(box) // 2, len(initializer.steps))
        if fill.second is not None and initializer.draws == 2:
            recipe.append(to_signed(fill.second))
        elif isinstance(initializer, Bits):
            recipe += (to_signed(initializer.offset), initializer.offset >> 64)
        recipe += box
        params += own
        if isinstance(initializer, Program):
            recipe.append(DTYPE_CODES[initializer.dtype])
            for step in initializer.steps:
                recipe += (step.op, DTYPE_CODES[step.dtype])
                params.append(step.operand)
        tensors.append(fill.tensor)
    return tensors, recipe, params


_MASK64 = 2**64 - 1
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


def _decode_one(tensor: torch.Tensor, recipe: Iterator[int], params: Iterator[float]) -> Fill:
    def take(count: int) -> tuple[int, ...]:
        return tuple([next(recipe) for _ in range(count)])

    kind, word0, word1, count, dims, steps = take(6)
    if min(count, dims, steps) < 0:
        raise ValueError("a negative number of parameters, dimensions or steps")
    own = [next(params) for _ in range(count)]
    seed, stream, second = word0 & _MASK64, word1 & _MASK64, None
    initializer: Initializer
    if kind == Kind.CONSTANT and not own:
        initializer, seed, stream = Pattern((word0, word1)), 0, 0
    elif kind == Kind.BITS and not own:
        low, high = take(2)
        if not 0 <= high < 4:
            raise ValueError("an offset of raw bits has 66 bits")
        initializer = Bits(high << 64 | low & _MASK64)
    else:
        initializer = Initializer.of(kind, own)
        if kind == Kind.SPARSE:
            second = take(1)[0] & _MASK64
    region = Region(take(dims), take(dims)) if dims else None
    if steps:
        dtype, codes = _DTYPES[next(recipe)], take(2 * steps)
        pairs = zip(codes[::2], codes[1::2], strict=True)
        program = tuple([Step(Op(op), next(params), _DTYPES[code]) for op, code in pairs])
        initializer = Program(initializer, dtype, program)
    return Fill(tensor, initializer, seed, stream, region, second)


def decode(tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]) -> list[Fill]:
    """The inverse of `encode`. `ValueError` says what is malformed: nothing has been written then."""
    numbers, operands = iter(recipe), iter(params)
    try:
        fills = [_decode_one(tensor, numbers, operands) for tensor in tensors]
    except StopIteration:
        raise ValueError("malformed batch: it has fewer numbers than its fills take") from None
    except KeyError as error:
        raise ValueError(f"malformed batch: {error} is no dtype") from None
    except (ValueError, OverflowError) as error:
        raise ValueError(f"malformed batch: {error}") from None
    if next(numbers, None) is not None or next(operands, None) is not None:
        raise ValueError("malformed batch: it has more numbers than its fills take")
    return fills


# ---- The ops --------------------------------------------------------------------------------------------------------


def _fill_batch(tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]) -> None:
    if tensors:
        provider_for(tensors[0].device).run(decode(tensors, recipe, params), False)


def _fill(tensor: torch.Tensor, kind: int, params: Sequence[float], generator: torch.Generator | None = None) -> None:
    initializer = Initializer.of(kind, params)
    provider_for(tensor.device).run((Fill(tensor, initializer, draw_seed(generator), 0, None, EAGER_SECOND),), False)


def _nothing(*args: object, **kwargs: object) -> None:
    """The fake implementation of an op that returns nothing and changes no shape."""


for _device in DEVICES:
    _library.impl("fill_batch_", _fill_batch, _device.upper())
    _library.impl("fill_", _fill, _device.upper())
for _name in ("fill_batch_", "fill_"):
    # Fake tensors take it too; torch.library.register_fake would go through all loaded modules for where it was called.
    _library.impl(_name, _nothing, "Meta")
    # A fill has no derivative and leaves the tensor's history alone, as torch's initialisers do under no_grad.
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")

# Overloads rather than packets: a third of a microsecond a call.
_fill_batch_op = torch.ops.fastinit.fill_batch_.default
_fill_op = torch.ops.fastinit.fill_.default


def fill(fills: Sequence[Fill], *, fresh: bool = False) -> None:
    """Run a batch of fills, all on one device.

    `fresh` says that the caller has just made the tensors, ordinary ones in memory that is probably new: then the
    backend is called without torch's dispatcher, which would carry every number of the batch to and fro, unless
    something watches this thread.
    """
    if not fills:
        return
    device = fills[0].tensor.device
    if fresh and device.type in DEVICES and not watched():
        provider_for(device).run(map(ready, fills), True)
    else:
        _fill_batch_op(*encode(fills))


def fill_one(tensor: torch.Tensor, initializer: Initializer, generator: torch.Generator | None = None) -> None:
    """Fill one tensor with random values, as one op that draws its seed from `generator` (default: torch's)."""
    if generator is not None:
        check_generator(generator)
    if tensor.dtype not in RANDOM_DTYPES and tensor.numel() == 0 and not isinstance(initializer, Uniform):
        return  # where torch, too, looks at no dtype
    fill = ready(Fill(tensor, initializer, 0, 0, None, EAGER_SECOND))
    keywords = {} if generator is None else {"generator": generator}
    _fill_op(fill.tensor, fill.initializer.kind, fill.initializer.params, **keywords)


def fill_fresh(tensor: torch.Tensor, initializer: Initializer, generator: torch.Generator | None = None) -> None:
    """`fill_one` of a tensor that the caller has just made: where nobody watches this thread, without an op."""
    plain = type(tensor) is torch.Tensor and tensor.device.type in DEVICES
    if torch.compiler.is_compiling() or not plain or watched():
        fill_one(tensor, initializer, generator)
        return
    if generator is not None:
        check_generator(generator)
    made = ready(Fill(tensor, initializer, draw_seed(generator), 0, None, EAGER_SECOND))
    provider_for(tensor.device).run((made,), True)


def check_generator(generator: object) -> None:
    """Raise for what is no generator."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, not {type(generator).__name__}")


def check_layout(tensor: torch.Tensor, name: str) -> None:
    """Raise, as torch does, for a sparse or nested tensor: fills write by strides. `name` is of what would write."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "nested" if tensor.is_nested else f"{tensor.layout}"
        raise NotImplementedError(f"{name} is not implemented for a {kind} tensor; it writes strided ones")


def refuse_inference_update(tensor: torch.Tensor) -> None:
    """Raise what an in-place operation of torch raises for an inference tensor outside of inference mode."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Inplace update to inference tensor outside InferenceMode is not allowed. "
            "You can make a clone to get a normal tensor before doing inplace update."
        )
