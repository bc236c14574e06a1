"""Every architecture that the installed transformers can build small, compared with eager construction.

`make zoo`, which is `PYTHONPATH=tests python -m models.zoo.zoo`, runs them all, with a progress bar and a table;
names as arguments run those alone.
Nothing is downloaded: configurations are made in code and shrunk until a model has at most 40 million parameters.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import math
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from models.zoo.shrink import Found, find
from support.comparison import check_like_eager

import torch_fastinit as fastinit


def architectures(keys: Collection[str] = ()) -> Iterator[tuple[str, str, str, str]]:
    """Key, name and the names of model and configuration class of every architecture (of these keys)."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for key in sorted(CONFIG_MAPPING_NAMES):
        found = MODEL_MAPPING_NAMES.get(key)
        if found is None or (keys and key not in keys):
            continue
        for name in found if isinstance(found, (tuple, list)) else (found,):
            yield key, key if found is name else f"{key}:{name}", name, CONFIG_MAPPING_NAMES[key]


def configs(keys: Collection[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Name, model class and configuration class of every architecture (of these keys) that has both."""
    import transformers

    for _, name, model, config in architectures(keys):
        with contextlib.suppress(Exception):
            yield name, getattr(transformers, model), getattr(transformers, config)


@dataclass
class Result:
    """One architecture's outcome: `skipped` says why it was not compared, `error` what was not equal."""

    name: str
    parameters: int = 0
    tensors: int = 0
    random_bytes: int = 0
    one_pass: int = 0
    seconds: float = 0.0
    replayed: dict[str, int] = field(default_factory=dict)  # random bytes by the operation that cannot be a fill
    skipped: str = ""
    error: str = ""


def run(name: str, found: Found, model_class: Any) -> Result:
    """Compare one architecture, and count what is filled in one pass."""
    start = time.perf_counter()
    if found.config is None:
        return Result(name, skipped=found.why)
    result = Result(name, found.parameters)

    def count(module: torch.nn.Module) -> None:
        rows = fastinit.plan(module).rows
        result.tensors = len(rows)
        for row in rows:
            if row.random:
                result.random_bytes += row.nbytes
                if row.how == "one pass":
                    result.one_pass += row.nbytes
                else:
                    result.replayed[row.why] = result.replayed.get(row.why, 0) + row.nbytes

    try:
        with quiet():
            check_like_eager(lambda: model_class(copy.deepcopy(found.config)), count)
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    result.seconds = time.perf_counter() - start
    return result


def run_key(key: str) -> list[Result]:
    """All architectures of one key of transformers' tables: one process's task."""
    torch.use_deterministic_algorithms(True)  # which also fills fresh memory with NaN
    results = []
    for name, model_class, config_class in configs([key]):
        with quiet():
            found = find(key, model_class, config_class)
        results.append(run(name, found, model_class))
    return results


def _one_of(jobs: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def run_all(keys: Sequence[str], jobs: int) -> Iterator[list[Result]]:
    """Results as they come, from `jobs` processes."""
    if jobs == 1:
        yield from map(run_key, keys)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_one_of, initargs=(jobs,)) as pool:
        tasks = {pool.submit(run_key, key): key for key in keys}
        for task in as_completed(tasks):
            try:
                yield task.result()
            except Exception as error:  # the process died
                yield [Result(tasks[task], error=f"{type(error).__name__}: {error}")]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


# --- the report -------------------------------------------------------------------------------------------------------


def summary(results: Sequence[Result]) -> list[tuple[str, str]]:
    """What the table at the end says."""
    compared = [r for r in results if not r.skipped]
    random = sum(r.random_bytes for r in compared)
    share = sum(r.one_pass for r in compared) / random if random else math.nan
    return [
        ("architectures compared", f"{len(compared)}"),
        ("equal to eager", f"{sum(not r.error for r in compared)}"),
        ("not compared", f"{len(results) - len(compared)}"),
        ("parameters", f"{sum(r.parameters for r in compared):,}"),
        ("tensors", f"{sum(r.tensors for r in compared):,}"),
        ("random bytes", f"{random:,}"),
        ("filled in one pass", f"{share:.3%}"),
        ("replayed", f"{1 - share:.3%}"),
        ("seconds of all processes", f"{sum(r.seconds for r in compared):.0f}"),
    ]


def replayed_by(results: Iterable[Result]) -> list[tuple[str, int, list[str]]]:
    """Random bytes that no fill writes: by which operation, how many, in which architectures."""
    total: Counter[str] = Counter()
    where: dict[str, list[str]] = {}
    for r in results:
        for why, count in r.replayed.items():
            total[why] += count
            where.setdefault(why, []).append(r.name)
    return [(why, count, sorted(where[why])) for why, count in total.most_common()]


def markdown(results: Sequence[Result]) -> str:
    """The same, and every architecture, as a page."""
    import transformers

    lines = ["# Every architecture of transformers, against eager construction", ""]
    lines += [f"torch {torch.__version__}, transformers {transformers.__version__}. Written by `make zoo`.", ""]
    lines += ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in summary(results)), ""]
    failed, skipped = [r for r in results if r.error], [r for r in results if r.skipped]
    if failed:
        lines += ["## Not equal", "", *(f"- {r.name}: {r.error.splitlines()[0]}" for r in failed), ""]
    if skipped:
        lines += ["## Not compared", "", *(f"- {r.name}: {r.skipped}" for r in skipped), ""]
    by = replayed_by(results)
    if by:
        lines += ["## Replayed", "", "| operation | random bytes | in |", "|---|---:|---|"]
        lines += [f"| {why} | {count:,} | {', '.join(names)} |" for why, count, names in by]
        lines += [""]
    lines += [
        "## All",
        "",
        "| architecture | parameters | tensors | random bytes | in one pass |",
        "|---|---:|---:|---:|---:|",
    ]
    for r in results:
        if not r.skipped:
            share = f"{r.one_pass / r.random_bytes:.1%}" if r.random_bytes else ""
            lines.append(f"| {r.name} | {r.parameters:,} | {r.tensors:,} | {r.random_bytes:,} | {share} |")
    return "\n".join(lines) + "\n"


