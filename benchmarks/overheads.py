"""What fills cost besides filling: the import, an eager fill of one element, recording, planning and binding.

    python -m benchmarks.overheads
    python -m benchmarks.overheads --tensors 10 100 --json overheads.json

Everything is compared side by side: interpreters that import torch with interpreters that import torch_fastinit too;
torch's initialisers with ours in short alternating rounds; deferred construction with construction on the meta device
and the model's own initialisation there; ``materialize`` with what it cannot do without, the fills as one batch and the
memory (the last two in seconds of the processor, since they take long enough for other work to come between). Of each
the least time counts: other work on a machine only ever adds to it.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import torch_fastinit as fastinit
from benchmarks.cases import environment
from benchmarks.files import write_json
from benchmarks.models import MODELS
from torch_fastinit import ops
from torch_fastinit.initializers import Uniform
from torch_fastinit.ops import Fill


def start(code: str) -> float:
    """Seconds of an interpreter that runs ``code`` and keeps bytecode, as for an installed package."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=kept, check=True)
    return time.perf_counter() - begin


def imports(pairs: int) -> dict[str, list[float]]:
    """Seconds of whole interpreters, in turn, and of the import alone in an interpreter that has torch."""
    after_torch = "import time, torch; t = time.perf_counter(); import torch_fastinit; print(time.perf_counter() - t)"
    seconds: dict[str, list[float]] = {"torch": [], "both": [], "after torch": []}
    start("import torch_fastinit")  # writes bytecode
    for _ in range(pairs):
        seconds["torch"].append(start("import torch"))
        seconds["both"].append(start("import torch, torch_fastinit"))
        out = subprocess.run([sys.executable, "-c", after_torch], check=True, capture_output=True, text=True).stdout
        seconds["after torch"].append(float(out))
    return seconds


#: Functions of torch.nn.init with the shape of one element that they take.
FUNCTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "uniform_": ((1,), {}),
    "normal_": ((1,), {}),
    "trunc_normal_": ((1,), {}),
    "ones_": ((1,), {}),
    "constant_": ((1,), {"val": 0.5}),
    "xavier_normal_": ((1, 1), {}),
    "kaiming_uniform_": ((1, 1), {}),
    "eye_": ((1, 1), {}),
    "sparse_": ((1, 1), {"sparsity": 0.5}),
}


def eager(rounds: int, calls: int = 200) -> dict[str, dict[str, float]]:
    """The least seconds a call, of torch's functions and of ours, over alternating rounds."""
    least: dict[str, dict[str, float]] = {name: {} for name in FUNCTIONS}
    for _ in range(rounds):
        for name, (shape, kwargs) in FUNCTIONS.items():
            t = torch.empty(shape)
            for who, module in (("torch", torch.nn.init), ("ours", fastinit.init)):
                function: Callable[..., Any] = getattr(module, name)
                begin = time.perf_counter()
                for _ in range(calls):
                    function(t, **kwargs)
                seconds = (time.perf_counter() - begin) / calls
                least[name][who] = min(seconds, least[name].get(who, seconds))
    return least


#: Models to record: their names in models.py, and what is another there.
RECORDED: dict[str, dict[str, Any]] = {"gpt2": {}, "llama": {"num_hidden_layers": 80}, "vit-l": {}}


def recording(rounds: int, tiny: bool) -> dict[str, dict[str, float]]:
    """The least seconds of deferred construction, and of construction on meta with the model's own initialisation."""
    import transformers

    least: dict[str, dict[str, float]] = {}
    for name, changes in RECORDED.items():
        model = MODELS[name]
        config = model.make_config(tiny)
        for key, value in changes.items():
            setattr(config, key, 2 if tiny else value)
        build = getattr(transformers, model.auto).from_config

        def on_meta(build: Callable[..., Any] = build, config: Any = config) -> None:
            with torch.device("meta"):
                build(config).initialize_weights()  # which init_weights leaves out on this device

        def deferred(build: Callable[..., Any] = build, config: Any = config) -> None:
            with fastinit.deferred():
                build(config)

        title = ", ".join([model.title, *(f"{key}={value}" for key, value in changes.items())])
        seconds = least[f"{title}: {sum(1 for _ in _parameters(build, config))} tensors"] = {}
        for _ in range(rounds):
            for who, run in (("meta", on_meta), ("deferred", deferred)):
                gc.collect()
                begin = time.process_time()
                run()
                seconds[who] = min(time.process_time() - begin, seconds.get(who, float("inf")))
    return least


