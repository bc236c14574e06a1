"""Fills on a GPU by each backend, beside torch and the write roof; the bits of each are compared with the CPU's.

    PYTHONPATH=tests python -m benchmarks.gpu FOLDER

gpu.json and gpu.md are written anew after each row, so whatever ends the run leaves what was measured. What raises is
recorded in its row, and the rest goes on; where an error has taken the device with it, the exit status is LOST, and a
call with ``--resume`` goes on with the next row in a new process. ``--dry`` goes through everything on the CPU, with
little tensors: csrc/cuda.cu as ordinary C++ (tests/support/shim.py), Triton in its interpreter. See gpu.sh.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import torch_fastinit as fastinit
from benchmarks.files import write_json
from benchmarks.sweeps import by_threads, cores, powers_of_two
from torch_fastinit import backend
from torch_fastinit.initializers import Bits, Constant, Initializer, Normal, Sparse, TruncatedNormal, Uniform
from torch_fastinit.ops import Fill, Region, fill

Call = Callable[[], object]
Row = dict[str, Any]

#: The exit status when the device has to be opened again.
LOST = 3
#: Seconds after which a row has no further round.
PATIENCE = 6.0
#: The most bytes of a tensor that are compared with the CPU's; of a longer one both ends.
COMPARED = 1 << 27


@dataclass
class Place:
    """Where rows are measured: a GPU, or the CPU in a dry run."""

    device: str
    dry: bool

    def elements(self, n: int) -> int:
        return max(1024, n >> 21) if self.dry else n

    def side(self, n: int) -> int:
        return max(1, n >> 9) if self.dry else n

    @property
    def rounds(self) -> int:
        return 0 if self.dry else 7  # besides the one that loads, compiles and warms

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Call, calls: int, host: bool) -> float:
        """Of a call: with what the host does if ``host``, else by the device's clock."""
        if host or self.device == "cpu":
            self.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            self.synchronize()
            return (time.perf_counter() - start) / calls
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(2_000_000)  # a millisecond, in which the host gets ahead of the device
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


@dataclass
class Material:
    """What a row measures: ours by each backend, the others by themselves."""

    bytes: int
    ours: Call
    others: dict[str, Call]
    fills: list[Fill] = field(default_factory=list)  # compared with the CPU's
    host: bool = False
    calls: int = 1


Case = Callable[[Place], Material]


def zero(tensors: list[torch.Tensor]) -> object:
    return tensors[0].zero_() if len(tensors) == 1 else torch._foreach_zero_(tensors)


def one(initializer: Initializer, dtype: torch.dtype, n: int, torchs: Callable[[torch.Tensor], object] | None) -> Case:
    """A contiguous tensor of ``n`` elements."""

    def build(place: Place) -> Material:
        t = place.empty(place.elements(n), dtype=dtype)
        fills = [Fill(t, initializer, 5, 7)]
        others = {"zero_": lambda: zero([t])} | ({"torch": lambda: torchs(t)} if torchs else {})
        return Material(t.nbytes, lambda: fill(fills), others, fills)

    return build


def matrix(
    initializer: Initializer, rows: int, columns: int, of: int, torchs: Callable[[torch.Tensor], object]
) -> Case:
    """The first ``columns`` columns of a float32 matrix that has ``of``."""

    def build(place: Place) -> Material:
        t = place.empty(place.side(rows), place.side(columns))
        fills = [Fill(t, initializer, 5, 7, Region((place.side(rows), place.side(of)), (0, 0)))]
        return Material(t.nbytes, lambda: fill(fills), {"zero_": lambda: zero([t]), "torch": lambda: torchs(t)}, fills)

    return build


def many(shapes: Callable[[Place], list[tuple[int, ...]]], dtype: torch.dtype) -> Case:
    """Normal fills of many tensors as one batch; the host's part counts."""

    def build(place: Place) -> Material:
        tensors = [place.empty(*shape, dtype=dtype) for shape in shapes(place)]
        fills = [Fill(t, Normal(0.0, 0.02), 5, n) for n, t in enumerate(tensors)]
        others = {"zero_": lambda: zero(tensors), "torch": lambda: [t.normal_(0.0, 0.02) for t in tensors]}
        return Material(sum(t.nbytes for t in tensors), lambda: fill(fills), others, fills, host=True)

    return build


def eager(name: str) -> Case:
    """A function of ``init`` on a tensor of 4,096 elements, again and again."""

    def build(place: Place) -> Material:
        t = place.empty(4096)
        ours, torchs = getattr(fastinit.init, name), getattr(torch.nn.init, name)
        others = {"zero_": lambda: zero([t]), "torch": lambda: torchs(t)}
        return Material(t.nbytes, lambda: ours(t), others, host=True, calls=1 if place.dry else 200)

    return build


