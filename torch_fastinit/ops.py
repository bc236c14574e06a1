"""The two custom ops that every fill goes through, and the Python side of a fill.

``fastinit::fill_batch_`` writes many tensors with explicit seeds; ``fastinit::fill_`` writes one and draws its own
seed. Neither bumps a version counter: the public functions above them do. Neither refuses a leaf that requires
gradients: a fill is an initialisation, outside of the history that autograd keeps.

A batch travels as two flat lists. ``recipe`` holds, for each tensor::

    kind, word0, word1, number of params, dimensions of the region, number of steps,
    [logical shape ...], [offsets ...], [dtype of the draw, (op, dtype) of each step ...]

``word0, word1`` are the seed and the stream of the first draw; for a constant they are its bit pattern. A sparse fill
has the stream of its second draw behind its parameters, in two 32-bit halves, low first. A region of dimension 0 is the
whole tensor. ``params`` has the parameters and then one operand for each step.
"""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import profiler
from torch.overrides import has_torch_function_unary

from torch_fastinit.backend import DEVICES, DTYPE_CODES, begin, run
from torch_fastinit.initializers import Bits, Constant, Initializer, Kind, Normal, Program, Uniform
from torch_fastinit.stream import draw_seed, draw_stream, to_signed

__all__ = ["RANDOM_DTYPES", "Fill", "Region", "fill", "fill_one", "random_bits_"]

#: dtypes that a random fill can write (complex ones as pairs of reals).
RANDOM_DTYPES = frozenset(DTYPE_CODES) - {torch.int32}

_library = torch.library.Library("fastinit", "DEF")
_library.define("fill_batch_(Tensor(a!)[] tensors, int[] recipe, float[] params) -> ()")
_library.define(
    "fill_(Tensor(a!) tensor, int kind, float[] params, *, Generator? generator=None) -> ()",
    tags=(torch.Tag.nondeterministic_seeded,),
)


