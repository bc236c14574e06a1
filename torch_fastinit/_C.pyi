from collections.abc import Sequence
from typing import Any

# `tensors` are torch's, with a dictionary from dtypes to codes; or the list that layouts() gives, without one.

def layouts(tensors: Sequence[Any], codes: dict[Any, int]) -> list[int]:
    """Address, dtype code and layout of each tensor; a dtype that has no code is one of so many bytes.

    RuntimeError, as torch raises it, for a tensor whose elements share memory.
    """

def fill_cpu(
    tensors: Sequence[Any], codes: dict[Any, int] | None, recipe: Sequence[int], params: Sequence[float], threads: int
) -> None:
    """Run a batch of fills on ``threads`` threads; without the GIL, unless it is small."""

class BatchOnCpu:
    """A batch of fills that other threads have begun; its tensors' memory has to be there until it is finished.

    ``huge_pages`` asks the system for those, for large tensors.
    """

    def __init__(
        self,
        tensors: Sequence[Any],
        codes: dict[Any, int] | None,
        recipe: Sequence[int],
        params: Sequence[float],
        threads: int,
        huge_pages: bool,
    ) -> None: ...
    def finish(self) -> None:
        """Take part in what is left of it, without the GIL, and wait for the other threads."""

def lowered(
    tensors: Sequence[Any], codes: dict[Any, int] | None, recipe: Sequence[int], params: Sequence[float]
) -> list[dict[str, Any]]:
    """The fills of a batch, their layouts merged and every constant derived: csrc/fill.h, as dictionaries."""

def has_cuda() -> bool:
    """Whether this build has CUDA kernels; if not, the two functions below are missing."""

def cuda_error() -> str:
    """Why this machine cannot run the CUDA kernels; empty if it can."""

def fill_cuda(
    tensors: Sequence[Any],
    codes: dict[Any, int] | None,
    recipe: Sequence[int],
    params: Sequence[float],
    device: int,
    stream: int,
) -> None:
    """Enqueue a batch of fills on a CUDA stream; RuntimeError, which names the cause, if CUDA refuses."""

def instruction_set() -> str:
    """The instruction set in use."""

def instruction_sets() -> list[str]:
    """The instruction sets that this machine and this build have, best first."""

def set_instruction_set(name: str) -> None:
    """Use this one of ``instruction_sets()`` from now on; ValueError if it is not among them."""
