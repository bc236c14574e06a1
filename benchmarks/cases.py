"""What is measured, and the one way to measure it: used by ``bench.py`` and by ``pytest benchmarks/``."""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import torch_fastinit as fastinit
from torch_fastinit import _C

Fill = Callable[[torch.Tensor], object]


@dataclass(frozen=True)
class Case:
    """One fill, by torch and by torch_fastinit."""

    name: str
    dtype: torch.dtype
    theirs: Fill
    ours: Fill
    #: None: as many elements as the run asks for, in one dimension.
    shape: tuple[int, ...] | None = None
    #: Instruction set to force; None: the one that is in use anyway.
    instruction_set: str | None = None

    @property
    def label(self) -> str:
        words = [self.name, str(self.dtype).removeprefix("torch.")]
        if self.shape:
            words.append("x".join(map(str, self.shape)))
        if self.instruction_set:
            words.append(self.instruction_set)
        return " ".join(words)

    def tensor(self, elements: int) -> torch.Tensor:
        return torch.zeros(self.shape or (elements,), dtype=self.dtype)

    @contextlib.contextmanager
    def forced(self) -> Iterator[None]:
        """A context with the case's instruction set."""
        before = _C.instruction_set()
        _C.set_instruction_set(self.instruction_set or before)
        try:
            yield
        finally:
            _C.set_instruction_set(before)


def sparse(init: object, t: torch.Tensor) -> torch.Tensor:
    return init.sparse_(t, sparsity=0.9, std=0.01)


def cases(sparse_side: int = 4096) -> list[Case]:
    """Every case: wide and narrow dtypes, the slow distributions, then each instruction set of this machine."""
    torch_init, ours = torch.nn.init, fastinit.init
    uniform = ("uniform_", torch_init.uniform_, ours.uniform_)
    normal = ("normal_", torch_init.normal_, ours.normal_)
    rows = [
        Case(name, dtype, theirs, our)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for name, theirs, our in (uniform, normal)
    ]
    rows.append(Case("trunc_normal_", torch.float32, torch_init.trunc_normal_, ours.trunc_normal_))
    rows.append(
        Case(
            "sparse_ 0.9",
            torch.float32,
            lambda t: sparse(torch_init, t),
            lambda t: sparse(ours, t),
            shape=(sparse_side, sparse_side),
        )
    )
    rows += [
        Case(name, torch.float32, theirs, our, instruction_set=isa)
        for isa in _C.instruction_sets()[1:]
        for name, theirs, our in (uniform, normal)
    ]
    return rows


@dataclass
class Result:
    """Seconds of every round, and what follows from their medians."""

    case: Case
    bytes: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def gigabytes(self, who: str) -> float:
        return self.bytes / statistics.median(self.seconds[who]) / 1e9

    @property
    def speedup(self) -> float:
        return self.gigabytes("ours") / self.gigabytes("torch")

    @property
    def share_of_roof(self) -> float:
        return self.gigabytes("ours") / self.gigabytes("zero_")

    def as_dict(self) -> dict[str, object]:
        return {
            "case": self.case.label,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "speedup": self.speedup,
            "share_of_roof": self.share_of_roof,
            "GB/s": {who: self.gigabytes(who) for who in self.seconds},
        }


def measure(case: Case, elements: int, rounds: int = 5) -> Result:
    """Torch, ours and ``zero_()`` (the write roof) in turn on one tensor, ``rounds`` times after a discarded one."""
    t = case.tensor(elements)
    fills: Sequence[tuple[str, Fill]] = (("torch", case.theirs), ("ours", case.ours), ("zero_", torch.Tensor.zero_))
    result = Result(case, t.nbytes, {who: [] for who, _ in fills})
    with case.forced():
        for i in range(1 + rounds):
            for who, fill in fills:
                start = time.perf_counter()
                fill(t)
                seconds = time.perf_counter() - start
                if i > 0:
                    result.seconds[who].append(seconds)
    return result


def environment() -> dict[str, str]:
    """Versions and hardware."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "torch_fastinit": fastinit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
        "instruction set": _C.instruction_set(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
    }
