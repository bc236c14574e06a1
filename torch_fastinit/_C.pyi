from collections.abc import Sequence
from typing import Any

def fill_cpu(info: Sequence[int], recipe: Sequence[int], params: Sequence[float], threads: int) -> None:
    """Run a batch of fills on ``threads`` threads, without the GIL."""

def lowered(tensors: Sequence[int], recipe: Sequence[int], params: Sequence[float]) -> list[dict[str, Any]]:
    """The fills of a batch, their layouts merged and every constant derived: csrc/fill.h, as dictionaries."""

def has_cuda() -> bool:
    """Whether this build has CUDA kernels; if not, the two functions below are missing."""

def cuda_error() -> str:
    """Why this machine cannot run the CUDA kernels; empty if it can."""

def fill_cuda(tensors: Sequence[int], recipe: Sequence[int], params: Sequence[float], device: int, stream: int) -> None:
    """Enqueue a batch of fills on a CUDA stream; RuntimeError, which names the cause, if CUDA refuses."""

def instruction_set() -> str:
    """The instruction set in use."""

def instruction_sets() -> list[str]:
    """The instruction sets that this machine and this build have, best first."""

def set_instruction_set(name: str) -> None:
    """Use this one of ``instruction_sets()`` from now on; ValueError if it is not among them."""
