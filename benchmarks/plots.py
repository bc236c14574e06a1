"""The pictures of `make bench`, from what it writes as JSON.

Those in docs/ are drawn again, without measuring, by

    python -m benchmarks.plots build/bench.json build/startup.json docs
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.svg import save

Report = dict[str, Any]

#: Okabe and Ito's colours, which those who confuse red and green can tell apart too; and a mark for each as well.
LOOKS: dict[str, dict[str, Any]] = {
    "torch": {"label": "torch", "color": "#0072b2", "marker": "s"},
    "torch.func": {"label": "torch.func._random", "color": "#cc79a7", "marker": "^"},
    "ours": {"label": "torch_fastinit", "color": "#d55e00", "marker": "o"},
    "zero_": {"label": "zero_(), the write roof", "color": "black", "linestyle": "--"},
}


def draw_all(report: Report, folder: Path) -> list[Path]:
    """All pictures that the report has the numbers for."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    environment = report["environment"]
    about = f"{environment['cpu']}, {environment['threads']} threads, torch {environment['torch']}"
    fills = report.get("results") or []
    plain = [r for r in fills if r["name"] in ("uniform_", "normal_")]
    drawings = {
        "sizes": (draw_sizes, report.get("sizes")),
        "dtypes": (draw_bars, [r for r in plain if not r["instruction set"]]),
        "distributions": (draw_bars, [r for r in fills if r["dtype"] == "float32" and not r["instruction set"]]),
        "instructions": (draw_bars, [r for r in plain if r["dtype"] == "float32"]),
        "threads": (draw_threads, report.get("threads")),
        "tensors": (draw_tensors, report.get("tensors")),
        "models": (draw_models, report.get("models")),
    }
    titles = {
        "sizes": "Speed of a fill by the size of the tensor",
        "dtypes": f"Speed of a fill by dtype, {report['elements']:,} elements",
        "distributions": f"Speed of a fill by distribution, float32, {report['elements']:,} elements or as given",
        "instructions": f"Speed of a fill by instruction set, float32, {report['elements']:,} elements",
        "threads": "A normal fill by the number of threads",
        "tensors": "Time by the number of tensors, 1,024 float32 elements each, normal",
        "models": "Construction and fill of a model, memory warm",
    }
    written = []
    for name, (draw, rows) in drawings.items():
        if not rows:
            continue
        figure = draw(plt, rows)
        figure.suptitle(f"{titles[name]}\n{about}", fontsize=11)
        path = folder / f"bench-{name}.svg"
        save(figure, path)
        plt.close(figure)
        written.append(path)
    return written


