"""Two real models, built eagerly with torch and with torch_fastinit: how long, how much memory, and are they the same?

    make demo

transformers builds GPT-2 (124M, float32) and a Llama shape (0.85 billion parameters, bfloat16) from configurations
made in code. Each build has its own process, a fork of one that has imported everything, and the two ways alternate;
the first pair is discarded, the medians of the others are reported. Ends with an error if torch_fastinit's model
differs from eager's by more than chance allows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import one_model
from benchmarks.agreement import differences

TITLES = {"gpt2": "GPT-2, float32", "llama": "Llama shape, bfloat16"}
DTYPES = {"gpt2": "float32", "llama": "bfloat16"}
WAYS = ("eager", "fastinit")

#: Memory that torch_fastinit may take beyond the model itself, in bytes.
MEMORY_ALLOWANCE = 100e6


#: Every build is a fork of one process that has imported all that it takes: imports are longer than most builds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["benchmarks.one_model", "torch_fastinit"] + [f"transformers.models.{name}.modeling_{name}" for name in TITLES]
)


def build(arguments: list[str], errors: str) -> dict[str, Any]:
    with open(errors, "w") as file:  # not the terminal: torch's profiler writes lines of its own there
        os.dup2(file.fileno(), 2)
    return one_model.run(arguments)


def measure(model: str, how: str, seed: int, *, tiny: bool, describe: bool) -> dict[str, Any]:
    """One build in a process of its own."""
    way = "from_config" if how == "eager" else how
    arguments = [model, way, DTYPES[model], "--seed", str(seed), *["--tiny"] * tiny, *["--describe"] * describe]
    with tempfile.NamedTemporaryFile("r") as errors, ProcessPoolExecutor(1, PROCESSES) as process:
        try:
            run = process.submit(build, arguments, errors.name).result()
        except Exception as error:
            sys.exit(f"{' '.join(arguments)} failed: {error!r}\n{errors.read()}")
    seconds = run.pop("seconds")
    keys = ("peak", "parameters", "bytes", "threads", *(["tensors"] * describe))
    return {"construct": seconds["construct"] + seconds["allocate"], "fill": seconds["fill"]} | {
        k: run[k] for k in keys
    }


def compare(
    model: str, pairs: int, tiny: bool, advance: Callable[[str], None]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Medians of both ways, and what is wrong with torch_fastinit's model."""
    runs: dict[str, list[dict[str, Any]]] = {how: [] for how in WAYS}
    for seed in range(1 + pairs):
        for how in WAYS:
            advance(f"{TITLES[model]}: {how}, " + (f"{seed} of {pairs}" if seed else "discarded"))
            # Two seeds show which tensors are random; describing takes time and memory, and comes after measuring.
            runs[how].append(measure(model, how, seed, tiny=tiny, describe=seed < 2))

    wrong = []
    eager, ours = ([run["tensors"] for run in runs[how][:2]] for how in WAYS)
    for seed in range(2):
        wrong += differences(eager[seed], eager[1 - seed], ours[seed])

    medians: dict[str, dict[str, float]] = {}
    for how, measured in runs.items():
        for run in measured:
            run["total"] = run["construct"] + run["fill"]
        keys = [key for key in measured[0] if key != "tensors"]
        medians[how] = {key: statistics.median(run[key] for run in measured[1:]) for key in keys}
        medians[how]["tensors"] = len(measured[0]["tensors"])
    over = medians["fastinit"]["peak"] - medians["fastinit"]["bytes"]
    if over > MEMORY_ALLOWANCE:
        wrong.append(f"peak memory is {over / 1e6:.0f} MB above the model's own, and should be below 100 MB")
    return medians, wrong


