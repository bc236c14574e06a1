"""From the start of a process to a model that is ready, by five ways of building it.

    make startup
    make startup ARGS="--quick"
    make startup ARGS="--models gpt2 swin-l --dtypes bfloat16 --rounds 5"

Every build has a process of its own. First each way is checked: its model against two eager ones, in memory that is
made to hold garbage beforehand. Then the ways take turns, in another order each round, and the medians count.
docs/benchmarks.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.agreement import differences
from benchmarks.files import write_json
from benchmarks.models import MODELS, STARTUP
from benchmarks.one_model import WAYS
from benchmarks.svg import save

ROOT = Path(__file__).resolve().parent.parent

TITLES = {
    "eager": "torch eager",
    "from_config": "transformers from_config",
    "reset_parameters": "meta, to_empty, reset_parameters",
    "init_weights": "meta, to_empty, init_weights",
    "fastinit": "torch_fastinit",
}
PHASES = ("import", "construct", "allocate", "fill")
#: Okabe and Ito's colours, which those who confuse red and green can tell apart too.
COLOURS = {"import": "#bbbbbb", "construct": "#56b4e9", "allocate": "#009e73", "fill": "#e69f00"}
PALE = 0.35

#: Fresh memory of the GNU C library then holds 0x7f in every byte: 3.4e38 as float32 and as bfloat16.
POISON = {"MALLOC_PERTURB_": "128"}
#: So many of a model's wrong tensors are written down; all are counted, by what is wrong with them.
SHOWN = 5
KINDS = {
    "tied_to is": "ties broken or made",
    "not the bits of eager": "not eager's bits where eager has the same under every seed",
    "mean is": "another distribution",
    "std is": "another distribution",
    "is constant": "constant where eager is random",
    "has infinities": "infinities or NaN",
}

Run = dict[str, Any]


def build(model: str, how: str, dtype: str, options: list[str], environment: dict[str, str] | None = None) -> Run:
    """One build in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.one_model", model, how, dtype, *options]
    command += ["--started", repr(time.monotonic())]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}), cwd=ROOT)
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def check(
    model: str, dtype: str, ways: list[str], options: list[str], advance: Callable[[str], None]
) -> dict[str, Run]:
    """What is wrong with each way's model; nothing is timed here."""
    builds: dict[tuple[str, int], Run] = {}
    for how, seed in [("eager", 1), ("eager", 0), *((how, 0) for how in ways if how != "eager")]:
        advance(f"{model} {dtype}: {how}, check")
        checking = [*options, "--poison", "--describe", "--seed", str(seed)]
        builds[how, seed] = build(model, how, dtype, checking, POISON)
    for seed in (0, 1):
        if "error" in builds["eager", seed]:
            sys.exit(f"{model} {dtype}: eager construction failed: {builds['eager', seed]['error']}")
    eager, other = builds["eager", 0]["tensors"], builds["eager", 1]["tensors"]
    checks = {}
    for how in ways:
        run = builds[how, 0]
        if "error" in run:
            checks[how] = {"wrong": [run["error"]], "wrong tensors": len(eager), "kinds": {}, "poisoned": None}
            continue
        # The reference's own values are held to its second build.
        lines = sorted(differences(eager, other, other if how == "eager" else run["tensors"]))
        names = {line.split(": ")[0] for line in lines}
        checks[how] = {
            "wrong": lines[:SHOWN],
            "wrong tensors": len(names),
            "kinds": count_kinds(lines),
            "poisoned": run["poisoned"],
        }
    for result in checks.values():
        result["tensors"] = len(eager)
    return checks


def after_import(run: Run) -> float:
    return sum(run["seconds"].values()) - run["seconds"]["import"]


def count_kinds(lines: list[str]) -> dict[str, int]:
    """How many tensors have each kind of fault; one may have several."""
    tensors: dict[str, set[str]] = {}
    for line in lines:
        name, _, message = line.partition(": ")
        kind = next(
            (kind for start, kind in KINDS.items() if message.startswith(start)), "another shape, dtype or name"
        )
        tensors.setdefault(kind, set()).add(name)
    return {kind: len(names) for kind, names in sorted(tensors.items())}


def compare(
    model: str,
    dtype: str,
    ways: list[str],
    rounds: int,
    patience: float,
    checked: bool,
    options: list[str],
    advance: Callable[[str], None],
) -> dict[str, Run]:
    """Every way's medians and what its check found."""
    runs: dict[str, list[Run]] = {how: [] for how in ways}
    checks = check(model, dtype, ways, options, advance) if checked else {}
    for i in range(rounds):
        for how in (*ways[i % len(ways) :], *ways[: i % len(ways)]):
            advance(f"{model} {dtype}: {how}, {i + 1} of {rounds}")
            if not any("error" in run or after_import(run) > patience for run in runs[how]):
                runs[how].append(build(model, how, dtype, options))
    results: dict[str, Run] = {}
    for how, measured in runs.items():
        results[how] = {"check": checks.get(how)}
        if failed := [run["error"] for run in measured if "error" in run]:
            results[how]["error"] = failed[0]
            continue
        results[how] |= {
            "seconds": {phase: statistics.median(run["seconds"][phase] for run in measured) for phase in PHASES},
            "total": statistics.median(sum(run["seconds"].values()) for run in measured),
            "built": statistics.median(map(after_import, measured)),
            "totals": [round(sum(run["seconds"].values()), 4) for run in measured],
            "peak": statistics.median(run["peak"] for run in measured),
            **{key: measured[0][key] for key in ("device peak", "parameters", "bytes", "threads")},
        }
    return results


