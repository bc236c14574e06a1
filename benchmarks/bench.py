"""torch_fastinit against torch, side by side in one process: speeds, memory, tables, JSON, pictures.

    make bench
    make bench ARGS="--quick"
    make bench ARGS="--parts fills --only float32 --rounds 9"

Parts: every fill at one size (fills), fills by the size of the tensor (sizes), time by the number of tensors (tensors),
speed by the number of threads (threads), construction and fill of whole models (models), their fill in new processes
with and without huge pages (pages). docs/benchmarks.md says what the columns mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from benchmarks.cases import CONTESTANTS, Case, Result, cases, environment, measure, stateless
from benchmarks.files import write_json
from benchmarks.plots import draw_all
from benchmarks.sweeps import by_count, by_pages, by_size, by_threads, cores, of_models, powers_of_two

PARTS = ("fills", "sizes", "tensors", "threads", "models", "pages")


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Markdown, aligned for reading as text too. The first row is the heading, the first column the only text."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ("-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:]))

    def line(cells: tuple[str, ...]) -> str:
        first, *others = cells
        return " | ".join(["| " + first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:]))]) + " |"

    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def speed(value: float | None) -> str:
    """GB/s with two digits that mean something, however slow."""
    return number(value, ".2f" if value is None or value >= 0.1 else ".2g")


def fills_text(results: list[Result], elements: int, rounds: int) -> str:
    who = [w for w in CONTESTANTS if any(w in r.measured for r in results)]
    memory = [w for w in ("torch", "ours") if w in who]
    heading = ("fill", *(f"{CONTESTANTS[w]} GB/s" for w in who), "share of zero_()", "speed-up")
    rows = [(*heading, *(f"{CONTESTANTS[w]} peak MB" for w in memory))]
    for r in results:
        speeds = (speed(r.gigabytes(w)) for w in who)
        peaks = (number(r.measured[w].peak / 1e6 if w in r.measured else None, ".0f") for w in memory)
        rows.append((r.case.label, *speeds, number(r.share_of_roof), number(r.speedup, ".1f", "x"), *peaks))
    fewer = {r.case.label: len(m) for r in results if len(m := r.seconds.get("torch", ())) not in (0, rounds)}
    text = (
        f"## Fills\n\n{table(rows)}\n\n{elements:,} elements a tensor where no shape is given; median of {rounds} "
        "rounds after one discarded, of repetitions for 10 ms where a fill takes less; all in turn on the same tensor. "
        "Peak: resident memory in a fill above that before."
    )
    if fewer:
        text += " Rounds of torch's that were fewer: " + ", ".join(f"{k} {v}" for k, v in fewer.items()) + "."
    return text


def sizes_text(rows: list[dict[str, Any]]) -> str:
    parts = ["## Speed by size, GB/s"]
    for row in rows:
        who = [w for w in CONTESTANTS if any(w in p["seconds"] for p in row["points"])]
        lines = [("elements", *(CONTESTANTS[w] for w in who), "speed-up", "time over floor")]
        for p in row["points"]:
            speeds = {w: p["bytes"] / s / 1e9 for w, s in p["seconds"].items()}
            gain = speeds["ours"] / speeds["torch"] if "torch" in speeds else None
            cells = (number(speeds.get(w), ".3g") for w in who)
            lines.append((f"{p['elements']:,}", *cells, number(gain, ".1f", "x"), number(p["over floor"])))
        parts.append(f"### {row['case']}\n\n{table(lines)}")
    parts.append(
        "Floor, from a million elements on: the larger of elements over our best rate at any size, and `zero_()`'s "
        "time at this size. A dash among the speeds: it would have taken too long."
    )
    return "\n\n".join(parts)


def tensors_text(rows: list[dict[str, Any]]) -> str:
    who = list(rows[0]["seconds"])
    lines = [("microseconds a tensor", *who)]
    for row in rows:
        each = (f"{row['seconds'][w] / row['tensors'] * 1e6:.1f}" for w in who)
        lines.append((f"{row['tensors']:,} tensors", *each))
    return f"## Time by the number of tensors, {rows[0]['elements']:,} elements each\n\n{table(lines)}"


def threads_text(rows: list[dict[str, Any]]) -> str:
    counts = list(rows[0]["gain"])
    lines = [("normal fill", *(f"{CONTESTANTS[w]} {n}" for w in rows[0]["seconds"] for n in counts), "gain")]
    for row in rows:
        speeds = (speed(row["bytes"] / s / 1e9) for by in row["seconds"].values() for s in by.values())
        lines.append((row["what"], *speeds, f"{row['gain'][counts[-1]]:.2f}x"))
    return (
        f"## Speed by the number of threads, GB/s\n\n{table(lines)}\n\nGain: of fastinit, {counts[-1]} threads against "
        f"{counts[0]}, the median of the ratios of neighbours in time."
    )


def models_text(rows: list[dict[str, Any]]) -> str:
    heading = "construct + fill, memory warm|torch eager (s)|fastinit (s)|of it construct (s)|speed-up"
    lines = [tuple(f"{heading}|torch eager peak beyond the model (MB)|fastinit peak beyond the model (MB)".split("|"))]
    for row in rows:
        seconds = row["seconds"]
        cells = (number(seconds["from_config"], ".3f"), number(seconds["fastinit"], ".3f"))
        beyond = (number(row["beyond"][how] / 1e6, ".0f") for how in ("from_config", "fastinit"))
        construct = number(row["parts"]["construct"], ".3f")
        lines.append(
            (f"{row['model']}, {row['dtype']}", *cells, construct, number(row["speedup"], ".1f", "x"), *beyond)
        )
    faults = "; ".join(
        f"{row['model']} {row['faults']['from_config']:,.0f} and {row['faults']['fastinit']:,.0f}" for row in rows
    )
    return (
        f"## Models\n\n{table(lines)}\n\nIn one process that keeps its memory, after a discarded build of each; "
        f"speed-up is the median of the ratios of neighbours in time. First touches of pages in a build: {faults}. "
        "Peaks are from cold processes of their own."
    )


def pages_text(rows: list[dict[str, Any]]) -> str:
    lines = [("fill, memory new", "usual pages (s)", "least to most", "huge pages (s)", "least to most", "speed-up")]
    for row in rows:
        usual, huge = row["huge pages"]["0"], row["huge pages"]["1"]
        cells = [c for t in (usual, huge) for c in (f"{median(t):.3f}", f"{min(t):.3f} to {max(t):.3f}")]
        lines.append((f"{row['model']}, {row['dtype']}", *cells, f"{median(usual) / median(huge):.2f}x"))
    chosen = "huge" if rows[0]["by default"] else "usual"
    return (
        f"## Huge pages\n\n{table(lines)}\n\nMedians of {len(usual)} new processes of each kind, in turn. Without "
        f"FASTINIT_HUGE_PAGES, torch_fastinit asks for {chosen} pages here."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help="default: all; with --only: fills")
    parser.add_argument("--quick", action="store_true", help="small tensors, a small model: a minute, no measurement")
    parser.add_argument("--elements", type=int, help="per tensor, in fills and threads (default: 64 Mi; quick: 1 Mi)")
    parser.add_argument("--largest", type=int, help="tensor in sizes (default: 1e9, as memory allows; quick: 1e6)")
    parser.add_argument("--tensors", type=int, help="the most in tensors (default: 10,000; quick: 1,000)")
    parser.add_argument("--rounds", type=int, help="the median counts (default: 5; quick: 3)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument(
        "--patience",
        type=float,
        help="seconds that one's rounds may take: a slower one gets fewer, or none in sizes (default: 20; quick: 2)",
    )
    parser.add_argument("--only", default="", help="only fills whose label contains this, such as 'float32 avx2'")
    parser.add_argument("--json", type=Path, help="write the medians, and every round's seconds, to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--plots", type=Path, help="write pictures to this folder, as bench-*.svg")
    args = parser.parse_args()

    quick = args.quick
    elements = args.elements or (1 << 20 if quick else 64 << 20)
    rounds = args.rounds or (3 if quick else 5)
    patience = args.patience or (2.0 if quick else 20.0)
    parts = args.parts or (["fills"] if args.only else PARTS)
    torch.set_num_threads(args.threads)
    every = cases(side=1024, tail=1 << 14) if quick else cases()
    chosen: list[Case] = [case for case in every if args.only in case.label]
    if not chosen:
        parser.error(f"no case contains {args.only!r}; there are: " + ", ".join(case.label for case in every))

    console = Console(stderr=True)
    report: dict[str, Any] = {"environment": environment(), "elements": elements, "rounds": rounds}
    texts = []
    with console.status("") as status:

        def note(what: str) -> None:
            status.update(f"measuring: {what}")

        if "fills" in parts:
            results = []
            for case in chosen:
                note(case.label)
                results.append(measure(case, elements, rounds, patience, memory=True))
            report["results"] = [result.as_dict() for result in results]
            texts.append(fills_text(results, elements, rounds))
        if "sizes" in parts:
            largest = args.largest or (10**6 if quick else 10**9)
            report["sizes"] = by_size(largest, rounds, patience, note)
            texts.append(sizes_text(report["sizes"]))
        if "tensors" in parts:
            most = args.tensors or (1000 if quick else 10_000)
            report["tensors"] = by_count([n for n in (10, 100, 1000, 10_000) if n <= most], rounds, note)
            texts.append(tensors_text(report["tensors"]))
        if "threads" in parts:
            counts = list(powers_of_two(cores()))
            report["threads"] = by_threads(elements, counts, rounds, note)
            texts.append(threads_text(report["threads"]))
        if "models" in parts:
            report["models"] = of_models(rounds, quick, note)
            texts.append(models_text(report["models"]))

        if "pages" in parts:
            report["pages"] = by_pages(rounds, quick, note)
            texts.append(pages_text(report["pages"]))

    about = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    _, reason = stateless(torch.float32)
    report["torch.func._random"] = reason or "measured"
    texts.append(about + (f"\n\ntorch.func._random is not in the tables: {reason}." if reason else ""))
    text = "\n\n".join(texts) + "\n"
    print(text, end="")
    if args.json:
        write_json(args.json, report)
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(text)
    if args.plots:
        for path in draw_all(report, args.plots):
            console.print(f"picture: {path}", highlight=False)


if __name__ == "__main__":
    main()
