"""Fills on a GPU: equality with the CPU, then speed by each backend, beside torch and the write roof. See gpu.sh.

    PYTHONPATH=tests python -m benchmarks.gpu FOLDER

Times are medians of device events; ``zero_()`` on the same tensor is the roof. ``--dry`` goes through everything on the
CPU with little tensors, to test this file where there is no GPU.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.layouts import LAYOUTS, batch, raw

import torch_fastinit as fastinit
from benchmarks.files import write_json
from torch_fastinit import backend
from torch_fastinit.initializers import Normal
from torch_fastinit.ops import Fill, fill

Call = Callable[[], object]

#: name, dtype, elements at full size, torch's fill, ours, rounds of torch's (some take seconds)
CASES: list[tuple[str, torch.dtype, int, Callable[[Any, torch.Tensor], object], int]] = [
    ("uniform_", torch.float32, 1 << 30, lambda m, t: m.uniform_(t), 7),
    ("normal_", torch.float32, 1 << 30, lambda m, t: m.normal_(t), 7),
    ("trunc_normal_", torch.float32, 1 << 28, lambda m, t: m.trunc_normal_(t), 3),
    ("uniform_", torch.bfloat16, 1 << 31, lambda m, t: m.uniform_(t), 7),
    ("normal_", torch.bfloat16, 1 << 31, lambda m, t: m.normal_(t), 7),
    ("trunc_normal_", torch.bfloat16, 1 << 28, lambda m, t: m.trunc_normal_(t), 3),
    ("uniform_", torch.float8_e4m3fn, 1 << 31, lambda m, t: m.uniform_(t), 0),
    ("normal_", torch.float64, 1 << 28, lambda m, t: m.normal_(t), 3),
    ("normal_ small", torch.float32, 4096, lambda m, t: m.normal_(t), 20),
    ("sparse_ 0.9", torch.float32, 4096 * 4096, lambda m, t: m.sparse_(t.view(4096, -1), 0.9), 1),
]


class Clock:
    """Seconds of a call on the device, or on the CPU where there is none."""

    def __init__(self, device: str) -> None:
        self.device = device

    def once(self, call: Call) -> float:
        if self.device == "cpu":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def median(self, call: Call, rounds: int) -> float:
        self.once(call)  # loads, compiles, warms
        return statistics.median(self.once(call) for _ in range(rounds))


def equality(device: str, name: str) -> dict[str, Any]:
    """Every layout and initializer on the device against the CPU's C++: the names of those that differ."""
    differ = []
    count = 0
    for title, layout in LAYOUTS.items():
        here: list[torch.Tensor] = []
        fills = batch(layout, here)
        there = [b.view(torch.uint8).to(device, copy=True).view(b.dtype) for b in here]
        moved = [
            Fill(layout.view(b), f.initializer, f.seed, f.stream, f.region) for f, b in zip(fills, there, strict=True)
        ]
        fill(fills)
        fill(moved)
        for f, a, b in zip(fills, here, there, strict=True):
            count += 1
            if not torch.equal(raw(a), raw(b)):
                differ.append(f"{title}: {f.initializer} {f.tensor.dtype}")
    return {"backend": name, "fills": count, "differ": differ}


def llama_8b() -> list[tuple[int, ...]]:
    """The shapes of a Llama 3 8B: 291 tensors, 16 GB in bfloat16."""
    hidden, kv, mlp, vocabulary = 4096, 1024, 14336, 128256
    square, small, wide = (hidden, hidden), (kv, hidden), (mlp, hidden)
    layer = [square, small, small, square, wide, wide, (hidden, mlp), (hidden,), (hidden,)]
    return [(vocabulary, hidden), *(shape for _ in range(32) for shape in layer), (hidden,), (vocabulary, hidden)]