def verdict(how: str, run: Run) -> str:
    """What the check found, in a few words."""
    found = run["check"]
    if found is None:
        return "not checked"
    if how == "eager" and not found["wrong tensors"]:
        return "the reference"
    if not found["wrong tensors"]:
        return "as eager"
    return f"**wrong**: {found['wrong tensors']} of {found['tensors']} tensors"


def markdown(results: dict[str, dict[str, dict[str, Run]]], device: str) -> str:
    """A table, and under it what the checks found."""
    columns = ["model", "dtype", "how", *(f"{phase} (s)" for phase in PHASES), "total (s)"]
    columns += ["speed-up", "without import", "peak beyond the model (MB)", "check"]
    lines = ["| " + " | ".join(columns) + " |", "|---|---|---" + "|---:" * (len(columns) - 4) + "|---|"]
    wrong = []
    for model, by_dtype in results.items():
        for dtype, runs in by_dtype.items():
            eager = runs["eager"]
            for i, (how, run) in enumerate(runs.items()):
                first = (MODELS[model].title, dtype) if i == 0 else ("", "")
                if "error" in run:
                    lines.append("| " + " | ".join([*first, TITLES[how], "failed"]) + " |" * (len(columns) - 3))
                    wrong.append(f"- {MODELS[model].title}, {dtype}, {TITLES[how]}: failed: {run['error']}")
                    continue
                seconds = run["seconds"]
                own = run["peak"] if device == "cpu" else run["device peak"]
                cells = [f"{seconds[phase]:.3f}" for phase in PHASES] + [f"{run['total']:.2f}"]
                if "error" in eager:
                    cells += ["-", "-"]
                else:
                    gain = eager["built"] / run["built"]
                    cells += [f"{eager['total'] / run['total']:.2f}x", f"{gain:.1f}x"]
                cells += [f"{(own - run['bytes']) / 1e6:.0f}", verdict(how, run)]
                lines.append("| " + " | ".join([*first, TITLES[how], *cells]) + " |")
                if run["check"] and run["check"]["wrong"]:
                    found = run["check"]
                    kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
                    wrong.append(
                        f"- {MODELS[model].title}, {dtype}, {TITLES[how]}: {found['wrong tensors']} tensors ({kinds}), "
                        f"such as `{found['wrong'][0]}`"
                    )
    text = "\n".join(lines)
    if wrong:
        text += "\n\nWhat the checks found:\n\n" + "\n".join(wrong)
    return text