def report(results: Sequence[Result]) -> None:
    print()
    for name, value in summary(results):
        print(f"{name:26}{value}")
    for r in results:
        if r.skipped:
            print(f"  not compared: {r.name}: {r.skipped}")
    for why, count, names in replayed_by(results):
        print(f"  replayed, {count:,} bytes: {why} in {', '.join(names)}")


def _progress(done: int, total: int, result: Result, seconds: float) -> None:
    left = seconds / done * (total - done)
    if sys.stderr.isatty():
        bar = "#" * (40 * done // total)
        print(f"\r[{bar:40}] {done}/{total} {left:4.0f} s left  {result.name:40}", end="", file=sys.stderr)
    else:
        print(f"{done}/{total} {result.name} {result.seconds:.1f} s", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="keys of transformers' tables (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--results", type=Path, default=Path("build/zoo.jsonl"), help="a line for each one done")
    parser.add_argument("--resume", action="store_true", help="go on: run what --results does not have yet, or failed")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    parser.add_argument("--verbose", action="store_true", help="print the traceback of each failure")
    arguments = parser.parse_args(argv)
    with quiet():
        known = {name: key for key, name, _, _ in architectures(arguments.names)}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Result] = {}
    if arguments.resume and arguments.results.exists():
        for line in arguments.results.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a line that was cut off
                result = Result(**json.loads(line))
                if not result.error:
                    results[result.name] = result
    keys = list(dict.fromkeys(key for name, key in known.items() if name not in results))
    start = time.perf_counter()
    with arguments.results.open("w") as file:
        for result in results.values():
            print(json.dumps(asdict(result)), file=file, flush=True)
        for done, some in enumerate(run_all(keys, arguments.jobs), 1):
            for result in some:
                results[result.name] = result
                print(json.dumps(asdict(result)), file=file, flush=True)
                _progress(done, len(keys), result, time.perf_counter() - start)
                if result.error:
                    text = result.error if arguments.verbose else result.error.splitlines()[0]
                    print(f"FAILED {result.name}: {text}", flush=True)
    ordered = [results[name] for name in sorted(results) if name in known]
    report(ordered)
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(ordered))
    return int(any(r.error for r in ordered))


if __name__ == "__main__":
    sys.exit(main())
