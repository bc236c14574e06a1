"""Seed, name and draw number -> key and stream of the generator (docs/stream.md, sections 1, 2 and 6)."""

from __future__ import annotations

import ctypes
import hashlib
import re
import threading
from collections.abc import Callable

import torch

from torch_fastinit.arguments import check_first

_MASK64 = (1 << 64) - 1

#: Segments that wrapper modules put into names: a wrapped model has the bare model's streams.
WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


_WRAPPED = re.compile("|".join(WRAPPER_SEGMENTS))


class _Scratch(threading.local):
    """One 64-bit integer a thread, to draw into as a tensor and to read as a number: a draw allocates nothing."""

    random_and_number: tuple[Callable[..., object], ctypes.c_int64] | None = None

    def make(self) -> tuple[Callable[..., object], ctypes.c_int64]:
        with torch.inference_mode(False):
            word = torch.empty((), dtype=torch.int64, device="cpu")
        # ctypes reads it in a third of the time that word.item() takes.
        self.random_and_number = word.random_, ctypes.c_int64.from_address(word.data_ptr())
        return self.random_and_number


_scratch = _Scratch()


def _blake2b_64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def canonical_name(name: str) -> str:
    """`name` without the segments that wrapper modules add.

    >>> canonical_name("_orig_mod.layers.0._checkpoint_wrapped_module.weight")
    'layers.0.weight'
    """
    if _WRAPPED.search(name) is None:
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPER_SEGMENTS)


def stream_id(name: str) -> int:
    """The 64-bit stream that holds the first draw of the tensor called `name`.

    Args:
        name: a parameter's or buffer's name as the root module gives it, such as `"layers.0.weight"`.

    Returns:
        An integer in `[0, 2**64)`: the little-endian BLAKE2b digest of 8 bytes of the name in UTF-8.

    Raises:
        TypeError: `name` is not a string.

    Example:
        >>> import torch_fastinit as fastinit
        >>> hex(fastinit.stream_id("lm_head.weight"))
        '0x7192019439b6cb46'
    """
    check_first(name, str, "stream_id")
    return _blake2b_64(name.encode())


def draw_stream(first: int, draw: int) -> int:
    """The stream of draw number `draw` of a tensor whose draw 0 has the stream `first`."""
    if draw == 0:
        return first
    return _blake2b_64((first & _MASK64).to_bytes(8, "little") + draw.to_bytes(8, "little"))


def mixed_seed(seed: int, stream: int) -> int:
    """A seed for one of torch's own generators, for a draw whose distribution no fill has."""
    return _blake2b_64((seed & _MASK64).to_bytes(8, "little") + (stream & _MASK64).to_bytes(8, "little"))


def draw_seed(generator: torch.Generator | None = None) -> int:
    """A fresh 64-bit seed (as a signed integer), from `generator` or torch's default CPU generator.

    A CUDA generator is read and advanced on the host, as one call of a Philox kernel would advance it: no
    synchronisation with the device.
    """
    if generator is not None and generator.device.type != "cpu":
        if generator.device.type != "cuda":
            raise RuntimeError(f"Expected a 'cpu' or 'cuda' generator, but found one for {generator.device.type!r}")
        offset = generator.get_offset()
        generator.set_offset(offset + 4)
        state = (generator.initial_seed() & _MASK64).to_bytes(8, "little") + offset.to_bytes(8, "little")
        return to_signed(_blake2b_64(state))
    random_, number = _scratch.random_and_number or _scratch.make()
    if generator is None:
        random_(-(2**63), None)
    else:
        random_(-(2**63), None, generator=generator)
    return number.value


def to_signed(word: int) -> int:
    """`word` modulo 2**64 as a signed 64-bit integer, which is what an op's `int` argument holds."""
    word &= _MASK64
    return word - (1 << 64) if word >> 63 else word