def draw(
    results: dict[str, dict[str, dict[str, Run]]], environment: dict[str, str], path: Path, caveat: str = ""
) -> None:
    """A row a model, a column a dtype, a bar a way, split by phase."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    dtypes = list(next(iter(results.values())))
    size = (2.5 + 5 * len(dtypes), 1.5 + 1.5 * len(results))
    figure, axes = plt.subplots(len(results), len(dtypes), figsize=size, squeeze=False, layout="constrained")
    for row, (model, by_dtype) in zip(axes, results.items(), strict=True):
        for axis, (dtype, runs) in zip(row, by_dtype.items(), strict=True):
            longest = max((run["total"] for run in runs.values() if "error" not in run), default=1.0)
            for y, (how, run) in enumerate(runs.items()):
                left = 0.0
                for phase in PHASES if "error" not in run else ():
                    seconds = run["seconds"][phase]
                    if seconds > longest / 1000:  # a quarter of a point: thinner is not seen
                        # Not clipped, and no edge: a shorter line in the file.
                        look = {"color": COLOURS[phase], "alpha": PALE if is_wrong(run) else None}
                        axis.barh(y, seconds, left=left, linewidth=0, clip_on=False, **look)
                    left += seconds
                note = "failed" if "error" in run else f"{run['total']:.1f} s" + ", WRONG VALUES" * is_wrong(run)
                look = {"fontsize": 8, "weight": "bold" if how == "fastinit" else "normal"}
                axis.annotate(note, (left, y), (3, 0), textcoords="offset points", va="center", **look)
            names = [TITLES[how] for how in runs] if axis is row[0] else []
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.set_ylim(len(runs) - 0.5, -0.5)
            axis.set_title(f"{MODELS[model].title}, {dtype}", fontsize=10)
            axis.set_xlim(0, longest * 1.35)
            axis.locator_params("x", nbins=4)
            axis.tick_params(axis="x", labelsize=8)
            axis.tick_params(axis="y", length=0)
            axis.spines[["top", "right"]].set_visible(False)
            axis.patch.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("seconds from the start of the process", fontsize=8)
    patches = [Patch(color=COLOURS[phase], label=phase) for phase in PHASES]
    if any(is_wrong(run) for how in WAYS for run in every_run(results, how)):
        patches.append(Patch(color="black", alpha=PALE, label="pale: wrong values, by the check"))
    figure.get_layout_engine().set(w_pad=0.12)  # a viewer's letters may be wider than matplotlib's
    keys = ("cpu", "threads", "torch", "transformers", "device")
    about = [f"{key} {environment[key]}" for key in keys if key in environment] + [caveat] * bool(caveat)
    figure.suptitle(f"From process start to a ready model\n{', '.join(about)}", fontsize=10)
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
    save(figure, path)
    plt.close(figure)


def about() -> dict[str, str]:
    """Versions and hardware, asked of a process of its own: this one imports no torch."""
    code = (
        "import json, transformers; from benchmarks import cases; "
        "print(json.dumps(cases.environment() | {'transformers': transformers.__version__}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(STARTUP), metavar="MODEL")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16", "float16"], metavar="DTYPE")
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY", help=f"default: {', '.join(WAYS)}")
    parser.add_argument("--rounds", type=int, help="the median counts (default: 3)")
    parser.add_argument(
        "--patience",
        type=float,
        default=30.0,
        help="a way that takes so many seconds after the imports has no further round (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--quick", action="store_true", help="GPT-2 124M in bfloat16, one round, unless told otherwise")
    parser.add_argument("--tiny", action="store_true", help="small models of the same kinds: a test, not a measurement")
    parser.add_argument("--no-check", action="store_true", help="do not look at the values")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--picture", type=Path, help="draw the bars to this file: svg, png")
    args = parser.parse_args()
    if args.quick and args.models == list(STARTUP):
        args.models = ["gpt2"]
    dtypes = args.dtypes or (["bfloat16"] if args.quick else ["float32", "bfloat16"])
    rounds = args.rounds or (1 if args.quick else 3)
    ways = [how for how in WAYS if how in (args.ways or WAYS) or how == "eager"]  # eager is what the rest is held to
    options = ["--device", args.device] + ["--tiny"] * args.tiny
    options += ["--threads", str(args.threads)] if args.threads else []

    environment = about() | ({"device": args.device} if args.device != "cpu" else {})
    if args.threads:
        environment["threads"] = str(args.threads)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<48}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    results: dict[str, dict[str, dict[str, Run]]] = {}
    text = ""
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        builds = len(args.models) * len(dtypes) * (rounds * len(ways) + (not args.no_check) * (1 + len(ways)))
        task = progress.add_task("", total=builds, completed=-1)
        for model in args.models:
            results[model] = {}
            for dtype in dtypes:
                results[model][dtype] = compare(
                    model,
                    dtype,
                    ways,
                    rounds,
                    args.patience,
                    not args.no_check,
                    options,
                    lambda text: progress.update(task, description=text, advance=1),
                )
            # After every model: a run that is broken off leaves what it has.
            text = report(results, environment, rounds, args)
        progress.update(task, advance=1)
    print(text, end="")
    if any(is_wrong(run) for run in every_run(results, "fastinit")):
        sys.exit("torch_fastinit's models differ from torch's: see the table")


def is_wrong(run: Run) -> bool:
    return bool(run["check"] and run["check"]["wrong tensors"])


def every_run(results: dict[str, dict[str, dict[str, Run]]], how: str) -> list[Run]:
    return [runs[how] for by_dtype in results.values() for runs in by_dtype.values() if how in runs]


def report(
    results: dict[str, dict[str, dict[str, Run]]], environment: dict[str, str], rounds: int, args: argparse.Namespace
) -> str:
    """The text; all files are written on the way."""
    hardware = ", ".join(f"{key} {value}" for key, value in environment.items())
    poisoned = {
        (run["check"] or {}).get("poisoned") for how in WAYS for run in every_run(results, how)
    }  # None: not checked, or failed
    text = (
        f"{markdown(results, args.device)}\n\nMedians of {rounds}, each build in a process of its own, the ways in "
        "turn; import counts from the start of the process.\n"
    )
    if args.tiny:
        text += "Small models of these kinds: a test, no measurement.\n"
    fewer = [
        f"{MODELS[model].title} {dtype} {TITLES[how]} {len(run['totals'])}"
        for model, by_dtype in results.items()
        for dtype, runs in by_dtype.items()
        for how, run in runs.items()
        if len(run.get("totals", ())) not in (0, rounds)
    ]
    if fewer:
        text += f"Rounds of those that took longer than {args.patience:g} s: {', '.join(fewer)}.\n"
    if False in poisoned:
        text += "Fresh memory could not be made to hold garbage here: what nobody writes may have looked right.\n"
    text += hardware + "\n"
    if args.json:
        content = {"environment": environment, "device": args.device, "rounds": rounds, "models": results}
        write_json(args.json, content)
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(text)
    if args.picture:
        draw(results, environment, args.picture, "small models: no measurement" if args.tiny else "")
    return text


if __name__ == "__main__":
    main()
