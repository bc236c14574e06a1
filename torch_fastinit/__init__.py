"""Initial values of big PyTorch models, in one pass: a pure function of (seed, name, logical index)."""

from torch_fastinit import init
from torch_fastinit.backend import backends
from torch_fastinit.context import deferred, is_deferred, skip_init
from torch_fastinit.materializer import materialize
from torch_fastinit.ops import random_bits_
from torch_fastinit.planner import plan
from torch_fastinit.stream import stream_id

__all__ = [
    "backends",
    "deferred",
    "init",
    "is_deferred",
    "materialize",
    "plan",
    "random_bits_",
    "skip_init",
    "stream_id",
]

__version__ = "0.1.0"