def _parameters(build: Callable[..., torch.nn.Module], config: Any) -> Iterator[torch.nn.Parameter]:
    with torch.device("meta"):
        return build(config).parameters()


def many(count: int, rounds: int) -> dict[str, float]:
    """The least seconds for ``count`` tensors of 8 to 64 elements: ``materialize``, and the fills and memory alone."""
    least: dict[str, float] = {}

    def measure(what: str, run: Callable[[], object]) -> None:
        gc.collect()
        begin = time.process_time()
        kept = run()
        seconds = time.process_time() - begin
        del kept
        least[what] = min(seconds, least.get(what, seconds))

    for _ in range(rounds):
        with fastinit.deferred():
            model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(count // 2)))
        shapes = [p.shape for p in model.parameters()]
        measure("materialize", lambda model=model: fastinit.materialize(model, seed=0))
        measure("memory", lambda shapes=shapes: [torch.empty(shape) for shape in shapes])
        fills = [Fill(torch.empty(shape), Uniform(-0.5, 0.5), 0, i) for i, shape in enumerate(shapes)]
        measure("fills", lambda fills=fills: ops.fill(fills, fresh=True))
    least["planning and binding"] = least["materialize"] - least["fills"] - least["memory"]
    return least


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        return " | ".join(["| " + first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:]))]) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(map(line, [head, rule, *rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="interpreters of each kind (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=100, help="of eager fills (default: %(default)s)")
    parser.add_argument("--tensors", type=int, nargs="+", default=[10, 100, 1000, 10000], help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="of each number of tensors (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--tiny", action="store_true", help="record small models of the same kinds, for a test")
    args = parser.parse_args()

    first = imports(args.pairs)
    ms = {what: 1e3 * min(seconds) for what, seconds in first.items()}
    second = eager(args.rounds)
    built = recording(args.repeats, args.tiny)
    third = {count: many(count, args.repeats) for count in args.tensors}
    parts = ("materialize", "fills", "memory", "planning and binding")
    print(
        table(
            ("import (ms)", "least"),
            [
                ("an interpreter that imports torch", f"{ms['torch']:.0f}"),
                ("that imports torch and torch_fastinit", f"{ms['both']:.0f}"),
                ("torch_fastinit alone, after torch", f"{ms['after torch']:.1f}"),
            ],
        ),
        table(
            ("one element (us)", "torch", "fastinit", "more"),
            [
                (name, *(f"{1e6 * seconds:.1f}" for seconds in (t["torch"], t["ours"], t["ours"] - t["torch"])))
                for name, t in second.items()
            ],
        ),
        table(
            ("construction (ms)", "on meta", "deferred", "ratio"),
            [
                (name, f"{1e3 * t['meta']:.0f}", f"{1e3 * t['deferred']:.0f}", f"{t['deferred'] / t['meta']:.2f}")
                for name, t in built.items()
            ],
        ),
        table(
            ("tensors", *(f"{part} (us each)" for part in parts)),
            [(f"{count:,}", *(f"{1e6 * t[part] / count:.1f}" for part in parts)) for count, t in third.items()],
        ),
        ", ".join(f"{key} {value}" for key, value in environment().items()),
        sep="\n\n",
    )
    if args.json:
        write_json(
            args.json,
            {"environment": environment(), "import": first, "eager": second, "recording": built, "many": third},
        )


if __name__ == "__main__":
    main()