def draw_sizes(plt: Any, rows: Sequence[Report]) -> Any:
    columns = min(2, len(rows))
    height = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(5.5 * columns, 1.4 + 3.4 * height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows):
        for who, look in LOOKS.items():
            points = [
                (p["elements"], p["bytes"] / p["seconds"][who] / 1e9) for p in row["points"] if who in p["seconds"]
            ]
            if points:
                axis.plot(*zip(*points), markersize=4, **look)
        axis.set(title=row["case"], xlabel="elements", ylabel="GB/s", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        _plain_numbers(axis)
    _legend(figure, axes.flat[0])
    return figure


def draw_bars(plt: Any, rows: Sequence[Report]) -> Any:
    """Bars of each contestant for each case, and the write roof as a line over each group."""
    who = [w for w in LOOKS if w != "zero_" and any(w in row["GB/s"] for row in rows)]
    figure, axis = plt.subplots(figsize=(max(6.5, 1.1 * len(rows)), 5), layout="constrained")
    width = 0.8 / len(who)
    for i, w in enumerate(who):
        at = [x + (i - (len(who) - 1) / 2) * width for x in range(len(rows))]
        speeds = [row["GB/s"].get(w) for row in rows]
        look = {key: LOOKS[w][key] for key in ("label", "color")}
        drawn = axis.bar(at, [speed or float("nan") for speed in speeds], width, **look)
        axis.bar_label(drawn, [f"{s:.2g}" if s else "none" for s in speeds], fontsize=7, padding=1)
    for x, row in enumerate(rows):
        roof = axis.hlines(row["GB/s"]["zero_"], x - 0.45, x + 0.45, colors="black", linestyles="--")
    roof.set_label(LOOKS["zero_"]["label"])
    axis.set_xticks(range(len(rows)), [textwrap.fill(row["case"], 14) for row in rows], fontsize=8)
    axis.set(xlabel="fill", ylabel="GB/s", yscale="log")
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    _plain_numbers(axis, "y")
    _legend(figure, axis)
    return figure


def draw_threads(plt: Any, rows: Sequence[Report]) -> Any:
    figure, axes = plt.subplots(
        1, len(rows), figsize=(1 + 3 * len(rows), 4.5), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, row in zip(axes.flat, rows):
        for who, seconds in row["seconds"].items():
            threads = [int(n) for n in seconds]
            axis.plot(threads, [row["bytes"] / s / 1e9 for s in seconds.values()], **LOOKS[who])
        for n, gain in row["gain"].items():
            speed = row["bytes"] / row["seconds"]["ours"][n] / 1e9
            axis.annotate(
                f"{gain:.2f}x", (int(n), speed), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8
            )
        axis.set(title=row["what"].replace(", ", "\n"), xlabel="threads", xticks=threads, yscale="log")
        axis.margins(x=0.2)
        axis.grid(alpha=0.3)
        _plain_numbers(axis, "y")
    axes[0, 0].set_ylabel("GB/s")
    _legend(figure, axes.flat[0])
    return figure


def draw_tensors(plt: Any, rows: Sequence[Report]) -> Any:
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    counts = [row["tensors"] for row in rows]
    colours = ("#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#009e73")
    for (who, last), colour, marker in zip(rows[-1]["seconds"].items(), colours, "soDv^"):
        seconds = [row["seconds"][who] for row in rows]
        label = f"{who} ({last / counts[-1] * 1e6:.1f} µs a tensor at the end)"
        axis.plot(counts, seconds, color=colour, marker=marker, markersize=5, label=label)
        # Straight lines through the last point: where the time would be if it were proportional.
        axis.plot(counts, [last * n / counts[-1] for n in counts], color=colour, linestyle=":", linewidth=0.8)
    axis.plot([], [], color="black", linestyle=":", linewidth=0.8, label="proportional to the number")
    axis.set(xlabel="tensors", ylabel="seconds", xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    _plain_numbers(axis)
    _legend(figure, axis, columns=1)
    return figure


def draw_models(plt: Any, rows: Sequence[Report]) -> Any:
    figure, axes = plt.subplots(1, len(rows), figsize=(5 * len(rows), 3.6), squeeze=False, layout="constrained")
    for axis, row in zip(axes.flat, rows):
        titles = {"from_config": "torch eager", "fastinit": "torch_fastinit"}
        for (who, seconds), look in zip(row["seconds"].items(), (LOOKS["torch"], LOOKS["ours"])):
            drawn = axis.bar(titles[who], seconds, color=look["color"])
            note = f"{seconds:.2f} s" + (f" ({row['speedup']:.1f}x)" if who == "fastinit" else "")
            axis.bar_label(drawn, [note])
        axis.set(title=f"{row['model']}, {row['dtype']}", xlabel="how it is built", ylabel="seconds")
        axis.margins(y=0.15)
    return figure


def _plain_numbers(axis: Any, logarithmic: str = "xy") -> None:
    """Numbers as one writes them, 10k and 0.01, at whole powers of ten alone."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, NullLocator

    if "x" in logarithmic:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6f}".rstrip("0").rstrip(".")))
    axis.yaxis.set_minor_locator(NullLocator())


def _legend(figure: Any, axis: Any, columns: int = 4) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def main() -> None:
    from benchmarks.startup import draw

    *files, folder = map(Path, sys.argv[1:])
    for report in (json.loads(file.read_text()) for file in files):
        if isinstance(report["models"], dict):
            draw(report["models"], report["environment"], folder / "startup.svg")
        else:
            draw_all(report, folder)


if __name__ == "__main__":
    main()
