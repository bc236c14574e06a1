"""Initial values of big PyTorch models, in one pass: a pure function of (seed, name, logical index)."""

from torch_fastinit.backend import backends
from torch_fastinit.stream import stream_id

__all__ = ["backends", "stream_id"]

__version__ = "0.1.0"
