"""One thing varied, the rest held: the size of a tensor, the number of tensors, the number of threads, whole models."""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import torch_fastinit as fastinit
from benchmarks.cases import Case, Contestant, alternate, cases, contestants
from benchmarks.models import MODELS
from torch_fastinit import backend
from torch_fastinit.initializers import Normal
from torch_fastinit.ops import Fill, fill

ROOT = Path(__file__).resolve().parent.parent

#: Called with what is measured next.
Note = Callable[[str], None]
Row = dict[str, Any]

#: A timed run is repeated until it has taken so long, in seconds.
LEAST = 2e-2


# Size of a tensor -----------------------------------------------------------------------------------------------------

SIZED = ("uniform_ float32", "normal_ float32", "normal_ bfloat16", "trunc_normal_ float32")


def available_memory() -> float:
    """Bytes that can be had without swapping; infinity where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return float("inf")
    return int(text.split("MemAvailable:")[1].split()[0]) * 1024


def by_size(largest: int, rounds: int, patience: float, note: Note) -> list[Row]:
    """Speeds from one element to ``largest``, by powers of ten.

    A contestant that would take longer than ``patience`` seconds for one run, going by the size before, is left out.
    """
    chosen = [case for case in cases() if case.label in SIZED]
    sizes = [10**k for k in range(20) if 10**k <= largest]
    rows = []
    for case in chosen:
        points: list[Row] = []
        for size in sizes:
            if size * case.dtype.itemsize > available_memory() / 2:
                break
            note(f"{case.label}, {size:,} elements")
            points.append(_point(case, size, rounds, patience, points[-1] if points else None))
        rows.append({"case": case.label, "points": points} | _floor(points))
    return rows


def _point(case: Case, size: int, rounds: int, patience: float, before: Row | None) -> Row:
    t = torch.zeros(size, dtype=case.dtype)
    racing = []
    left_out = {}
    for c in contestants(case, t):
        expected = 0.0
        if before:
            known = before["seconds"].get(c.name, before["left out"].get(c.name))
            expected = known * size / before["elements"] if size > 10_000 else 0.0
        if expected > patience:
            left_out[c.name] = expected
        else:
            racing.append(c)
    measured = alternate(racing, rounds, patience=patience, least=LEAST)
    return {
        "elements": size,
        "bytes": t.nbytes,
        "seconds": {who: m.median for who, m in measured.items()},
        "rounds": {who: len(m.seconds) for who, m in measured.items()},
        "left out": left_out,
    }


def _floor(points: list[Row]) -> Row:
    """Our time over max(elements / compute rate, bytes / roof), where the roof is ``zero_()`` at the same size.

    The compute rate is our own best at any size, so this says how evenly the speed is held, not how good it is.
    """
    rate = max(p["elements"] / p["seconds"]["ours"] for p in points)
    for p in points:
        floor = max(p["elements"] / rate, p["seconds"]["zero_"])
        p["over floor"] = p["seconds"]["ours"] / floor if p["elements"] >= 1_000_000 else None
    return {"compute rate": rate}


# Number of tensors ----------------------------------------------------------------------------------------------------


class Many(torch.nn.Module):
    """So many small parameters, each with a normal initial value."""

    def __init__(self, count: int, elements: int) -> None:
        super().__init__()
        for i in range(count):
            weight = torch.nn.Parameter(torch.empty(elements))
            torch.nn.init.normal_(weight)
            self.register_parameter(f"weight{i}", weight)


def batch_of(tensors: list[torch.Tensor]) -> list[Fill]:
    return [Fill(t, Normal(0.0, 1.0), 0, i) for i, t in enumerate(tensors)]


def by_count(counts: list[int], rounds: int, note: Note, elements: int = 1024) -> list[Row]:
    """Seconds for so many tensors of 1024 elements: the fills alone, and as the parameters of a module.

    What is measured is a thousand tensors or more, so few of them several times: a single call that takes microseconds
    would mostly show how long it is since the one before.
    """
    rows = []
    for count in counts:
        note(f"{count:,} tensors")
        times = range(-(-1000 // count))
        tensors = [torch.zeros(elements) for _ in range(count)]
        fills = batch_of(tensors)

        def deferred(count: int = count) -> Many:
            with fastinit.deferred():
                return Many(count, elements)

        def repeated(run: Callable[[], object], times: range = times) -> Callable[[object], None]:
            def all_of_them(_: object) -> None:
                for _ in times:
                    run()

            return all_of_them

        def torch_fills(tensors: list[torch.Tensor] = tensors) -> None:
            for t in tensors:
                t.normal_()

        def prepared(times: range = times, deferred: Callable[[], Many] = deferred) -> list[Many]:
            modules = [deferred() for _ in times]
            gc.collect()
            return modules

        def materialized(modules: list[Many]) -> None:
            for module in modules:
                fastinit.materialize(module, seed=0)

        racing = [
            Contestant("torch: normal_ on each", repeated(torch_fills)),
            Contestant("fastinit: one batch", repeated(lambda fills=fills: fill(fills, fresh=True))),
            Contestant("torch: a module", repeated(lambda count=count: Many(count, elements)), prepare=_collect),
            Contestant(
                "fastinit: a module, deferred and materialized",
                repeated(lambda deferred=deferred: fastinit.materialize(deferred(), seed=0)),
                prepare=_collect,
            ),
            Contestant("fastinit: materialize alone", materialized, prepare=prepared),
        ]
        measured = alternate(racing, rounds)
        seconds = {who: m.median / len(times) for who, m in measured.items()}
        rows.append({"tensors": count, "elements": elements, "seconds": seconds})
    return rows


def _collect() -> None:
    gc.collect()


# Number of threads ----------------------------------------------------------------------------------------------------


def by_threads(elements: int, counts: list[int], rounds: int, note: Note) -> list[Row]:
    """One huge tensor, and as many elements in ten thousand small ones, with each number of threads in turn."""
    before = torch.get_num_threads()
    rows = []
    try:
        for title, dtype, pieces in (
            ("one tensor, float32", torch.float32, 1),
            ("ten thousand tensors, float32", torch.float32, 10_000),
            ("one tensor, bfloat16", torch.bfloat16, 1),
            ("ten thousand tensors, bfloat16", torch.bfloat16, 10_000),
        ):
            note(f"threads: {title}")
            tensors = [torch.zeros(elements // pieces, dtype=dtype) for _ in range(pieces)]
            fills = batch_of(tensors)

            def torch_fills(_: object, tensors: list[torch.Tensor] = tensors) -> None:
                for t in tensors:
                    t.normal_()

            def zeros(_: object, tensors: list[torch.Tensor] = tensors) -> None:
                for t in tensors:
                    t.zero_()

            # One as fastinit.init fills it, many as materialize does.
            ours = functools.partial(fill, fresh=pieces > 1)
            runs = {"torch": torch_fills, "ours": lambda _, ours=ours, fills=fills: ours(fills), "zero_": zeros}
            racing = [
                Contestant(f"{who} {n}", run, prepare=lambda n=n: torch.set_num_threads(n))
                for who, run in runs.items()
                for n in counts
            ]
            measured = alternate(racing, rounds, patience=30)
            seconds = {
                who: {str(n): measured[f"{who} {n}"].median for n in counts} for who in ("torch", "ours", "zero_")
            }
            # Of neighbours in time, so that a machine that drifts does not count.
            gains = {
                str(n): statistics.median(
                    a / b for a, b in zip(measured[f"ours {counts[0]}"].seconds, measured[f"ours {n}"].seconds)
                )
                for n in counts
            }
            rows.append({"what": title, "bytes": sum(t.nbytes for t in tensors), "seconds": seconds, "gain": gains})
            del tensors, fills, racing
    finally:
        torch.set_num_threads(before)
    return rows


# Whole models ---------------------------------------------------------------------------------------------------------

MODELED = (("gpt2", "float32"), ("llama", "bfloat16"))

#: Memory that is freed stays with the process (GNU C library), so that the next build finds it touched.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def of_models(rounds: int, tiny: bool, note: Note) -> list[Row]:
    """Construction and fill of whole models, in memory that is warm; and their peak memory, in cold processes."""
    rows = []
    for model, dtype in MODELED[:1] if tiny else MODELED:
        note(f"{model} {dtype}, memory warm")
        size = ["--tiny"] * tiny
        threads = str(torch.get_num_threads())
        row = _child("sweeps", model, dtype, "--rounds", str(rounds), "--threads", threads, *size)
        for how in ("from_config", "fastinit"):
            note(f"{model} {dtype}, peak memory, {how}")
            run = _child("one_model", model, how, dtype, "--threads", threads, *size, environment={})
            row["beyond"][how] = run["peak"] - run["bytes"]
            row |= {"bytes": run["bytes"], "parameters": run["parameters"]}
        rows.append(row)
    return rows


# Memory that nobody has touched --------------------------------------------------------------------------------------


def by_pages(rounds: int, tiny: bool, note: Note) -> list[Row]:
    """Seconds of the fill of whole models in new processes, in pages of the usual size and in huge ones, in turn."""
    rows = []
    for model, dtype in MODELED[:1] if tiny else MODELED:
        arguments = [model, "fastinit", dtype, "--threads", str(torch.get_num_threads()), *["--tiny"] * tiny]
        seconds: dict[str, list[float]] = {"0": [], "1": []}
        for n in range(rounds):
            for wish, taken in seconds.items():
                note(f"{model} {dtype}, new memory, huge pages {wish}, round {n + 1}")
                run = _child("one_model", *arguments, environment={"FASTINIT_HUGE_PAGES": wish})
                taken.append(run["seconds"]["fill"])
        rows.append(
            {"model": MODELS[model].title, "dtype": dtype, "bytes": run["bytes"], "huge pages": seconds}
            | {"by default": backend.huge_pages()}
        )
    return rows


def _child(module: str, *arguments: str, environment: dict[str, str] = KEEP_MEMORY) -> Row:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def warm_model(model: str, dtype: str, rounds: int, tiny: bool) -> Row:
    """Both ways of building a model in turn, in this process, after a discarded build of each."""
    import transformers

    recipe = MODELS[model]
    config, auto = recipe.make_config(tiny), getattr(transformers, recipe.auto)

    def eager(_: object) -> torch.nn.Module:
        return auto.from_config(config, dtype=getattr(torch, dtype))

    parts: dict[str, list[float]] = {"construct": [], "materialize": []}

    def ours(_: object) -> torch.nn.Module:
        start = time.perf_counter()
        with fastinit.deferred():
            built = auto.from_config(config, dtype=getattr(torch, dtype))
        middle = time.perf_counter()
        fastinit.materialize(built, seed=0)
        parts["construct"].append(middle - start)
        parts["materialize"].append(time.perf_counter() - middle)
        return built

    racing = [Contestant("from_config", eager, prepare=_collect), Contestant("fastinit", ours, prepare=_collect)]
    measured = alternate(racing, rounds)
    ratios = [a / b for a, b in zip(*(measured[c.name].seconds for c in racing))]
    return {
        "model": recipe.title,
        "dtype": dtype,
        "seconds": {who: m.median for who, m in measured.items()},
        "rounds": {who: [round(s, 5) for s in m.seconds] for who, m in measured.items()},
        "parts": {part: statistics.median(seconds[1:]) for part, seconds in parts.items()},
        "faults": {who: statistics.median(m.faults) for who, m in measured.items()},
        "speedup": statistics.median(ratios),
        "beyond": {},
    }


def cores() -> int:
    """Processors that this process may run on, which a container has fewer of than its machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def powers_of_two(most: int) -> Iterator[int]:
    n = 1
    while n < most:
        yield n
        n *= 2
    yield most


def main() -> None:
    """One model with warm memory, for ``bench.py``: whether a process keeps its memory is decided when it starts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("dtype")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    torch.set_num_threads(args.threads)
    print("\n" + json.dumps(warm_model(args.model, args.dtype, args.rounds, args.tiny)))


if __name__ == "__main__":
    main()