def speed(device: str, names: list[str], scale: int, clock: Clock) -> list[dict[str, Any]]:
    rows = []
    for name, dtype, elements, call, rounds in CASES:
        t = torch.empty(elements if "sparse" in name and device != "cpu" else max(4096, elements // scale), dtype=dtype)
        t = t.to(device)
        row: dict[str, Any] = {"fill": f"{name} {str(dtype).removeprefix('torch.')}", "bytes": t.nbytes, "seconds": {}}
        row["seconds"]["zero_"] = clock.median(lambda t=t: t.zero_(), 7)
        if rounds:
            row["seconds"]["torch"] = clock.median(lambda call=call, t=t: call(torch.nn.init, t), rounds)
        for ours in names:
            fastinit.backends(**{device: ours})
            row["seconds"][ours] = clock.median(lambda call=call, t=t: call(fastinit.init, t), 7)
        rows.append(row)
        del t
    shapes = [shape if scale == 1 else tuple(max(1, n // 64) for n in shape) for shape in llama_8b()]
    tensors = [torch.empty(shape, dtype=torch.bfloat16, device=device) for shape in shapes]
    fills = [Fill(t, Normal(0.0, 0.02), 0, n) for n, t in enumerate(tensors)]
    row = {"fill": "Llama 8B, normal bfloat16", "bytes": sum(t.nbytes for t in tensors), "seconds": {}}
    row["seconds"]["zero_"] = clock.median(lambda: [t.zero_() for t in tensors], 5)
    row["seconds"]["torch"] = clock.median(lambda: [t.normal_(0.0, 0.02) for t in tensors], 3)
    for ours in names:
        fastinit.backends(**{device: ours})
        row["seconds"][ours] = clock.median(lambda: fill(fills), 5)
    return [*rows, row]


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    columns = ["fill", "GB", "zero_ GB/s", "torch GB/s"]
    for ours in names:
        columns += [f"{ours} GB/s", "of zero_", "x torch"]
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for row in rows:
        seconds = row["seconds"]
        rate = {who: row["bytes"] / s / 1e9 for who, s in seconds.items()}
        cells = [row["fill"], f"{row['bytes'] / 1e9:.3f}", f"{rate['zero_']:.1f}"]
        cells.append(f"{rate['torch']:.1f}" if "torch" in rate else "-")
        for ours in names:
            speedup = f"{rate[ours] / rate['torch']:.1f}" if "torch" in rate else "-"
            cells += [f"{rate[ours]:.1f}", f"{rate[ours] / rate['zero_']:.2f}", speedup]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def environment(device: str) -> dict[str, str]:
    found = {
        "torch_fastinit": fastinit.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU (dry run: no measurement)",
    }
    if device == "cuda":
        found["cuda"] = str(torch.version.cuda)
        found["memory GiB"] = f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f}"
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        pass
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder for gpu.json and gpu.md")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with little tensors")
    args = parser.parse_args()
    device = "cpu" if args.dry else "cuda"
    reasons = {name: backend.PROVIDERS[name].why_not(torch.device(device)) for name in backend.DEVICES[device]}
    names = [name for name, reason in reasons.items() if not reason]
    missing = {name: reason for name, reason in reasons.items() if reason}
    report: dict[str, Any] = {"environment": environment(device), "cannot serve": missing, "equality": []}
    for name in names:
        fastinit.backends(**{device: name})
        report["equality"].append(equality(device, name))
    rows = speed(device, names, 1 << 14 if args.dry else 1, Clock(device))
    report["speed"] = rows
    about = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    same = "\n".join(
        f"{e['backend']}: {e['fills'] - len(e['differ'])} of {e['fills']} fills bit-equal to the CPU's"
        for e in report["equality"]
    )
    text = f"{table(rows, names)}\n\nMedians; zero_() on the same tensor is the roof.\n{about}\n\n{same}\n"
    write_json(args.out / "gpu.json", report)
    (args.out / "gpu.md").write_text(text)
    print(text, end="")
    return int(any(e["differ"] for e in report["equality"]))


if __name__ == "__main__":
    sys.exit(main())
