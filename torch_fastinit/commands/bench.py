"""Fills and a model against torch, in turns in one process: enough to see what this machine gains."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit.commands.about import about
from torch_fastinit.planning.report import table

#: Elements of a fill; layers, width and vocabulary of the model.
_SIZE, _LAYERS, _WIDTH, _VOCABULARY = 1 << 22, 6, 768, 32_000
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 50


def measure(seconds: float) -> dict[str, Any]:
    """Medians of torch's time and of ours, and of their ratio round by round, in about `seconds`."""
    cases = _cases()
    rows = []
    for name, size, torchs, ours in cases:
        torchs(), ours()  # memory, threads, caches
        end = time.perf_counter() + seconds / len(cases)
        rounds: list[tuple[float, float]] = []
        while len(rounds) < _LEAST_ROUNDS or (time.perf_counter() < end and len(rounds) < _MOST_ROUNDS):
            rounds.append((_time(torchs), _time(ours)))
        rows.append(
            {
                "what": name,
                "torch_ms": 1e3 * statistics.median(one for one, _ in rounds),
                "torch_fastinit_ms": 1e3 * statistics.median(one for _, one in rounds),
                "gigabytes_per_second": size / statistics.median(one for _, one in rounds) / 1e9,
                "speed_up": statistics.median(a / b for a, b in rounds),
                "rounds": len(rounds),
            }
        )
    machine = about()
    kept = ("torch_fastinit", "torch", "processor", "instruction set", "threads", "huge pages")
    return {"machine": {name: machine[name] for name in kept}, "rows": rows}


def as_text(results: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    lines: list[tuple[str, ...]] = [("what", "torch (ms)", "torch_fastinit (ms)", "GB/s", "speed-up", "rounds")]
    lines += [
        (
            row["what"],
            f"{row['torch_ms']:.2f}",
            f"{row['torch_fastinit_ms']:.2f}",
            f"{row['gigabytes_per_second']:.1f}",
            f"{row['speed_up']:.1f}x",
            str(row["rounds"]),
        )
        for row in results["rows"]
    ]
    how = "Medians of rounds in turns. Fills write memory that is there, models make theirs."
    return "\n".join([table(lines), "", how, *(f"{name}: {value}" for name, value in results["machine"].items())])


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cases() -> list[tuple[str, int, Callable[[], object], Callable[[], object]]]:
    single, half = torch.empty(_SIZE), torch.empty(_SIZE, dtype=torch.bfloat16)
    init, ours = nn.init, fastinit.init
    megas = f"{_SIZE >> 20}Mi"
    cases: list[tuple[str, int, Callable[[], object], Callable[[], object]]] = []
    for name, tensor in (("float32", single), ("bfloat16", half)):
        size = tensor.nbytes
        for function in ("uniform_", "normal_", "trunc_normal_"):
            a, b = getattr(init, function), getattr(ours, function)
            cases.append((f"{function} {name}, {megas}", size, partial(a, tensor), partial(b, tensor)))
    cases.append(
        (f"zeros_ float32, {megas}", single.nbytes, partial(init.zeros_, single), partial(ours.zeros_, single))
    )

    def construct() -> nn.Module:
        layers = (nn.TransformerEncoderLayer(_WIDTH, 8, 4 * _WIDTH, batch_first=True) for _ in range(_LAYERS))
        return nn.Sequential(nn.Embedding(_VOCABULARY, _WIDTH), *layers)

    def fast() -> nn.Module:
        with fastinit.deferred():
            model = construct()
        return fastinit.materialize(model, seed=0)

    size = sum(p.nbytes for p in fast().parameters())
    cases.append((f"a transformer, {size / 4e6:.0f}M float32", size, construct, fast))
    return cases