def make_table(results: dict[str, dict[str, dict[str, float]]]) -> Table:
    threads = {int(row["threads"]) for medians in results.values() for row in medians.values()}
    table = Table(
        title="Building a model: torch eager and torch_fastinit",
        caption=f"Medians, {'/'.join(map(str, threads))} threads. Memory is the peak of resident memory above import, "
        "and what of it is not the model itself, code that is read for the first time included. GB/s: bytes of the "
        "model over fill time.",
    )
    columns = "model|how|construct (s)|fill (s)|total (s)|peak memory (MB)|of it extra (MB)|GB/s|speed-up"
    for i, column in enumerate(columns.split("|")):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=i < 2)
    for model, medians in results.items():
        for how, row in medians.items():
            table.add_row(
                f"{TITLES[model]}, {row['parameters'] / 1e6:,.0f}M" if how == "eager" else "",
                how,
                f"{row['construct']:.3f}",
                f"{row['fill']:.3f}",
                f"{row['total']:.3f}",
                f"{row['peak'] / 1e6:,.0f}",
                f"{(row['peak'] - row['bytes']) / 1e6:,.0f}",
                f"{row['bytes'] / row['fill'] / 1e9:.2f}",
                f"{medians['eager']['total'] / row['total']:.1f}x",
                end_section=how == WAYS[-1],
            )
    return table


def draw(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """A row a model: seconds on the left, memory on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(results), 2, figsize=(11, 1 + 2.1 * len(results)), squeeze=False)
    for (model, medians), (time_axis, memory_axis) in zip(results.items(), axes, strict=True):
        labels = list(medians)
        construct, fill, total, peak, own = (
            [medians[how][key] for how in labels] for key in ("construct", "fill", "total", "peak", "bytes")
        )
        time_axis.barh(labels, construct, color="#8da0cb", label="construct")
        time_axis.barh(labels, fill, left=construct, color="#fc8d62", label="fill")
        notes = [f" {t:.2f} s" + (f" ({total[0] / t:.1f}x)" if how != "eager" else "") for how, t in zip(labels, total)]
        for y, (t, note) in enumerate(zip(total, notes)):
            time_axis.text(t, y, note, va="center")
        time_axis.set(title=f"{TITLES[model]}: seconds", xlim=(0, max(total) * 1.2))

        memory_axis.barh(labels, [p / 1e6 for p in peak], color="#66c2a5")
        memory_axis.axvline(own[0] / 1e6, color="black", linestyle=":", label="the model itself")
        for y, p in enumerate(peak):
            memory_axis.text(p / 1e6, y, f" {p / 1e6:,.0f} MB", va="center")
        memory_axis.set(title="peak resident memory, MB", xlim=(0, max(peak) / 1e6 * 1.2))
        for axis in (time_axis, memory_axis):
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
            axis.invert_yaxis()
            axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(TITLES), action="append", help="default: both")
    parser.add_argument("--quick", action="store_true", help="small models, one pair: a check, not a measurement")
    parser.add_argument("--picture", type=Path, default=Path("demo.png"), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the medians to this file")
    args = parser.parse_args()

    models, pairs = args.model or list(TITLES), 1 if args.quick else 3
    console = Console(width=None if sys.stdout.isatty() else 140)
    columns = (TextColumn("{task.description:<42}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    results, wrong = {}, []
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(models) * (1 + pairs) * len(WAYS), completed=-1)
        for model in models:
            results[model], lines = compare(
                model, pairs, args.quick, lambda text: progress.update(task, description=text, advance=1)
            )
            wrong += [f"{TITLES[model]}: {line}" for line in lines]
        progress.update(task, advance=1)

    console.print(make_table(results))
    draw(results, args.picture)
    console.print(f"picture: {args.picture}", highlight=False)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    if wrong:
        console.print("\n".join(wrong), style="red", highlight=False, markup=False)
        sys.exit(f"{len(wrong)} differences between torch_fastinit's models and torch's")
    tensors = sum(int(medians["eager"]["tensors"]) for medians in results.values())
    console.print(
        f"checked: {tensors} tensors, each under two seeds: shapes, strides, dtypes and ties are eager's, "
        "constants are eager's bit for bit, and means and deviations are within what chance allows."
    )


if __name__ == "__main__":
    main()