def llama_8b() -> list[tuple[int, ...]]:
    """The shapes of a Llama 3 8B: 291 tensors, 16 GB in bfloat16."""
    hidden, kv, mlp, vocabulary = 4096, 1024, 14336, 128256
    square, small, wide = (hidden, hidden), (kv, hidden), (mlp, hidden)
    layer = [square, small, small, square, wide, wide, (hidden, mlp), (hidden,), (hidden,)]
    return [(vocabulary, hidden), *(shape for _ in range(32) for shape in layer), (hidden,), (vocabulary, hidden)]


def shapes_of(place: Place) -> list[tuple[int, ...]]:
    """Those, or in a dry run the first few, smaller."""
    return [tuple(place.side(n) for n in shape) for shape in llama_8b()[: 4 if place.dry else None]]


def whole_model(place: Place) -> Material:
    """Linear layers of those shapes from construction to weights in place, by torch's default initialisation."""
    shapes = [shape for shape in shapes_of(place) if len(shape) == 2]

    def build(device: str) -> torch.nn.Module:
        layers = [torch.nn.Linear(i, o, bias=False, dtype=torch.bfloat16, device=device) for o, i in shapes]
        return torch.nn.Sequential(*layers)

    def ours() -> object:
        with fastinit.deferred():
            module = build("cpu")
        return fastinit.materialize(module, device=place.device, seed=0)

    nbytes = sum(2 * o * i for o, i in shapes)
    return Material(nbytes, ours, {"torch": lambda: build(place.device)}, host=True)


def cases() -> dict[str, Case]:
    """Every row, the most wanted first."""
    f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    init = torch.nn.init
    found: dict[str, Case] = {}
    for dtype in (f32, bf16, e4m3, f64, f16, e5m2):
        n = {8: 1 << 28, 4: 1 << 30, 2: 1 << 31, 1: 1 << 31}[dtype.itemsize]
        has = dtype.itemsize > 1  # torch draws no float8
        name = str(dtype).removeprefix("torch.")
        found[f"uniform {name}"] = one(Uniform(), dtype, n, init.uniform_ if has else None)
        found[f"normal {name}"] = one(Normal(), dtype, n, init.normal_ if has else None)
        found[f"truncated normal {name}"] = one(TruncatedNormal(), dtype, n >> 1, init.trunc_normal_ if has else None)
        if dtype is f32:
            narrow, tails, far = TruncatedNormal(0.0, 0.02), TruncatedNormal(0.0, 1.0, -4.0, 4.0), (8.0, 9.0)
            cut = {a: functools.partial(init.trunc_normal_, a=-a, b=a) for a in (2.0, 4.0)}
            found["trunc_normal_(std=0.02) float32"] = one(narrow, f32, n >> 1, functools.partial(cut[2.0], std=0.02))
            found["truncated normal [-4, 4] float32"] = one(tails, f32, n >> 1, cut[4.0])
            found["truncated normal [8, 9] float32"] = one(TruncatedNormal(0.0, 1.0, *far), f32, 1 << 28, None)
        if dtype is bf16:
            found["Llama 8B, normal bfloat16"] = many(shapes_of, bf16)
            found["Llama 8B's linear layers, deferred and materialized"] = whole_model
            found["10,000 tensors of 1,024, normal float32"] = many(
                lambda place: [(1024,)] * (5 if place.dry else 10_000), f32
            )
    found["uniform_ of 4,096 float32, eager"] = eager("uniform_")
    found["normal_ of 4,096 float32, eager"] = eager("normal_")
    found["trunc_normal_ of 4,096 float32, eager"] = eager("trunc_normal_")
    found["column shard 65536 x 512 of 4096, uniform float32"] = matrix(Uniform(), 65536, 512, 4096, init.uniform_)
    found["column shard 65536 x 512 of 4096, normal float32"] = matrix(Normal(), 65536, 512, 4096, init.normal_)
    found["sparse 0.9, 4096 x 4096 float32"] = matrix(
        Sparse(0.9, 0.01), 4096, 4096, 4096, functools.partial(init.sparse_, sparsity=0.9)
    )
    found["constant float32"] = one(Constant(1.5), f32, 1 << 30, lambda t: t.fill_(1.5))
    found["constant bfloat16"] = one(Constant(1.5), bf16, 1 << 31, lambda t: t.fill_(1.5))
    found["bits int32"] = one(Bits(), torch.int32, 1 << 30, lambda t: t.random_())
    return found