@dataclass(slots=True, unsafe_hash=True)
class Region:
    """The box ``[offsets, offsets + tensor.shape)`` of a logical tensor of shape ``shape``."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(slots=True)
class Fill:
    """Where an initializer's values go: a tensor, the stream that they come from, and the part of it that this is.

    ``second`` is the stream of the second draw, for an initializer that takes two. By default it is that of draw 1 of a
    tensor whose draw 0 is ``stream``; a fill that is not a tensor's first draw must say.
    """

    tensor: torch.Tensor
    initializer: Initializer
    seed: int = 0
    stream: int = 0
    region: Region | None = None
    second: int | None = None


#: So many fills are handed to a backend at a time, and so many times before the first of them has to be done: other
#: threads are at them while Python describes the next ones.
_TOGETHER, _AHEAD = 256, 4


def fill(fills: Sequence[Fill], *, fresh: bool = False) -> None:
    """Run a batch of fills (all on one device), as one op.

    ``fresh`` says that the caller has just made the tensors, ordinary ones in memory that is probably new: then the
    backend is called without torch's dispatcher, which would carry every number of the batch to and fro, unless
    something watches this thread.
    """
    if not fills:
        return
    device = fills[0].tensor.device.type
    if not fresh or device not in DEVICES or _watched():
        _fill_batch_op(*_described(fills))
    elif device != "cpu":
        run(device, *_described(fills))
    else:
        _fill_by_and_by(fills)


def _fill_by_and_by(fills: Sequence[Fill]) -> None:
    """Fills of fresh CPU memory. Whatever is raised, those that have begun are finished: nobody writes afterwards."""
    begun: deque[Callable[[], None]] = deque()
    try:
        for first in range(0, len(fills), _TOGETHER):
            if len(begun) == _AHEAD:
                begun.popleft()()
            begun.append(begin("cpu", *_described(fills[first : first + _TOGETHER])))
    finally:
        try:  # twice, so that an interrupt of the one leaves the other
            _finish(begun)
        finally:
            _finish(begun)


def _finish(begun: deque[Callable[[], None]]) -> None:
    for finish in begun:
        finish()


def _described(fills: Sequence[Fill]) -> tuple[list[torch.Tensor], list[int], list[float]]:
    """A batch as it travels: tensors, recipe, params."""
    tensors: list[torch.Tensor] = []
    recipe: list[int] = []
    params: list[float] = []
    for f in fills:
        tensor, initializer, region = f.tensor, f.initializer, f.region
        if tensor.dtype not in RANDOM_DTYPES:
            tensor, initializer = _as_real(tensor, initializer)
            if region is not None and tensor is not f.tensor:
                region = Region((*region.shape, 2), (*region.offsets, 0))
            _check_dtype(tensor, initializer)
        if isinstance(initializer, Constant):
            words = constant_words(initializer.value, tensor.dtype)
        else:
            words = (to_signed(f.seed), to_signed(f.stream))
        where = () if region is None else (*region.shape, *region.offsets)
        own = initializer.params
        if initializer.draws == 2:
            own = (*own, *_halves(draw_stream(f.stream, 1) if f.second is None else f.second))
        tensors.append(tensor)
        program = initializer if isinstance(initializer, Program) else None
        recipe += (initializer.kind, *words, len(own), len(where) // 2, len(program.steps) if program else 0, *where)
        params += own
        if program:
            recipe.append(DTYPE_CODES[program.dtype])
            for step in program.steps:
                recipe += (step.op, DTYPE_CODES[step.dtype])
                params.append(step.operand)
    return tensors, recipe, params


def _key_set(*names: str) -> int:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined)
    for name in names:
        keys = keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return keys.raw_repr()


#: What an ordinary tensor in CPU memory is to torch's dispatcher, and what a thread adds in which nothing is on.
_PLAIN_TENSOR = _key_set("CPU", "AutogradCPU", "ADInplaceOrView", "AutocastCPU")
_PLAIN_THREAD = _key_set("BackendSelect", "ADInplaceOrView")
_keys_of_tensor = torch._C._dispatch_keys
_keys_of_thread = torch._C._dispatch_tls_local_include_set


def _watched() -> bool:
    """Whether torch would show the ops of this thread to anybody: modes, function transforms, tracers, profilers."""
    return _keys_of_thread().raw_repr() != _PLAIN_THREAD or profiler._is_profiler_enabled


def fill_plain(tensor: torch.Tensor, initializer: Initializer, generator: torch.Generator | None) -> bool:
    """:func:`fill_one` without torch's dispatcher, which would take longer than all the rest of a small fill.

    Does nothing and returns False where the dispatcher has more to do than to call the op's CPU kernel, which is what
    this calls: for a subclass, another device, a lazy view, an inference tensor, and under a mode, a function
    transform, a tracer or a profiler.
    """
    if (
        tensor.dtype not in RANDOM_DTYPES
        or has_torch_function_unary(tensor)
        or _keys_of_tensor(tensor).raw_repr() != _PLAIN_TENSOR
        or _watched()
    ):
        return False
    _fill_one("cpu", tensor, initializer.kind, initializer.params, generator)
    return True


def fill_one(tensor: torch.Tensor, initializer: Initializer, generator: torch.Generator | None = None) -> None:
    """Fill one tensor with random values under a seed drawn from ``generator`` (default: torch's CPU generator)."""
    if tensor.dtype not in RANDOM_DTYPES:
        if tensor.numel() == 0 and not isinstance(initializer, Uniform):
            return  # where torch, too, looks at no dtype
        tensor, initializer = _as_real(tensor, initializer)
        _check_dtype(tensor, initializer)
    if generator is None:
        _fill_op(tensor, initializer.kind, initializer.params)
    else:
        _fill_op(tensor, initializer.kind, initializer.params, generator=generator)


def random_bits_(tensor: torch.Tensor, *, seed: int, stream: int, offset: int = 0) -> torch.Tensor:
    """Fill an int32 tensor with raw words of the random stream.

    Element ``i`` (row-major, whatever the memory layout) is word ``offset + i`` of stream ``stream`` under ``seed``:
    word ``n`` is word ``n % 4`` of Philox4x32-10 with the key ``seed`` and the counter ``(n // 4, stream)``, each 64
    bits, low word first. Words are uniform on [-2**31, 2**31). The result depends on nothing but the arguments.

    Args:
        tensor: an int32 tensor of any shape and strides.
        seed: the key; taken modulo 2**64.
        stream: the upper half of the counter; taken modulo 2**64. See :func:`torch_fastinit.stream_id`.
        offset: the word that the first element receives, in [0, 2**66). Words past 2**66 wrap to word 0.

    Returns:
        ``tensor``.

    Raises:
        TypeError: ``tensor`` is not int32.
        ValueError: ``offset`` is outside [0, 2**66).
        RuntimeError: elements of ``tensor`` share memory.

    Reference:
        Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
        https://doi.org/10.1145/2063384.2063405

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> words = fastinit.random_bits_(torch.empty(4, dtype=torch.int32), seed=0, stream=0)
        >>> [hex(word % 2**32) for word in words.tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    if tensor.dtype is not torch.int32:
        raise TypeError(f"random_bits_ fills an int32 tensor, but tensor has dtype {tensor.dtype}")
    seed, stream, offset = operator.index(seed), operator.index(stream), operator.index(offset)
    if not 0 <= offset < 1 << 66:
        raise ValueError(f"random_bits_ needs 0 <= offset < 2**66, but offset is {offset}")
    refuse_inference_update(tensor)
    fill([Fill(tensor, Bits(offset), seed, stream)])
    torch.autograd.graph.increment_version(tensor)
    return tensor


def refuse_inference_update(tensor: torch.Tensor) -> None:
    """Raise what an in-place operation of torch raises for an inference tensor outside of inference mode."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Inplace update to inference tensor outside InferenceMode is not allowed. "
            "You can make a clone to get a normal tensor before doing inplace update."
        )


