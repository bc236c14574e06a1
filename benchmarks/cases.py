"""What is measured, and the one way to measure it: used by ``bench.py``, ``sweeps.py`` and ``pytest benchmarks/``."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import torch_fastinit as fastinit
from benchmarks.observe import ResidentMemory
from torch_fastinit import _C

Fill = Callable[[torch.Tensor], object]

#: What may be measured beside ``ours``: torch, its stateless generators, and the write roof.
CONTESTANTS = {"torch": "torch", "torch.func": "torch.func._random", "ours": "fastinit", "zero_": "zero_()"}


@dataclass(frozen=True)
class Case:
    """One fill, by torch and by torch_fastinit."""

    name: str
    dtype: torch.dtype
    #: None: torch cannot.
    theirs: Fill | None
    ours: Fill
    #: None: as many elements as the run asks for, in one dimension.
    shape: tuple[int, ...] | None = None
    #: Instruction set to force; None: the one that is in use anyway.
    instruction_set: str | None = None
    #: Torch takes minutes: it warms up on a part of the tensor, and has one round.
    slow: bool = False

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


# Measuring ------------------------------------------------------------------------------------------------------------

#: Seconds before each run: torch's OpenMP threads spin for some milliseconds after their work, at the cost of the next.
REST = 0.01
#: Seconds that a fill of the tables is repeated for, if one takes less: alone it would show how cold the caches are.
LEAST = 0.01


@dataclass(frozen=True)
class Contestant:
    """Something that is timed."""

    name: str
    #: Gets what ``prepare`` returned. What it returns is dropped after the clock has stopped.
    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    #: The discarded run, where ``run`` takes too long to be thrown away.
    warm_up: Callable[[Any], object] | None = None
    #: At most so many rounds.
    rounds: int | None = None


@dataclass
class Measured:
    """The timed runs of a contestant."""

    seconds: list[float] = field(default_factory=list)
    #: Peak of resident memory above what was there before, in bytes.
    peak: int = 0
    #: First touches of memory in one run, counted by the system.
    faults: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def alternate(
    contestants: Sequence[Contestant],
    rounds: int = 5,
    *,
    patience: float = math.inf,
    least: float = 0.0,
    memory: bool = False,
) -> dict[str, Measured]:
    """Time the contestants in turn, ``rounds`` times after a discarded one.

    A run that is shorter than ``least`` seconds is repeated until it is not, and its mean counts. A contestant whose
    rounds would take longer than ``patience`` seconds together gets fewer, but one at least. ``memory``: look at the
    peak of resident memory too, between the runs.
    """
    results = {c.name: Measured() for c in contestants}
    left, repeats = {}, {}
    for c in contestants:
        argument = c.prepare()
        first = _seconds(c.warm_up or c.run, argument, 1)
        if first < least:  # a second time, since the first one may have loaded something
            first = _seconds(c.run, c.prepare(), 1)
        repeats[c.name] = max(1, math.ceil(least / max(first, 1e-7)))
        affordable = 1 if first > patience else int(min(rounds, patience / max(first * repeats[c.name], 1e-9)))
        left[c.name] = max(1, min(affordable, c.rounds or rounds))
    for _ in range(rounds):
        for c in contestants:
            if left[c.name] == 0:
                continue
            left[c.name] -= 1
            argument = c.prepare()
            time.sleep(REST)
            watch = ResidentMemory(collect=False) if memory else None
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            results[c.name].seconds.append(_seconds(c.run, argument, repeats[c.name]))
            results[c.name].faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
            if watch:
                results[c.name].peak = max(results[c.name].peak, watch.peak())
    return results


def _seconds(run: Callable[[Any], object], argument: Any, repeats: int) -> float:
    if repeats == 1:
        start = time.perf_counter()
        result = run(argument)
        seconds = time.perf_counter() - start
        del result
        return seconds
    start = time.perf_counter()
    for _ in range(repeats):
        run(argument)
    return (time.perf_counter() - start) / repeats


# Cases ----------------------------------------------------------------------------------------------------------------


@functools.cache
def stateless(dtype: torch.dtype, device: str = "cpu") -> tuple[Any, str]:
    """``torch.func._random``, and an empty string; or None, and why it cannot fill a tensor of this dtype there."""
    try:
        module = importlib.import_module("torch.func._random")
        key = module.key(0, device=device)
        for name in ("uniform_", "normal_"):
            getattr(module, name)(key, torch.empty(8, dtype=dtype, device=device))
    except (ImportError, NotImplementedError, RuntimeError) as error:
        return None, str(error).split(". ")[0].splitlines()[0]
    return module, ""


def stateless_fill(name: str, dtype: torch.dtype) -> Fill | None:
    """``torch.func._random``'s fill of this name, where there is one for the CPU."""
    module, _ = stateless(dtype)
    if module is None or name not in ("uniform_", "normal_"):
        return None
    key = module.key(0)
    return lambda t: getattr(module, name)(key, t)


def sparse(init: object, t: torch.Tensor) -> torch.Tensor:
    return init.sparse_(t, sparsity=0.9, std=0.01)


#: U(-10, 10), of which what is nearer to 0 than 5 is 0.
GAP = [
    (0.25, functools.partial(fastinit.init.uniform_, a=-10, b=-5)),
    (0.5, 0),
    (0.25, functools.partial(fastinit.init.uniform_, a=5, b=10)),
]


def uniform_with_a_gap(t: torch.Tensor) -> torch.Tensor:
    """The same, as people write it."""
    t.uniform_(-10, 10)
    return t.mul_(t.abs() >= 5)