@contextlib.contextmanager
def served(device: str, provider: backend.Provider) -> Iterator[None]:
    """Fills on the device by this backend."""
    before = backend.serving.get(device)
    backend.serving[device] = provider
    try:
        yield
    finally:
        if before is None:
            del backend.serving[device]
        else:
            backend.serving[device] = before


def raw(t: torch.Tensor) -> torch.Tensor:
    return t.reshape(-1).view(torch.uint8).cpu()


def differing(fills: list[Fill]) -> int:
    """How many elements have other bytes than the CPU's C++ gives them, of the first and the last tensor."""
    wrong = 0
    for f in {id(f.tensor): f for f in (fills[0], fills[-1])}.values():
        t = f.tensor
        if t.nbytes <= COMPARED:
            parts = [(t, f.region)]
        else:  # of one dimension, or without a region: rows
            width = max(1, t[0].numel())
            rows = max(1, (COMPARED >> 4) // (width * t.element_size()))
            starts = (0, len(t) // 2, len(t) - rows)
            parts = [(t[s : s + rows], Region(tuple(t.shape), (s,) + (0,) * (t.dim() - 1))) for s in starts]
        for part, region in parts:
            here = torch.empty(part.shape, dtype=part.dtype)
            with served("cpu", backend.PROVIDERS["cpu"]):
                fill([Fill(here, f.initializer, f.seed, f.stream, region)])
            different = (raw(part) != raw(here)).view(-1, part.element_size())
            wrong += int(different.any(1).sum())
    return wrong


def measure(name: str, case: Case, place: Place, providers: dict[str, backend.Provider]) -> Row:
    """A row, in which whatever raised is named with its error."""
    row: Row = {"fill": name, "bytes": 0, "host": False, "seconds": {}, "differ": {}, "errors": {}}

    def attempt(who: str, call: Call) -> object:
        try:
            return call()
        except Exception as error:
            row["errors"].setdefault(who, f"{type(error).__name__}: {error}"[:500])
            return None

    material: Any = attempt("memory", lambda: case(place))
    if material is None:
        return row
    row |= {"bytes": material.bytes, "host": material.host}
    runs = {who: (contextlib.nullcontext, call) for who, call in material.others.items()}
    for who, provider in providers.items():
        runs[who] = (functools.partial(served, place.device, provider), material.ours)
    seconds: dict[str, list[float]] = {}
    end = time.monotonic() + PATIENCE
    for n in range(place.rounds + 1):  # in turn
        for who, (context, call) in runs.items():
            if who in row["errors"]:
                continue
            with context():
                took = attempt(who, lambda call=call: place.seconds(call, material.calls, material.host))
                if took is not None and (n > 0 or place.dry):
                    seconds.setdefault(who, []).append(took)
                if n == 0 and who in providers and material.fills and took is not None:
                    row["differ"][who] = attempt(who, lambda: differing(material.fills))
        if n > 0 and time.monotonic() > end:
            break
    row["seconds"] = {who: statistics.median(times) for who, times in seconds.items() if who not in row["errors"]}
    row["rounds"] = max(map(len, seconds.values()), default=0)
    return row


def tables(rows: list[Row], names: list[str]) -> str:
    """Two tables, of the device's rate and of times with the host's part; then what raised."""
    out = []
    for host, title in ((False, "GB/s, by the device's clock"), (True, "microseconds, host included")):
        shown = [row for row in rows if row["host"] is host and row["bytes"]]
        columns = [title, "GB", "zero_", "torch"]
        for ours in names:
            columns += [ours, "of zero_", "x torch"]
        lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
        for row in shown:
            seconds = row["seconds"]

            def cell(who: str, row: Row = row, host: bool = host) -> str:
                if who not in row["seconds"]:
                    return "error" if who in row["errors"] else "-"
                s = row["seconds"][who]
                return f"{s * 1e6:.1f}" if host else f"{row['bytes'] / s / 1e9:.1f}"

            cells = [row["fill"], f"{row['bytes'] / 1e9:.3f}", cell("zero_"), cell("torch")]
            for ours in names:
                gains = [
                    f"{seconds[who] / seconds[ours]:.{digits}f}" if who in seconds and ours in seconds else "-"
                    for who, digits in (("zero_", 2), ("torch", 1))
                ]
                cells += [cell(ours), *gains]
            lines.append("| " + " | ".join(cells) + " |")
        out.append("\n".join(lines))
    errors = [f"- {row['fill']}, {who}: {error}" for row in rows for who, error in row["errors"].items()]
    if errors:
        out.append("Errors:\n\n" + "\n".join(errors))
    for ours in names:
        compared = {row["fill"]: row["differ"][ours] for row in rows if row["differ"].get(ours) is not None}
        wrong = ", ".join(f"{n} elements of {name}" for name, n in compared.items() if n)
        out.append(f"{ours}: bits compared with the CPU's in {len(compared)} rows; " + (wrong or "all equal") + ".")
    return "\n\n".join(out)


def environment(place: Place) -> dict[str, str]:
    found = {
        "torch_fastinit": fastinit.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if place.device == "cuda" else "CPU (dry run: no measurement)",
    }
    if place.device == "cuda":
        found["cuda"] = str(torch.version.cuda)
        found["memory GiB"] = f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f}"
    with contextlib.suppress(ImportError):
        import triton

        found["triton"] = triton.__version__
    return found


def providers_of(place: Place) -> tuple[dict[str, backend.Provider], dict[str, str]]:
    """The backends that can serve, and why the others cannot."""
    if place.dry:
        from support.shim import Shim, built

        return {"cuda": Shim(built()).provider(), "triton": backend.PROVIDERS["triton"]}, {}
    device = torch.device(place.device)
    reasons = {name: backend.PROVIDERS[name].why_not(device) for name in backend.DEVICES[place.device]}
    able = {name: backend.PROVIDERS[name] for name, reason in reasons.items() if not reason}
    return able, {name: reason for name, reason in reasons.items() if reason}


def write(out: Path, report: dict[str, Any], names: list[str]) -> None:
    about = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    notes = [f"{key}: {report[key]}" for key in ("cannot serve", "left out", "interrupted in") if report.get(key)]
    for row in report.get("threads", []):
        gains = ", ".join(f"{n}: {gain:.2f}" for n, gain in row["gain"].items())
        notes.append(f"CPU, normal fill of {row['what']}, times as fast as one thread by threads: {gains}")
    text = "\n\n".join([tables(report["rows"], names), f"Medians; zero_() is the roof.\n{about}", *notes]) + "\n"
    write_json(out / "gpu.json.part", report)
    (out / "gpu.json.part").replace(out / "gpu.json")
    (out / "gpu.md").write_text(text)


def launches(place: Place) -> None:
    """Six launches of the CUDA kernel, for a profiler."""
    for initializer in (Uniform(), Normal(), TruncatedNormal()):
        for dtype in (torch.float32, torch.bfloat16):
            fill([Fill(place.empty(1 << 28, dtype=dtype), initializer, 5, 7)])
    place.synchronize()


def main(every: dict[str, Case] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder for gpu.json and gpu.md")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with little tensors")
    parser.add_argument("--seconds", type=float, default=1e9, help="no row begins later than this")
    parser.add_argument("--resume", action="store_true", help="leave out the rows that FOLDER/gpu.json has")
    parser.add_argument("--only", default="", help="only rows whose name has this in it")
    parser.add_argument("--launches", action="store_true", help="only launch the CUDA kernel six times")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    if args.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    place = Place("cpu" if args.dry else "cuda", args.dry)
    if args.launches:
        launches(place)
        return 0
    providers, missing = providers_of(place)
    report: dict[str, Any] = {"environment": environment(place), "cannot serve": missing, "left out": [], "rows": []}
    if args.resume and (args.out / "gpu.json").exists():
        report["rows"] = json.loads((args.out / "gpu.json").read_text())["rows"]
    done = {row["fill"] for row in report["rows"]}
    name = ""
    try:
        for name, case in (every or cases()).items():
            if name in done or args.only not in name:
                continue
            if time.monotonic() > end:
                report["left out"].append(name)
                continue
            report["rows"].append(measure(name, case, place, providers))
            write(args.out, report, list(providers))
            try:
                place.synchronize()
            except RuntimeError:
                return LOST
            if place.device == "cuda":
                torch.cuda.empty_cache()
        name = "threads"
        if time.monotonic() < end and not args.only:
            counts = list(powers_of_two(cores()))
            report["threads"] = by_threads(place.elements(1 << 24), counts, 3, lambda what: None)
    except KeyboardInterrupt:
        report["interrupted in"] = name
        return 130
    finally:
        write(args.out, report, list(providers))
        print((args.out / "gpu.md").read_text(), end="")
    return int(any(any(row["differ"].values()) for row in report["rows"] if row["differ"]))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in what it runs in the background
    sys.exit(main())