def _as_real(tensor: torch.Tensor, initializer: Initializer) -> tuple[torch.Tensor, Initializer]:
    """A complex tensor as one of pairs of reals, with the distribution of each; anything else as it is."""
    if tensor.is_complex():
        if isinstance(initializer, Normal):
            return torch.view_as_real(tensor), initializer.component()
        if isinstance(initializer, Uniform):
            return torch.view_as_real(tensor), initializer
    return tensor, initializer


def _check_dtype(tensor: torch.Tensor, initializer: Initializer) -> None:
    """Raise, as torch does, for a dtype that ``initializer`` cannot be written into."""
    if initializer.kind is Kind.CONSTANT or tensor.dtype in RANDOM_DTYPES:
        return
    if initializer.kind is Kind.BITS and tensor.dtype is torch.int32:
        return
    known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in RANDOM_DTYPES))
    raise NotImplementedError(
        f"{initializer.kind.name.lower()} fill is not implemented for {tensor.dtype}; it writes {known}"
    )


def _halves(word: int) -> tuple[float, float]:
    """A 64-bit word as two parameters, low half first."""
    return float(word & 0xFFFFFFFF), float((word >> 32) & 0xFFFFFFFF)


@functools.lru_cache(maxsize=4096)
def _constant_words(value: complex | float | int | bool, dtype: torch.dtype, _key: str) -> tuple[int, int]:
    item = torch.empty((), dtype=dtype, device="cpu").fill_(value)
    raw = bytes(item.reshape(1).view(torch.uint8).tolist()).ljust(16, b"\0")
    return (
        int.from_bytes(raw[:8], "little", signed=True),
        int.from_bytes(raw[8:], "little", signed=True),
    )


def constant_words(value: complex | float | int | bool, dtype: torch.dtype) -> tuple[int, int]:
    """The bit pattern of ``value`` in ``dtype``, as ``Tensor.fill_`` converts it, padded to 16 bytes."""
    return _constant_words(value, dtype, repr(value))  # repr: 0.0 == -0.0 == False, and nan != nan


_SPARSE = int(Kind.SPARSE)
#: An eager fill takes draws 0, 1, ... of stream 0 of its own seed.
_EAGER_SECOND = _halves(draw_stream(0, 1))


def _fill_one(
    device: str,
    tensor: torch.Tensor,
    kind: int,
    params: Sequence[float],
    generator: torch.Generator | None = None,
) -> None:
    if kind == _SPARSE:
        params = (*params, *_EAGER_SECOND)
    run(device, (tensor,), (kind, draw_seed(generator), 0, len(params), 0, 0), params)


def _nothing(*args: object, **kwargs: object) -> None:
    """The fake implementation of an op that returns nothing and changes no shape."""


for _device in DEVICES:
    _library.impl("fill_batch_", functools.partial(run, _device), _device.upper())
    _library.impl("fill_", functools.partial(_fill_one, _device), _device.upper())
for _name in ("fill_batch_", "fill_"):
    # Fake tensors take it too; torch.library.register_fake would go through all loaded modules for where it was called.
    _library.impl(_name, _nothing, "Meta")
    # A fill has no derivative and leaves the tensor's history alone, as torch's initialisers do under no_grad.
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")

# Overloads rather than packets: a third of a microsecond a call.
_fill_batch_op = torch.ops.fastinit.fill_batch_.default
_fill_op = torch.ops.fastinit.fill_.default