def cases(side: int = 4096, tail: int = 1 << 20) -> list[Case]:
    """Every case: wide and narrow dtypes, the slow distributions, then each instruction set of this machine.

    ``side``: of the matrices, where a shape is given. ``tail``: elements of the far truncated normal, which takes torch
    minutes for a mebielement.
    """
    torch_init, ours = torch.nn.init, fastinit.init
    uniform = ("uniform_", torch_init.uniform_, ours.uniform_)
    normal = ("normal_", torch_init.normal_, ours.normal_)
    rows = [
        Case(name, dtype, theirs, our)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        for name, theirs, our in (uniform, normal)
    ]
    rows += [
        Case(name, dtype, None, our)  # torch has no random fill of these
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        for name, _, our in (uniform, normal)
    ]
    rows.append(Case("trunc_normal_", torch.float32, torch_init.trunc_normal_, ours.trunc_normal_))
    rows.append(
        Case(
            "trunc_normal_ [4, 8]",
            torch.float32,
            lambda t: far_tail(torch_init, t),
            lambda t: far_tail(ours, t),
            shape=(tail,),
            slow=True,
        )
    )
    rows.append(Case("mixture_", torch.float32, uniform_with_a_gap, lambda t: fastinit.mixture_(t, GAP)))
    rows.append(
        Case(
            "sparse_ 0.9", torch.float32, lambda t: sparse(torch_init, t), lambda t: sparse(ours, t), shape=(side, side)
        )
    )
    orthogonal = ("orthogonal_", torch.float32, torch_init.orthogonal_, ours.orthogonal_)
    half, quarter, eighth = side // 2, side // 4, side // 16
    rows += [Case(*orthogonal, shape=shape) for shape in ((64, 64), (128, 128), (512, 512))]
    rows += [Case(*orthogonal, shape=shape) for shape in ((half, half), (side, quarter), (quarter, side))]
    rows.append(
        Case(
            "orthogonal_, each",
            torch.float32,
            lambda t: each(torch_init.orthogonal_, t),
            lambda t: each(ours.orthogonal_, t),
            shape=(64, eighth, eighth),
        )
    )
    rows.append(Case("eye_", torch.float32, torch_init.eye_, ours.eye_, shape=(side, side)))
    rows.append(Case("ones_", torch.float32, torch_init.ones_, ours.ones_))
    rows += [
        Case(name, torch.float32, theirs, our, instruction_set=isa)
        for isa in _C.instruction_sets()[1:]
        for name, theirs, our in (uniform, normal)
    ]
    return rows


def each(function: Callable[[torch.Tensor], object], t: torch.Tensor) -> torch.Tensor:
    for matrix in t:
        function(matrix)
    return t


def far_tail(init: Any, t: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():  # "mean is more than 2 std from [a, b]": so it is
        warnings.simplefilter("ignore")
        return init.trunc_normal_(t, a=4.0, b=8.0)


@dataclass
class Result:
    """What every contestant took for a case, and what follows from the medians."""

    case: Case
    bytes: int
    measured: dict[str, Measured]

    @property
    def seconds(self) -> dict[str, list[float]]:
        return {who: m.seconds for who, m in self.measured.items()}

    def gigabytes(self, who: str) -> float | None:
        return self.bytes / self.measured[who].median / 1e9 if who in self.measured else None

    @property
    def speedup(self) -> float | None:
        theirs = self.gigabytes("torch")
        return None if theirs is None else self.gigabytes("ours") / theirs

    @property
    def share_of_roof(self) -> float:
        return self.gigabytes("ours") / self.gigabytes("zero_")

    def as_dict(self) -> dict[str, object]:
        return {
            "case": self.case.label,
            "name": self.case.name,
            "dtype": str(self.case.dtype).removeprefix("torch."),
            "instruction set": self.case.instruction_set,
            "bytes": self.bytes,
            "seconds": {who: [round(s, 9) for s in seconds] for who, seconds in self.seconds.items()},
            "speedup": self.speedup,
            "share_of_roof": self.share_of_roof,
            "GB/s": {who: self.gigabytes(who) for who in self.seconds},
            "peak": {who: m.peak for who, m in self.measured.items()},
        }


def contestants(case: Case, t: torch.Tensor) -> list[Contestant]:
    """Torch's fill, torch.func's, ours, and ``zero_()`` (the write roof), on one tensor."""
    fills: list[tuple[str, Fill | None]] = [
        ("torch", case.theirs),
        ("torch.func", stateless_fill(case.name, case.dtype)),
        ("ours", case.ours),
        ("zero_", torch.Tensor.zero_),
    ]
    part = t[: max(1, t.numel() // 1024)] if case.slow else None
    return [
        Contestant(
            who,
            lambda _, fill=fill: fill(t),
            warm_up=(lambda _, fill=fill: fill(part)) if case.slow and who == "torch" else None,
            rounds=1 if case.slow and who == "torch" else None,
        )
        for who, fill in fills
        if fill
    ]


def measure(case: Case, elements: int, rounds: int = 5, patience: float = math.inf, memory: bool = False) -> Result:
    """All contestants in turn on one tensor."""
    t = case.tensor(elements)
    with case.forced():
        measured = alternate(contestants(case, t), rounds, patience=patience, least=LEAST, memory=memory)
    return Result(case, t.nbytes, measured)


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
        "load average": f"{os.getloadavg()[0]:.1f}",
    }
