"""Speed of every fill against torch's, side by side in one process.

make bench
make bench ARGS="--elements 1048576 --rounds 9"
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).parent))
from cases import Case, Result, cases, environment, measure

COLUMNS = ("fill", "torch GB/s", "fastinit GB/s", "zero_() GB/s", "share of zero_()", "speed-up")


def row(result: Result) -> tuple[str, ...]:
    speeds = (f"{result.gigabytes(who):.2f}" for who in ("torch", "ours", "zero_"))
    return (result.case.label, *speeds, f"{result.share_of_roof:.2f}", f"{result.speedup:.1f}x")


def markdown(results: list[Result]) -> str:
    """The table, aligned for reading as text too."""
    rows = [COLUMNS, *map(row, results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]

    def line(cells: tuple[str, ...] | list[str]) -> str:
        first, *others = cells
        return " | ".join(["| " + first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:]))]) + " |"

    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=64 << 20, help="per tensor (default: 64 Mi)")
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--only", default="", help="only cases whose label contains this, such as 'float32 avx2'")
    parser.add_argument("--json", type=Path, help="write every round's seconds to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    chosen: list[Case] = [case for case in cases() if args.only in case.label]
    if not chosen:
        parser.error(f"no case contains {args.only!r}; there are: " + ", ".join(case.label for case in cases()))
    console = Console()
    steps = track(chosen, "measuring", console=console, transient=True, disable=not console.is_terminal)
    results = [measure(case, args.elements, args.rounds) for case in steps]

    about = ", ".join(f"{key} {value}" for key, value in environment().items())
    text = (
        f"{markdown(results)}\n\n{args.elements:,} elements a tensor where no shape is given; median of {args.rounds} "
        f"rounds after one discarded; torch, fastinit and zero_() in turn on the same tensor.\n{about}\n"
    )
    print(text, end="")
    if args.markdown:
        args.markdown.write_text(text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"environment": environment(), "elements": args.elements, "results": [r.as_dict() for r in results]}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
