"""What a process can see of itself: its peak memory, where the time of a build goes, and what was built.

Shared by ``make demo``, ``make bench`` and ``make startup``.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch


class ResidentMemory:
    """Peak resident memory above the point where this object was made, in bytes."""

    def __init__(self, collect: bool = True) -> None:
        if collect:
            gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present size
            self._resets = True
        except OSError:  # not Linux, or not allowed: the peak of the whole process has to do
            self._resets = False
        self._start = self._read("VmRSS") if self._resets else self._read_peak()

    def peak(self) -> int:
        return self._read_peak() - self._start

    def _read_peak(self) -> int:
        if self._resets:
            return self._read("VmHWM")
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    @staticmethod
    def _read(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) * 1024


class Phases:
    """Splits the time from its start to ``stop()`` into construction, allocation and fill.

    Only what runs inside ``watched()`` is split: torch's profiler tells the operations that get memory (allocation)
    from those that compute elements (fill). All else, on either side of ``watched()`` or between the operations, is
    construction. Memory comes from the system at the first write, so that cost is part of the fill, whoever fills. On a
    GPU an operation takes the time of its launch, and the wait for the device at the end is part of the fill.
    """

    #: What gets memory and writes nothing.
    ALLOCATE = ("aten::empty", "aten::new_empty")
    #: What is neither: the time goes to whatever is around it.
    NEITHER = ("PythonDispatchMode", "PythonTLSSnapshot", "detach", "aten::detach")

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._aside = 0.0
        self._events: list[Iterable[Any]] = []
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        # The profiler's own start and end are set aside.
        before = time.perf_counter()
        profile = torch.autograd.profiler.profile(use_kineto=False)
        profile.__enter__()
        try:
            begin = time.perf_counter()
            yield
            end = time.perf_counter()
        finally:
            profile.__exit__(None, None, None)
        self._events.append(profile.function_events)
        self._aside += time.perf_counter() - before - (end - begin)

    def stop(self, device: str = "cpu") -> dict[str, float]:
        wait = time.perf_counter()
        if device != "cpu":
            torch.accelerator.synchronize()
        end = time.perf_counter()
        allocate = fill = 0.0
        for events in self._events:
            a, f = _split(events)
            allocate, fill = allocate + a, fill + f
        fill += end - wait
        total = end - self._start - self._aside
        self.seconds = {"construct": total - allocate - fill, "allocate": allocate, "fill": fill}
        return self.seconds


def _split(events: Iterable[Any]) -> tuple[float, float]:
    """Seconds in which memory was asked for, and seconds of all other operations."""
    spans = sorted((e.thread, e.time_range.start, -e.time_range.end, e.name) for e in events)
    spent = {"allocate": 0.0, "fill": 0.0}
    around: list[tuple[int, float, str]] = []  # the operations that a span lies in: thread, end, what they count as
    for thread, start, minus_end, name in spans:
        while around and (around[-1][0] != thread or around[-1][1] <= start):
            around.pop()
        outer = around[-1][2] if around else ""
        what = outer
        if not name.startswith(Phases.NEITHER) and outer != "allocate":
            what = "allocate" if name.startswith(Phases.ALLOCATE) else "fill"
            if what != outer:
                spent[what] += -minus_end - start
                if outer:
                    spent[outer] -= -minus_end - start
        around.append((thread, -minus_end, what))
    return spent["allocate"] / 1e6, spent["fill"] / 1e6


def describe(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Every tensor of a model: what can be compared without keeping the tensor."""
    rows: dict[str, dict[str, Any]] = {}
    first_name: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, t in tensors:
        row: dict[str, Any] = {
            "shape": list(t.shape),
            "stride": list(t.stride()),
            "dtype": str(t.dtype),
            "device": t.device.type,
            "requires_grad": t.requires_grad,
            "is_parameter": isinstance(t, torch.nn.Parameter),
            "tied_to": first_name.setdefault(id(t), name),
        }
        if row["tied_to"] == name and not t.is_meta:
            row |= statistics(t.detach().cpu())
        rows[name] = row
    return rows


def statistics(t: torch.Tensor) -> dict[str, Any]:
    """Mean and deviation in float64, a digest of the bits, and whether all elements are the same."""
    flat = t.reshape(-1)
    total = squares = 0.0
    for chunk in flat.split(1 << 20):  # a float64 copy that stays in the cache
        chunk = chunk.double()
        total += chunk.sum().item()
        squares += chunk.square().sum().item()
    n = max(flat.numel(), 1)
    mean = total / n
    return {
        "mean": mean,
        "std": max(squares / n - mean * mean, 0.0) ** 0.5,
        "digest": hashlib.blake2b(flat.view(torch.uint8).numpy(), digest_size=16).hexdigest(),
        "constant": bool((flat == flat[:1]).all()),
        "finite": bool(flat.isfinite().all()),
    }
